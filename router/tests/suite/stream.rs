//! `StreamMessages`: one answer for each batch, backpressure, errors of batches, orderly end.
use crate::support::cluster::Mishap;
use crate::support::*;
use crate::told;
use carillon_proto::errors;
use carillon_proto::public::*;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

struct Stream {
    batches: mpsc::Sender<StreamMessagesRequest>,
    answers: Streaming<StreamMessagesResponse>,
}

async fn open(client: &mut Client) -> Stream {
    let (batches, receiver) = mpsc::channel(1);
    let answers = client.stream_messages(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    Stream { batches, answers }
}

fn batch(batch_id: u64, messages: Vec<MessageSpec>) -> StreamMessagesRequest {
    StreamMessagesRequest { batch_id, messages }
}

fn of_ten(batch_id: u64) -> StreamMessagesRequest {
    batch(batch_id, (0..10).map(|i| spec(PRACTICES[i % 6], &format!("{batch_id}-{i}"))).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_batch_is_answered_once() {
    let bed = Bed::start().await;
    let Stream { batches, mut answers } = open(&mut bed.client()).await;
    let sender = tokio::spawn(async move {
        for batch_id in 100..300 {
            batches.send(of_ten(batch_id)).await.unwrap();
        }
    });
    let mut seen = BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!((answer.results.len(), answer.error), (10, None));
        assert!(answer.results.iter().all(|result| !accepted(result).duplicate));
        assert!(seen.insert(answer.batch_id));
    }
    sender.await.unwrap();
    assert!(seen.into_iter().eq(100..300));
    assert_eq!(bed.cluster.accepted(), 2_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_32_batches_are_in_flight() {
    let bed = Bed::start().await;
    let node = bed.cluster.leader(partition_of("north"));
    bed.cluster.misbehave(node, &[Mishap::Wait; 40]);
    let Stream { batches, mut answers } = open(&mut bed.client()).await;
    let sender = tokio::spawn(async move {
        for batch_id in 0..40 {
            batches.send(batch(batch_id, vec![spec("north", &batch_id.to_string())])).await.unwrap();
        }
    });
    let mut changed = bed.cluster.changed.subscribe();
    while bed.cluster.submits() < 32 {
        changed.changed().await.unwrap();
    }
    let one_more = async {
        while bed.cluster.submits() < 33 {
            changed.changed().await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(300), one_more).await.is_err(), "33 in flight");
    bed.cluster.release.send_replace(true);
    let mut seen = BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        seen.insert(answer.batch_id);
    }
    sender.await.unwrap();
    assert!(seen.into_iter().eq(0..40));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_batch_does_not_hold_up_the_others() {
    let bed = Bed::start().await;
    let slow = bed.cluster.leader(partition_of("north"));
    let quick = *PRACTICES.iter().find(|p| bed.cluster.leader(partition_of(p)) != slow).unwrap();
    bed.cluster.misbehave(slow, &[Mishap::Wait]);
    let Stream { batches, mut answers } = open(&mut bed.client()).await;
    batches.send(batch(1, vec![spec("north", "k")])).await.unwrap();
    batches.send(batch(2, vec![spec(quick, "k")])).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().batch_id, 2);
    bed.cluster.release.send_replace(true);
    assert_eq!(answers.message().await.unwrap().unwrap().batch_id, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_batch_is_refused_and_the_stream_goes_on() {
    let bed = Bed::start().await;
    let Stream { batches, mut answers } = open(&mut bed.client()).await;
    batches.send(batch(1, vec![])).await.unwrap();
    batches.send(batch(2, vec![keyless("north"); 1_001])).await.unwrap();
    batches.send(of_ten(3)).await.unwrap();
    drop(batches);
    let mut reasons = std::collections::BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let reason = answer.error.map(|error| told(&errors::from_rpc(&error)));
        assert_eq!(answer.results.is_empty(), reason.is_some());
        reasons.insert(answer.batch_id, reason);
    }
    let refused = |reason| Some((Code::InvalidArgument, reason));
    assert_eq!(reasons[&1], refused(ErrorReason::NoItems));
    assert_eq!(reasons[&2], refused(ErrorReason::TooManyItems));
    assert_eq!(reasons[&3], None);
    assert_eq!(bed.cluster.accepted(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_large_ends_the_stream_after_all_answers() {
    let bed = Bed::start().await;
    let Stream { batches, mut answers } = open(&mut bed.client()).await;
    batches.send(of_ten(1)).await.unwrap();
    let huge = MessageSpec { body: "x".repeat(5 << 20), ..keyless("north") };
    batches.send(batch(2, vec![huge])).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!((answer.batch_id, answer.results.len()), (1, 10));
    let status = answers.message().await.unwrap_err();
    assert_eq!(told(&status), (Code::InvalidArgument, ErrorReason::RequestTooLarge));
    assert_eq!(status.get_error_details().error_info().unwrap().metadata["bytes_max"], "4194304");
    assert_eq!(bed.cluster.accepted(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_change_in_the_middle_of_a_stream_is_hidden() {
    let bed = Bed::start().await;
    let Stream { batches, mut answers } = open(&mut bed.client()).await;
    let node = bed.cluster.leader(partition_of("north"));
    bed.cluster.misbehave(node, &[Mishap::AcceptThenDie]);
    let sender = tokio::spawn(async move {
        for batch_id in 0..50 {
            batches.send(of_ten(batch_id)).await.unwrap();
        }
    });
    let mut answered = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(answer.results.iter().all(|result| accepted(result).message_id.len() == 26));
        answered += 1;
    }
    sender.await.unwrap();
    assert_eq!((answered, bed.cluster.accepted()), (50, 500));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_router_answers_what_is_in_flight_and_ends_the_stream() {
    let bed = Bed::start().await;
    let node = bed.cluster.leader(partition_of("north"));
    bed.cluster.misbehave(node, &[Mishap::Wait]);
    let mut client = bed.client();
    let Stream { batches, mut answers } = open(&mut client).await;
    batches.send(batch(7, vec![spec("north", "k")])).await.unwrap();
    let mut changed = bed.cluster.changed.subscribe();
    while bed.cluster.submits() == 0 {
        changed.changed().await.unwrap();
    }
    let ready = bed.router.ready_check();
    let (cluster, stopped) = bed.stop_router();
    while ready().is_ok() {
        tokio::task::yield_now().await;
    }
    cluster.release.send_replace(true);
    assert_eq!(answers.message().await.unwrap().unwrap().batch_id, 7);
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    assert!(stopped.await.unwrap(), "everything in flight could finish");
    drop(batches);
    let status = client.get_message(timed(GetMessageRequest::default())).await.unwrap_err();
    // What the client's own transport calls a connection that is going away or gone.
    assert!(matches!(status.code(), Code::Unavailable | Code::Cancelled), "{status:?}");
}
