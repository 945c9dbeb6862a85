//! Senders of a carrier: recipients keep theirs, a paused one gives its messages to another, routes name them.
use crate::appointments::explain;
use carillon_ctl::lab::CARRIER;
use carillon_proto::internal::{RouteRecord, RouteTarget, SenderRecord};
use carillon_proto::public::{MessageSpec, MessageState, MessageView, WaitingReason};
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, until};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
const FIRST: &str = "+12025550131";
const SECOND: &str = "88022";
const RECIPIENTS: usize = 24;

/// Puts a sender, and waits until every node knows it as it is.
async fn put(rig: &Rig, address: &str, weight: u32, paused: bool) {
    let sender = SenderRecord { address: address.to_owned(), weight, paused, ..Default::default() };
    until("the sender is put", SOON, async || {
        rig.lab.admin(1).unwrap().put_sender(CARRIER, sender.clone()).await.map_err(|e| e.to_string())
    })
    .await;
    everywhere(rig, address, Some((weight, paused))).await;
}

async fn everywhere(rig: &Rig, address: &str, wanted: Option<(u32, bool)>) {
    for node in rig.lab.node_ids() {
        until("every node knows the senders", SOON, async || {
            let admin = rig.lab.admin(node).map_err(|e| e.to_string())?;
            let senders = admin.senders(CARRIER).await.map_err(|e| e.to_string())?;
            let mut records = senders.into_iter().filter_map(|status| status.sender);
            let found = records.find(|sender| sender.address == address);
            match found.map(|sender| (sender.weight, sender.paused)) == wanted {
                true => Ok(()),
                false => Err(format!("node {node} does not")),
            }
        })
        .await;
    }
}

fn messages(rig: &Rig, name: &str) -> Vec<MessageSpec> {
    (0..RECIPIENTS).map(|at| spec(&rig.practices[2], &format!("{name}-{at}"), at)).collect()
}

/// The sender of each recipient's message, once it is delivered.
async fn sent(rig: &Rig, name: &str) -> Vec<String> {
    let mut senders = Vec::new();
    for told in rig.submit(messages(rig, name)).await {
        rig.until_state(&told.message_id, MessageState::Delivered, SOON).await;
        let message = rig.get(&told.message_id, MessageView::Basic).await.unwrap();
        senders.push(message.attempts.last().unwrap().sender.clone());
    }
    senders
}

pub async fn kept(rig: &Rig) {
    // Of the step before: without it there is one carrier, and it has to be one of its senders.
    rig.lab.admin(1).unwrap().drop_route("everything").await.unwrap();
    let own = sent(rig, "own").await;
    assert!(own.iter().all(|sender| *sender == own[0] && sender != FIRST), "the account's own: {own:?}");
    put(rig, FIRST, 1, false).await;
    put(rig, SECOND, 1, false).await;
    let before = sent(rig, "before").await;
    let used: BTreeSet<&str> = before.iter().map(String::as_str).collect();
    assert_eq!(used, BTreeSet::from([FIRST, SECOND]), "both are used, and no other");
    assert_eq!(sent(rig, "again").await, before, "a recipient keeps its sender");
    put(rig, SECOND, 1, true).await;
    assert!(sent(rig, "paused").await.iter().all(|sender| sender == FIRST));
    put(rig, SECOND, 1, false).await;
    assert_eq!(sent(rig, "back").await, before, "and has it again");
}

pub async fn moved(rig: &Rig) {
    put(rig, FIRST, 1, true).await;
    put(rig, SECOND, 1, true).await;
    let held = rig.submit(messages(rig, "held")).await;
    let told = explain(rig, &held[0].message_id).await;
    assert_eq!(told.holds[0].reason(), WaitingReason::Paused, "{told:?}");
    assert!(told.binding_limit.starts_with("sender ") && told.binding_limit.contains("paused"), "{told:?}");
    put(rig, SECOND, 1, false).await;
    for message in &held {
        rig.until_state(&message.message_id, MessageState::Delivered, SOON).await;
        let message = rig.get(&message.message_id, MessageView::Basic).await.unwrap();
        assert_eq!(message.attempts.len(), 1, "nothing was tried before");
        assert_eq!(message.attempts[0].sender, SECOND);
    }
    put(rig, FIRST, 1, false).await;
}

pub async fn named(rig: &Rig) {
    let admin = rig.lab.admin(1).unwrap();
    let route = |sender: &str| RouteRecord {
        name: "a-named".to_owned(),
        tenant: carillon_ctl::lab::TENANT.to_owned(),
        practice: rig.practices[2].clone(),
        targets: vec![RouteTarget { carrier: CARRIER.to_owned(), weight: 1, sender: sender.to_owned() }],
        ..Default::default()
    };
    for (wrong, expected) in [("+12025550199", "no such sender"), ("1 202 555", "targets.sender")] {
        let text = admin.put_route(route(wrong)).await.unwrap_err().to_string();
        assert!(text.contains(expected), "{wrong}: {text}");
    }
    let bad = SenderRecord { address: "12025550131".to_owned(), weight: 1, ..Default::default() };
    let text = admin.put_sender(CARRIER, bad).await.unwrap_err().to_string();
    assert!(text.contains("+E.164"), "{text}");
    let nobody = SenderRecord { address: FIRST.to_owned(), ..Default::default() };
    assert!(admin.put_sender("nobody", nobody).await.is_err());
    admin.put_route(route(FIRST)).await.unwrap();
    let text = admin.drop_sender(CARRIER, FIRST).await.unwrap_err().to_string();
    assert!(text.contains("route a-named"), "{text}");
    let mut seen = BTreeMap::new();
    until("the route is used", SOON, async || {
        let senders = sent(rig, &format!("named-{}", seen.len())).await;
        let all = senders.iter().all(|sender| sender == FIRST);
        seen.insert(seen.len(), senders);
        if all { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    admin.drop_route("a-named").await.unwrap();
    for address in [FIRST, SECOND] {
        admin.drop_sender(CARRIER, address).await.unwrap();
        everywhere(rig, address, None).await;
    }
    let own = sent(rig, "last").await;
    assert!(own.iter().all(|sender| sender != FIRST && sender != SECOND), "{own:?}");
}
