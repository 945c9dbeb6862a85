//! The disk of one node runs full: new messages of its partitions are refused, everything else goes on.
use super::volume::Volume;
use carillon_proto::public::{CancelMessagesRequest, MessageState, SubmitMessagesRequest};
use carillon_tests::api::{from_now, refused, spec, timed, told};
use carillon_tests::rig::{Rig, until};
use std::collections::BTreeMap;
use std::time::Duration;
use tonic::Code;
use tonic_types::StatusExt as _;

/// The other nodes are on the machine's own disk, of which a little is enough.
pub const CONFIG: &str = "[disk]\nfree_bytes_min = 67108864\nballast_bytes = 8388608\n";
const LIMIT: Duration = Duration::from_secs(60);
const NODE: u64 = 1;
const VOLUME_MIB: u64 = 480;

fn near_full(rig: &Rig, wanted: bool) -> impl AsyncFnMut() -> Result<(), String> {
    async move || match rig.status(NODE).await?.storage_near_full == wanted {
        true => Ok(()),
        false => Err(format!("near full: {}", !wanted)),
    }
}

pub async fn one_node(rig: &Rig) {
    rig.lab.stop_node(NODE).unwrap();
    let volume = Volume::under_node(rig, NODE, VOLUME_MIB);
    rig.start_node(NODE).await;
    // Leaders come back in their own time, and rest once they are spread evenly.
    let mut leaders = BTreeMap::new();
    until("the node has its part of the leaders again", LIMIT, async || {
        leaders = rig.leaders().await;
        let led = leaders.iter().filter(|(partition, node)| **partition != 0 && **node == NODE).count();
        if led * 3 + 3 > leaders.len() { Ok(()) } else { Err(format!("{leaders:?}")) }
    })
    .await;
    let leads = |practice: &&String| leaders[&rig.partition_of(practice)] == NODE;
    let here = rig.practices.iter().find(leads).expect("a practice of this node").clone();
    let elsewhere = rig.practices.iter().find(|p| !leads(p)).expect("a practice of another node").clone();

    let mut later = spec(&here, "full-later", 1);
    later.not_before = from_now(5_000);
    let mut canceled = spec(&here, "full-canceled", 2);
    canceled.not_before = from_now(3_600_000);
    let before = rig.submit(vec![later, canceled]).await;

    // Leaves 40 MiB, which is below the limit and enough to go on.
    let filler = volume.mount.join("filler");
    let free = 40 << 20;
    let available = available_bytes(&volume.mount);
    fs_err::write(&filler, vec![7_u8; (available - free) as usize]).unwrap();
    until("the node is nearly full", LIMIT, near_full(rig, true)).await;

    let submit = async |practice: &str, key: &str| {
        let request = SubmitMessagesRequest { messages: vec![spec(practice, key, 3)], validate_only: false };
        let answer = rig.client.messages().submit_messages(timed(request)).await.unwrap().into_inner();
        answer.results.into_iter().next().unwrap()
    };
    let status = refused(&submit(&here, "full-refused").await);
    assert_eq!(told(&status), (Code::ResourceExhausted, "STORAGE_FULL".to_owned()));
    let retry = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
    assert!(retry.is_some_and(|delay| !delay.is_zero()), "it says when to come again");
    // One full follower stops nobody.
    let others = rig.submit(vec![spec(&elsewhere, "full-elsewhere", 4)]).await;
    rig.until_state(&others[0].message_id, MessageState::Delivered, LIMIT).await;
    // Outcomes, receipts and cancels go on.
    let cancel =
        CancelMessagesRequest { message_ids: vec![before[1].message_id.clone()], ..Default::default() };
    let answer = rig.client.messages().cancel_messages(timed(cancel)).await.unwrap().into_inner();
    assert!(answer.results[0].canceled, "{:?}", answer.results[0].state);
    rig.until_state(&before[0].message_id, MessageState::Delivered, LIMIT).await;

    fs_err::remove_file(&filler).unwrap();
    until("there is room again", LIMIT, near_full(rig, false)).await;
    let after = rig.submit(vec![spec(&here, "full-refused", 3)]).await;
    assert!(!after[0].duplicate, "the refused one was not taken in secret");
    rig.until_state(&after[0].message_id, MessageState::Delivered, LIMIT).await;
    rig.lab.stop_node(NODE).unwrap();
}

fn available_bytes(dir: &std::path::Path) -> u64 {
    let output = std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(dir).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("df says a number")
}
