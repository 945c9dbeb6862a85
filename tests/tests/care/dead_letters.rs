//! Dead letters: two messages that spend their retries on a carrier that fails, and what operators do with them.
use crate::carriers::{Spare, route};
use carillon_proto::admin::{
    DeadLetterScope, DropDeadLettersRequest, ListDeadLettersRequest, ReplayDeadLettersRequest,
};
use carillon_proto::internal::BreakerMode;
use carillon_proto::public::{
    ListMessagesRequest, Message, MessageClass, MessageSpec, MessageState, MessageView,
};
use carillon_tests::api::spec;
use carillon_tests::rig::Rig;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);
/// Five attempts with up to 90 s of pauses.
const DEATH: Duration = Duration::from_secs(170);

fn practice(rig: &Rig) -> &str {
    &rig.practices[2]
}

/// Offers of places: the class that gives up first.
pub async fn begin(rig: &Rig, spare: &Spare) {
    spare.carrier.set_profile("base = \"perfect\"\n[faults]\ntemporary = 1.0\n").await.unwrap();
    let admin = rig.lab.admin(1).unwrap();
    route(rig, "offers", MessageClass::Waitlist as i32, &[("spare", 1)]).await;
    admin.set_breaker("spare", BreakerMode::Closed).await.unwrap();
    let offer = |at: usize| MessageSpec {
        class: MessageClass::Waitlist as i32,
        external_reference: "place-1".to_owned(),
        ..spec(practice(rig), &format!("dead-{at}"), at)
    };
    rig.submit((0..2).map(offer).collect()).await;
}

async fn offers(rig: &Rig) -> Vec<Message> {
    let request = ListMessagesRequest {
        practice: practice(rig).to_owned(),
        external_reference: "place-1".to_owned(),
        view: MessageView::Full as i32,
        ..Default::default()
    };
    rig.list(request).await
}

pub async fn decided(rig: &Rig, spare: &Spare) {
    let mut ids: Vec<String> = offers(rig).await.into_iter().map(|m| m.message_id).collect();
    ids.sort();
    for id in &ids {
        rig.until_state(id, MessageState::Dead, DEATH).await;
    }
    spare.carrier.set_profile("base = \"perfect\"\n").await.unwrap();
    let partition = rig.partition_of(practice(rig));
    let admin = rig.lab.admin(rig.leader_of(practice(rig)).await).unwrap();
    let scope = |message_ids: Vec<String>| {
        Some(DeadLetterScope {
            partition,
            tenant: carillon_ctl::lab::TENANT.to_owned(),
            practice: practice(rig).to_owned(),
            message_ids,
        })
    };
    let listed = async || -> Vec<String> {
        let request =
            ListDeadLettersRequest { scope: scope(Vec::new()), limit: 1, page_token: String::new() };
        let (mut found, mut request) = (Vec::new(), request);
        loop {
            let page = admin.list_dead_letters(request.clone()).await.unwrap();
            found.extend(page.messages.into_iter().map(|row| row.message_id));
            if page.next_page_token.is_empty() {
                found.sort();
                return found;
            }
            request.page_token = page.next_page_token;
        }
    };
    assert_eq!(listed().await, ids);
    let replay = |message_ids: Vec<String>, dry_run| ReplayDeadLettersRequest {
        scope: scope(message_ids),
        dry_run,
        messages_per_second: 5,
        limit: 0,
    };
    let dry = admin.replay_dead_letters(replay(Vec::new(), true)).await.unwrap();
    assert_eq!((dry.messages.len(), dry.messages[0].replayed_as.as_str()), (2, ""));
    assert_eq!(listed().await, ids, "a dry run changes nothing");
    let done = admin.replay_dead_letters(replay(vec![ids[0].clone()], false)).await.unwrap();
    let new = done.messages[0].replayed_as.clone();
    rig.until_state(&new, MessageState::Delivered, SOON).await;
    let again = admin.replay_dead_letters(replay(vec![ids[0].clone()], false)).await.unwrap();
    assert!(again.messages.is_empty(), "once only");
    let all = offers(rig).await;
    let of = |id: &String| all.iter().find(|m| m.message_id == *id).unwrap();
    assert_eq!(of(&ids[0]).state(), MessageState::Dead, "a final state never changes");
    assert_eq!((&of(&new).body, &of(&new).recipient), (&of(&ids[0]).body, &of(&ids[0]).recipient));
    let discard = |reason: &str| DropDeadLettersRequest {
        scope: scope(Vec::new()),
        reason: reason.to_owned(),
        dry_run: false,
        limit: 0,
    };
    assert!(admin.drop_dead_letters(discard("told by phone")).await.is_err(), "a reason is one word");
    assert_eq!(admin.drop_dead_letters(discard("told_by_phone")).await.unwrap().messages, 1);
    assert!(listed().await.is_empty());
    admin.set_breaker("spare", BreakerMode::Auto).await.unwrap();
}
