//! A rough measure of the whole way client -> router -> fake nodes, printed for the record.
use crate::support::*;
use carillon_proto::public::*;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const BATCHES: u64 = 200;
const BATCH: usize = 500;

/// 300-byte bodies over one stream. The bound only catches a collapse: the machine is shared with other tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_thousands_of_messages_a_second() {
    let bed = Bed::start().await;
    let (batches, receiver) = mpsc::channel(4);
    let mut answers = bed.client().stream_messages(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let began = Instant::now();
    tokio::spawn(async move {
        for batch_id in 0..BATCHES {
            let messages = (0..BATCH)
                .map(|i| MessageSpec {
                    body: "Your appointment is on Tuesday at 9. ".repeat(8),
                    ..spec(PRACTICES[i % 6], &format!("{batch_id}-{i}"))
                })
                .collect();
            batches.send(StreamMessagesRequest { batch_id, messages }).await.unwrap();
        }
    });
    let mut accepted_count = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        accepted_count += answer.results.iter().filter(|r| accepted(r).message_id.len() == 26).count();
    }
    let took = began.elapsed();
    assert_eq!(accepted_count, BATCHES as usize * BATCH);
    let rate = accepted_count as f64 / took.as_secs_f64();
    println!("client + router + fake nodes: {rate:.0} messages/s");
    assert!(rate > 2_000.0, "{rate}");
}
