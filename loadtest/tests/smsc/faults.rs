//! Faults of answers, storms, the contract alarm, reproducibility.

use std::collections::BTreeMap;

use carillon_loadtest::smsc::{AccountConfig, Contract, Profile, SmscConfig};
use rusmpp::CommandId;

use super::client::{Client, http, start, start_with, submit};

#[tokio::test]
async fn an_answer_can_be_lost_with_or_without_the_message() {
    for (fault, accepted) in [("lost_accepted", true), ("lost_refused", false)] {
        let smsc = start_with(&format!("[faults]\n{fault} = 1.0\n")).await;
        let mut client = Client::bound(&smsc).await;
        client.put(submit("+12025550123", "hello"));
        client.enquire().await;
        let record = &smsc.truth(0, 1).records[0];
        assert_eq!((record.accepted, record.answer, record.answer_sent), (accepted, None, false));
        assert_eq!(record.fault, fault);
        assert_eq!(smsc.stats(0).unanswered, 1);
        if accepted {
            assert_eq!(client.take_receipt().await.state, "DELIVRD");
        }
        // The enquiry was answered after it, so nothing else was on the wire.
        let unbind = client.send(rusmpp::Pdu::Unbind).await;
        client.answer(unbind).await;
        assert!(client.ended().await.iter().all(|command| command.id() != CommandId::SubmitSmResp));
    }
}

#[tokio::test]
async fn a_connection_can_drop_before_or_after_the_message_was_taken() {
    for (fault, accepted) in [("drop_after_accept", true), ("drop_before_read", false)] {
        let smsc = start_with(&format!("[faults]\n{fault} = 1.0\n")).await;
        let mut client = Client::bound(&smsc).await;
        client.send(submit("+12025550123", "hello")).await;
        assert!(client.ended().await.iter().all(|command| command.id() != CommandId::SubmitSmResp));
        let stats = smsc.stats(0);
        assert_eq!((stats.submits, stats.accepted), (1, u64::from(accepted)));
        if accepted {
            let mut next = Client::bound(&smsc).await;
            assert_eq!(next.take_receipt().await.state, "DELIVRD");
        }
    }
}

#[tokio::test]
async fn refusals_have_their_status_and_a_body_only_if_asked() {
    for (fault, status) in [("throttled", 0x58), ("queue_full", 0x14), ("temporary", 0x08)] {
        for (error_body, has_body) in [(false, false), (true, true)] {
            let smsc = start_with(&format!("error_body = {error_body}\n[faults]\n{fault} = 1.0\n")).await;
            let mut client = Client::bound(&smsc).await;
            let sequence = client.send(submit("+12025550123", "hello")).await;
            let answer = client.answer(sequence).await;
            assert_eq!((u32::from(answer.status()), answer.pdu().is_some()), (status, has_body));
            assert_eq!(smsc.stats(0).accepted, 0);
        }
    }
}

#[tokio::test]
async fn delayed_answers_come_and_are_marked_when_they_do() {
    let smsc = start_with("[answer_latency]\nmin_ms = 20.0\nmedian_ms = 40.0\np99_ms = 120.0\n").await;
    let mut client = Client::bound(&smsc).await;
    let begin = std::time::Instant::now();
    let sent: Vec<u32> =
        (0..200).map(|n| client.put(submit("+12025550123", &format!("hello {n}")))).collect();
    client.enquire().await;
    let mut order = Vec::new();
    for _ in &sent {
        let answer = client.want(|command| command.id() == CommandId::SubmitSmResp).await;
        order.push(answer.sequence_number());
    }
    assert!(begin.elapsed().as_millis() >= 40, "half of the answers take 40 ms at least");
    assert_ne!(order, sent, "answers overtake each other");
    order.sort_unstable();
    assert_eq!(order, sent);
    assert!(smsc.truth(0, 200).records.iter().all(|record| record.answer_sent));
    assert!(smsc.stats(0).lag.max_us > 0);
}

fn with_contract(config: &mut SmscConfig, limit: u32, throttle: bool) {
    // The window is so long that the test cannot outlast it.
    let contract = Contract { limit, window_ms: 3_600_000, slack_ms: 0 };
    config.accounts = vec![AccountConfig::new("carillon", "secret", contract)];
    config.profile.throttle_over_contract = throttle;
}

#[tokio::test]
async fn the_alarm_fires_at_one_over_the_limit_and_not_at_the_limit() {
    let smsc = start(|config| with_contract(config, 50, false)).await;
    let (mut one, mut two) = (Client::bound(&smsc).await, Client::bound(&smsc).await);
    for n in 0..25 {
        for client in [&mut one, &mut two] {
            assert_eq!(client.submit("+12025550123", &format!("hello {n}")).await.0, 0);
        }
    }
    let account = smsc.stats(0).accounts[0].clone();
    assert_eq!((account.arrivals, account.window_max, account.violations), (50, 50, 0));
    assert_eq!(account.first_violation_at_us, None);
    assert_eq!(one.submit("+12025550123", "one too many").await.0, 0);
    let account = smsc.stats(0).accounts[0].clone();
    assert_eq!((account.window_max, account.violations), (51, 1));
    assert_eq!(account.first_violation_at_us, Some(smsc.truth(50, 1).records[0].at_us));
}

#[tokio::test]
async fn a_carrier_that_enforces_its_contract_throttles_but_the_alarm_still_counts() {
    let smsc = start(|config| with_contract(config, 10, true)).await;
    let mut client = Client::bound(&smsc).await;
    let mut statuses = Vec::new();
    for n in 0..12 {
        statuses.push(client.submit("+12025550123", &format!("hello {n}")).await.0);
    }
    assert!(statuses[..10].iter().all(|status| *status == 0));
    assert_eq!(statuses[10..], [0x58, 0x58]);
    let stats = smsc.stats(0);
    assert_eq!((stats.accepted, stats.violations(), stats.by_fault["over_contract"]), (10, 2, 2));
}

#[tokio::test]
async fn a_storm_refuses_everything_until_the_profile_changes() {
    let smsc = start_with(
        "name = \"gale\"\n[[storms]]\nfrom_ms = 0\nto_ms = 3600000\nstatus = 88\n[answer_latency]\nmin_ms = 0.0\nmedian_ms = 0.0\np99_ms = 0.0",
    )
    .await;
    let mut client = Client::bound(&smsc).await;
    for n in 0..20 {
        assert_eq!(client.submit("+12025550123", &format!("hello {n}")).await.0, 0x58);
    }
    let (status, body) = http(&smsc, "POST", "/profile?preset=perfect", "").await;
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<Profile>(&body).unwrap(), Profile::default());
    assert_eq!(client.submit("+12025550123", "hello 0").await.0, 0);
    let (status, _) =
        http(&smsc, "POST", "/profile", "[[storms]]\nfrom_ms = 0\nto_ms = 9999999\nstatus = 8").await;
    assert_eq!((status, client.submit("+12025550123", "again").await.0), (200, 0x08));
    for (path, body, wanted, why) in [
        ("/profile", "[faults]\nthrotled = 1.0", 400, "throtled"),
        ("/profile?preset=gentle", "", 404, "gentle"),
    ] {
        let (status, body) = http(&smsc, "POST", path, body).await;
        assert!(status == wanted && body.contains(why), "{status} {body}");
    }
}

/// What became of each message (by its number) with the given seed, when they
/// are submitted in this order over this many binds.
async fn outcomes(seed: u64, numbers: &[u32], binds: usize) -> BTreeMap<u32, Vec<String>> {
    let text = "base = \"lossy\"\nrefuse = []\n[faults]\nthrottled = 0.1\nlost_accepted = 0.1\nlost_refused = 0.1\ndrop_after_accept = 0.0\ndrop_before_read = 0.0\n[answer_latency]\nmin_ms = 0.0\nmedian_ms = 0.0\np99_ms = 0.0";
    let profile = Profile::from_toml(text).unwrap();
    let smsc = start(|config| {
        config.seed = seed;
        config.profile = profile;
    })
    .await;
    let mut clients = Vec::new();
    for _ in 0..binds {
        clients.push(Client::bound(&smsc).await);
    }
    for (at, number) in numbers.iter().enumerate() {
        let client = &mut clients[at % binds];
        client.put(submit(&format!("+1202{number:07}"), &format!("message {number}")));
        client.flush().await;
    }
    for client in &mut clients {
        client.enquire().await;
    }
    let key = carillon_loadtest::smsc::TruthKey::default();
    let records = smsc.truth(0, numbers.len()).records;
    assert_eq!(records.len(), numbers.len());
    let mut outcomes: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for number in numbers.iter().collect::<std::collections::BTreeSet<_>>() {
        let message = carillon_loadtest::smsc::truth_key(
            &key,
            &format!("+1202{number:07}"),
            &format!("message {number}"),
        );
        let of_number = records.iter().filter(|record| record.message == Some(message));
        outcomes.insert(*number, of_number.map(|record| record.fault.clone()).collect());
    }
    outcomes
}

#[tokio::test]
async fn the_same_seed_picks_the_same_messages_whatever_the_order() {
    // Each number twice: the second submit is another occurrence.
    let forward: Vec<u32> = (0..400).chain(0..400).collect();
    let backward: Vec<u32> = forward.iter().rev().copied().collect();
    let first = outcomes(7, &forward, 1).await;
    assert_eq!(first, outcomes(7, &backward, 1).await);
    // Over several binds the two submits of one number may swap, but not what happens to them.
    let sorted = |mut outcomes: BTreeMap<u32, Vec<String>>| {
        outcomes.values_mut().for_each(|faults| faults.sort());
        outcomes
    };
    assert_eq!(sorted(first.clone()), sorted(outcomes(7, &forward, 3).await));
    assert_ne!(first, outcomes(8, &forward, 1).await);
    let faulty = first.values().flatten().filter(|fault| *fault != "none").count();
    assert!((160..320).contains(&faulty), "about 0.3 of 800 are faulty, not {faulty}");
    assert!(first.values().any(|faults| faults[0] != faults[1]), "a retry is decided anew");
}
