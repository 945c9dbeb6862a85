//! SMPP beyond 3.4: the congestion state of 5.0; senders of single messages; storms of binds.
use crate::support::*;
use carillon_carriers::contract::{Contract, ContractHandle};
use carillon_carriers::{Connector as _, OpenGate, SendRequest};
use carillon_proto::public::Outcome;
use rusmpp::pdus::BindTransceiverResp;
use rusmpp::{CommandStatus, Pdu};
use std::time::Duration;
use tokio::time::Instant;

fn version_5() -> ContractHandle {
    let text = include_str!("../../contracts/smpp-generic.toml").replacen("\"3.4\"\n", "\"5.0\"\n", 1);
    ContractHandle::fixed(Contract::parse("five.toml", &text).unwrap())
}

#[tokio::test]
async fn a_carrier_that_says_how_full_it_is_slows_the_lane_before_it_refuses() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.contract = version_5();
    setup.settings.throttle_pause_ms = 300;
    let (connector, _inbox) = setup.start();
    let mut peer = smsc.accept().await;
    let bind = peer.next().await.unwrap();
    let Some(Pdu::BindTransceiver(request_5)) = bind.pdu() else { panic!("not a bind") };
    assert_eq!(u8::from(request_5.interface_version), 0x50);
    peer.write(bind.sequence_number(), CommandStatus::EsmeRok, BindTransceiverResp::default()).await;
    within(connector.bound(1)).await;
    for (percent, shortest_ms) in [(0, 0), (85, 0), (95, 150), (100, 300)] {
        let sending = spawn_send(&connector, request(u64::from(percent), "Hi"));
        let (sequence, _) = peer.submit().await;
        let answered_at = Instant::now();
        // A submit_sm_resp with id "1" and the TLV congestion_state (0x0428), which the codec does not write.
        let mut octets = vec![0, 0, 0, 23, 0x80, 0, 0, 4, 0, 0, 0, 0];
        octets.extend(sequence.to_be_bytes());
        octets.extend([b'1', 0, 0x04, 0x28, 0, 1, percent]);
        peer.raw(&octets).await;
        // The message itself was taken.
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
        assert_eq!(connector.status().paused_for.is_some(), shortest_ms > 0, "{percent}");
        let next = spawn_send(&connector, request(1_000, "next"));
        let (sequence, _) = peer.submit().await;
        assert!(answered_at.elapsed() >= Duration::from_millis(shortest_ms), "{percent}");
        peer.accept(sequence, "2").await;
        assert_eq!(outcome(next).await.outcome, Outcome::Accepted);
    }
}

#[tokio::test]
async fn a_message_may_have_a_sender_of_its_own() {
    let (_smsc, connector, _inbox, mut peer) = one_bind().await;
    for (sender, expected) in
        [(None, "12025550100"), (Some("12025550111"), "12025550111"), (Some("Clinic"), "Clinic")]
    {
        let own = SendRequest { sender: sender.map(str::to_owned), ..request(1, "Hi") };
        let sending = spawn_send(&connector, own);
        let (sequence, submit) = peer.submit().await;
        assert_eq!(submit.source_addr.as_str(), expected);
        peer.accept(sequence, "1").await;
        assert_eq!(outcome(sending).await.outcome, Outcome::Accepted);
    }
    let broken = SendRequest { sender: Some("much too long a name".into()), ..request(1, "Hi") };
    let broken = within(connector.send(broken, &OpenGate)).await;
    assert_eq!((broken.outcome, broken.code.as_str()), (Outcome::LaneBroken, "bad_sender"));
    peer.assert_silent().await;
}

#[tokio::test]
async fn a_carrier_that_drops_every_bind_is_not_stormed() {
    let smsc = Smsc::new().await;
    let mut setup = Setup::new(&smsc);
    setup.tuning.connects_max = 5;
    setup.tuning.connects_window = Duration::from_millis(400);
    let (_connector, _inbox) = setup.start();
    let began = Instant::now();
    for _ in 0..10 {
        drop(smsc.bound().await);
    }
    // The sixth and the eleventh had to wait for the window of those before.
    drop(smsc.bound().await);
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
}
