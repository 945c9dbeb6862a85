//! Short retention: final messages live two seconds, keys an hour.
use carillon_proto::public::{MessageState, MessageView, SubmitMessagesRequest};
use carillon_tests::api::{accepted, from_now, spec, told};
use carillon_tests::rig::{Rig, until};
use std::time::Duration;
use tonic::Code;

pub const CONFIG: &str = "[retention]\nfinal_messages_s = 2\nidempotency_keys_s = 3600\n";
pub const LIMIT: Duration = Duration::from_secs(30);

fn counter(page: &str, name: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

pub async fn dropped(rig: &Rig) {
    let practice = &rig.practices[0];
    let messages: Vec<_> = (0..40).map(|i| spec(practice, &format!("retired-{i}"), i)).collect();
    let ids = rig.submit(messages.clone()).await;
    // Delivered at some moment, and gone two seconds later.
    for id in &ids {
        until("the message is dropped", LIMIT, async || {
            match rig.get(&id.message_id, MessageView::Basic).await {
                Ok(message) => Err(format!("it is {:?}", message.state())),
                Err(status) if told(&status) == (Code::NotFound, "MESSAGE_RETIRED".to_owned()) => Ok(()),
                Err(status) => Err(status.to_string()),
            }
        })
        .await;
    }
    let stats = rig.carrier.stats().await.unwrap();
    assert_eq!((stats.messages.messages, stats.messages.duplicated), (40, 0), "each was sent once before");
    // The keys are remembered: repeats name the messages that are gone, and nothing is sent again.
    let request = SubmitMessagesRequest { messages, validate_only: false };
    let answer = rig.client.submit(request).await.unwrap();
    for (result, id) in answer.results.iter().zip(&ids) {
        let again = accepted(result);
        assert_eq!((&again.message_id, again.duplicate), (&id.message_id, true));
    }
    assert_eq!(rig.carrier.stats().await.unwrap().messages.messages, 40);
    let retired: f64 =
        rig.metrics().await.values().map(|page| counter(page, "carillon_retired_messages_total")).sum();
    assert!(retired >= 40.0, "{retired} are counted");
    // An id that never was, of now, is just not found.
    let other = carillon_proto::MessageId::new(
        carillon_tests::api::now_ms() as u64 + 3_600_000,
        ids[0].message_id.parse::<carillon_proto::MessageId>().unwrap().slot(),
        7,
    );
    let status = rig.get(&other.to_string(), MessageView::Basic).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, "MESSAGE_NOT_FOUND".to_owned()));
}

pub async fn waiting_stays(rig: &Rig) {
    let mut later = spec(&rig.practices[1], "waits", 1);
    later.not_before = from_now(7_000);
    let id = rig.submit(vec![later]).await.remove(0).message_id;
    let sooner = rig.submit(vec![spec(&rig.practices[1], "sooner", 2)]).await.remove(0).message_id;
    // The later message of the same partition is accepted before, and outlives the sooner one.
    until("the sooner one is dropped", LIMIT, async || match rig.get(&sooner, MessageView::Basic).await {
        Ok(message) => Err(format!("it is {:?}", message.state())),
        Err(_) => Ok(()),
    })
    .await;
    let message = rig.get(&id, MessageView::Basic).await.unwrap();
    assert_eq!(message.state(), MessageState::Waiting);
    rig.until_state(&id, MessageState::Delivered, LIMIT).await;
}
