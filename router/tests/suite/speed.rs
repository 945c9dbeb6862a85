//! A rough measure of the router process between a client and fake nodes, printed for the record.
use crate::process::Process;
use crate::support::*;
use carillon_proto::public::*;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const BATCHES: u64 = 200;
const BATCH: usize = 500;

/// 300-byte bodies over one stream. The bounds only catch a collapse: the machine is shared with other tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_thousands_of_messages_a_second() {
    let bed = Bed::start().await;
    let router = Process::start(&bed, "info").await;
    let mut client = router.client(&bed);
    submit(&mut client, vec![spec("north", "warm")]).await;
    let (batches, receiver) = mpsc::channel(4);
    let mut answers = client.stream_messages(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let (began, cpu) = (Instant::now(), router.cpu());
    tokio::spawn(async move {
        for batch_id in 0..BATCHES {
            let body = "Your appointment is on Tuesday at 9. ".repeat(8);
            let one =
                |i| MessageSpec { body: body.clone(), ..spec(PRACTICES[i % 6], &format!("{batch_id}-{i}")) };
            let messages = (0..BATCH).map(one).collect();
            batches.send(StreamMessagesRequest { batch_id, messages }).await.unwrap();
        }
    });
    let mut count = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        count += answer.results.iter().filter(|r| accepted(r).message_id.len() == 26).count();
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    assert_eq!(count, BATCHES as usize * BATCH);
    println!("client + router + fake nodes: {rate:.0} messages/s");
    if let (Some(before), Some(after)) = (cpu, router.cpu()) {
        let each = (after - before) / count as u32;
        println!("processor time of the router for one message: {each:?}");
        assert!(each.as_micros() < 100, "{each:?}");
    }
    assert!(rate > 2_000.0, "{rate}");
}
