//! `WatchEvents`: merged, resumable, across leader changes.
use crate::support::cluster::PARTITIONS;
use crate::support::*;
use crate::told;
use carillon_proto::public::*;
use std::time::Duration;
use tonic::{Code, Request, Streaming};

type Stream = Streaming<WatchEventsResponse>;

async fn watch(client: &mut Client, practice: &str, cursor: &str) -> Stream {
    let request = WatchEventsRequest { practice: practice.to_owned(), cursor: cursor.to_owned() };
    client.watch_events(request).await.unwrap().into_inner()
}

/// Reads until `count` events came; gives their ids and the last cursor.
async fn read(stream: &mut Stream, count: usize) -> (Vec<String>, String) {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    while ids.len() < count {
        let answer = stream.message().await.unwrap().expect("the stream goes on");
        assert!(!answer.cursor.is_empty());
        ids.extend(answer.events.into_iter().map(|event| event.message_id));
        cursor = answer.cursor;
    }
    (ids, cursor)
}

fn emit(bed: &Bed, practice: &str, id: &str) {
    bed.cluster.emit(TENANT, number_of(practice), partition_of(practice), id);
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn now_means_from_the_first_cursor_on_and_a_cursor_resumes_without_a_gap() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    emit(&bed, "north", "old");
    let mut stream = watch(&mut client, "", "").await;
    let first = stream.message().await.unwrap().unwrap();
    assert!(first.events.is_empty() && !first.cursor.is_empty());
    for practice in PRACTICES {
        emit(&bed, practice, &format!("{practice}-1"));
    }
    bed.cluster.emit("riverside", 7, partition_of("north"), "foreign");
    let (ids, cursor) = read(&mut stream, 6).await;
    assert_eq!(sorted(ids), sorted(PRACTICES.iter().map(|p| format!("{p}-1")).collect()));
    drop(stream);

    for practice in PRACTICES {
        emit(&bed, practice, &format!("{practice}-2"));
    }
    let mut resumed = watch(&mut client, "", &cursor).await;
    let (ids, _) = read(&mut resumed, 6).await;
    assert_eq!(sorted(ids), sorted(PRACTICES.iter().map(|p| format!("{p}-2")).collect()));
    // From the very first cursor both rounds come again, and the event from before does not.
    let mut replayed = watch(&mut client, "", &first.cursor).await;
    assert_eq!(read(&mut replayed, 12).await.0.len(), 12);
    let mut whole = watch(&mut client, "", "start").await;
    assert!(read(&mut whole, 13).await.0.contains(&"old".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_practice_is_watched_alone() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    let mut stream = watch(&mut client, "east", "start").await;
    for practice in PRACTICES {
        emit(&bed, practice, practice);
    }
    emit(&bed, "east", "again");
    assert_eq!(read(&mut stream, 2).await.0, ["east", "again"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_on_at_the_new_leader_in_order_and_without_a_gap() {
    let bed = Bed::start().await;
    let partition = partition_of("north");
    let mut stream = watch(&mut bed.client(), "north", "start").await;
    let mut expected = Vec::new();
    let mut got = Vec::new();
    for round in 0..6 {
        for step in 0..3 {
            let id = format!("{round}-{step}");
            emit(&bed, "north", &id);
            expected.push(id);
        }
        let leader = bed.cluster.leader(partition);
        let heir = leader % 3 + 1;
        match round {
            // The old leader dies without a word.
            3 => {
                bed.kill(leader);
                bed.cluster.fail_over(leader, heir);
            }
            // The old leader is dead by now: it cannot lead again.
            4 | 5 => {}
            _ => bed.cluster.lead(partition, heir),
        }
        let missing = expected.len() - got.len();
        got.extend(read(&mut stream, missing).await.0);
    }
    assert_eq!(got, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_cursors_and_foreign_practices_are_refused() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    let mut stream = watch(&mut client, "", "").await;
    let cursor = stream.message().await.unwrap().unwrap().cursor;
    let invalid = (Code::InvalidArgument, ErrorReason::InvalidToken);
    for (practice, text) in [("", "nonsense"), ("", "AQID"), ("north", cursor.as_str())] {
        let request = WatchEventsRequest { practice: practice.into(), cursor: text.into() };
        assert_eq!(told(&client.watch_events(request).await.unwrap_err()), invalid, "{text}");
    }
    let mut stranger = bed.client_as("spiffe://lab/tenant/riverside");
    let request = WatchEventsRequest { practice: String::new(), cursor };
    assert_eq!(told(&stranger.watch_events(request).await.unwrap_err()), invalid);
    let request = WatchEventsRequest { practice: FOREIGN.into(), cursor: String::new() };
    let status = client.watch_events(request).await.unwrap_err();
    assert_eq!(told(&status), (Code::NotFound, ErrorReason::PracticeNotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_its_deadline_says_so_and_its_cursor_resumes() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    emit(&bed, "north", "before");
    let mut request =
        Request::new(WatchEventsRequest { practice: "north".to_owned(), cursor: "start".to_owned() });
    request.set_timeout(Duration::from_secs(2));
    let mut stream = client.watch_events(request).await.unwrap().into_inner();
    let (ids, mut cursor) = read(&mut stream, 1).await;
    assert_eq!(ids, ["before"]);
    let status = loop {
        match stream.message().await {
            Ok(Some(answer)) => cursor = answer.cursor,
            Ok(None) => panic!("the stream ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(told(&status), (Code::DeadlineExceeded, ErrorReason::DeadlineExceeded));
    emit(&bed, "north", "after");
    assert_eq!(read(&mut watch(&mut client, "north", &cursor).await, 1).await.0, ["after"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_its_streams_to_the_nodes() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    for _ in 0..100 {
        let mut stream = watch(&mut client, "", "").await;
        assert!(stream.message().await.unwrap().is_some());
    }
    assert!(bed.cluster.with(|state| state.watches) >= 100 * PARTITIONS as usize);
    // More watchers than places would be refused if the ones that left still held theirs.
    let mut stream = watch(&mut client, "north", "start").await;
    emit(&bed, "north", "last");
    assert_eq!(read(&mut stream, 1).await.0, ["last"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_router_ends_the_stream_with_a_hint_to_go_elsewhere() {
    let bed = Bed::start().await;
    let mut stream = watch(&mut bed.client(), "", "").await;
    assert!(stream.message().await.unwrap().is_some());
    let (_cluster, stopped) = bed.stop_router();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(told(&status), (Code::Unavailable, ErrorReason::PartitionUnavailable));
    assert!(stopped.await.unwrap());
}
