//! What clients see while nodes change, break and hesitate.
use crate::support::cluster::Mishap;
use crate::support::*;
use crate::told;
use carillon_proto::public::*;
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const PRACTICE: &str = "north";

/// The value of `fate` in ErrorInfo.
fn fate(status: &Status) -> String {
    assert_eq!(told(status), (Code::Unavailable, ErrorReason::PartitionUnavailable));
    let details = status.get_error_details();
    assert!(details.retry_info().is_some());
    details.error_info().unwrap().metadata["fate"].clone()
}

fn leader(bed: &Bed) -> u64 {
    bed.cluster.leader(partition_of(PRACTICE))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_change_is_hidden() {
    let bed = Bed::start().await;
    let mut client = bed.client();
    for (round, node) in [2, 3, 1, 3, 2].into_iter().enumerate() {
        bed.cluster.lead(partition_of(PRACTICE), node);
        let results = submit(&mut client, vec![spec(PRACTICE, &format!("k{round}"))]).await;
        assert!(!accepted(&results[0]).duplicate);
    }
    assert_eq!(bed.cluster.accepted(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_leader_is_retried_even_without_a_key_with_and_without_a_hint() {
    let bed = Bed::start().await;
    let node = leader(&bed);
    let wrong = node % 3 + 1;
    let mishaps =
        [Mishap::NotLeader { hint: 0 }, Mishap::NotLeader { hint: 77 }, Mishap::NotLeader { hint: wrong }];
    bed.cluster.misbehave(node, &mishaps);
    let results = submit(&mut bed.client(), vec![keyless(PRACTICE)]).await;
    assert_eq!(accepted(&results[0]).message_id.len(), 26);
    assert_eq!(bed.cluster.accepted(), 1);
    let asked = bed.cluster.with(|s| s.submits.iter().map(|(node, _)| *node).collect::<Vec<_>>());
    assert_eq!(asked, [node, node, node, wrong, node], "hints of known nodes are followed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_costs_nothing_but_time() {
    let bed = Bed::start().await;
    let node = leader(&bed);
    bed.kill(node);
    let mut client = bed.client();
    let waiting = tokio::spawn(async move { submit(&mut client, vec![keyless(PRACTICE)]).await });
    bed.cluster.fail_over(node, node % 3 + 1);
    // It provably was not sent, so even a message without a key goes to the new leader.
    assert_eq!(accepted(&waiting.await.unwrap()[0]).message_id.len(), 26);
    assert_eq!(bed.cluster.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_dies_with_the_request_is_retried_only_for_keys() {
    for (mishap, duplicate) in [(Mishap::AcceptThenDie, true), (Mishap::Die, false)] {
        let bed = Bed::start().await;
        let node = leader(&bed);
        bed.cluster.misbehave(node, &[mishap]);
        let results = submit(&mut bed.client(), vec![spec(PRACTICE, "k"), keyless(PRACTICE)]).await;
        let heir = node % 3 + 1;
        assert_eq!(accepted(&results[0]).duplicate, duplicate, "{mishap:?}");
        assert_eq!(fate(&refused(&results[1])), "unknown");
        assert_eq!(bed.cluster.accepted(), if duplicate { 2 } else { 1 }, "no message was accepted twice");
        let asked = bed.cluster.with(|s| s.submits.iter().map(|(node, _)| *node).collect::<Vec<_>>());
        assert_eq!(asked, [node, heir]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_breaks_its_node_is_given_back_after_three_calls() {
    for (panics, calls) in [(2, 3), (9, 3)] {
        let bed = Bed::start().await;
        bed.cluster.misbehave(leader(&bed), &[Mishap::Panic; 9][..panics]);
        let results = submit(&mut bed.client(), vec![spec(PRACTICE, "k")]).await;
        assert_eq!(bed.cluster.submits(), calls);
        if panics < calls {
            assert_eq!(accepted(&results[0]).message_id.len(), 26);
            continue;
        }
        let status = refused(&results[0]);
        assert_eq!(fate(&status), "unknown");
        assert_eq!(status.get_error_details().error_info().unwrap().metadata["calls_broken"], "3");
        assert_eq!(bed.cluster.accepted(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uncertain_proposal_is_repeated_only_with_a_key() {
    for (mishap, duplicate) in [(Mishap::UncertainAccepted, true), (Mishap::UncertainLost, false)] {
        let bed = Bed::start().await;
        bed.cluster.misbehave(leader(&bed), &[mishap]);
        let messages = vec![keyless(PRACTICE), spec(PRACTICE, "k"), keyless(PRACTICE)];
        let results = submit(&mut bed.client(), messages).await;
        assert_eq!(accepted(&results[1]).duplicate, duplicate);
        assert_eq!(
            (fate(&refused(&results[0])), fate(&refused(&results[2]))),
            ("unknown".into(), "unknown".into())
        );
        assert_eq!(bed.cluster.submits(), 2);
        assert_eq!(bed.cluster.accepted(), if duplicate { 3 } else { 1 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_leader_fails_its_items_inside_the_deadline_and_no_others() {
    let bed = Bed::start().await;
    let silent = leader(&bed);
    let other = *PRACTICES.iter().find(|p| bed.cluster.leader(partition_of(p)) != silent).unwrap();
    bed.cluster.misbehave(silent, &[Mishap::Hang]);
    let request =
        SubmitMessagesRequest { messages: vec![spec(PRACTICE, "a"), spec(other, "b")], validate_only: false };
    let began = Instant::now();
    let timeout = Duration::from_millis(2_500);
    let results = bed.client().submit_messages(within(timeout, request)).await.unwrap().into_inner().results;
    assert!(began.elapsed() < timeout);
    assert_eq!(fate(&refused(&results[0])), "unknown");
    assert_eq!(accepted(&results[1]).message_id.len(), 26);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_leader_is_left_as_soon_as_another_one_is_known() {
    let bed = Bed::start().await;
    let (partition, silent) = (partition_of(PRACTICE), leader(&bed));
    bed.cluster.misbehave(silent, &[Mishap::Hang]);
    let mut client = bed.client();
    let mut changed = bed.cluster.changed.subscribe();
    let waiting = tokio::spawn(async move { submit(&mut client, vec![spec(PRACTICE, "k")]).await });
    while bed.cluster.submits() == 0 {
        changed.changed().await.unwrap();
    }
    bed.cluster.lead(partition, silent % 3 + 1);
    assert!(!accepted(&waiting.await.unwrap()[0]).duplicate);
    assert_eq!(bed.cluster.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_leader_items_are_refused_as_not_accepted() {
    let bed = Bed::start().await;
    for node in 1..=3 {
        bed.kill(node);
    }
    let request = SubmitMessagesRequest { messages: vec![keyless(PRACTICE)], validate_only: false };
    let timeout = Duration::from_millis(2_500);
    let results = bed.client().submit_messages(within(timeout, request)).await.unwrap().into_inner().results;
    assert_eq!(fate(&refused(&results[0])), "not_accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_is_waited_for() {
    let bed = Bed::start().await;
    let (partition, node) = (partition_of(PRACTICE), leader(&bed));
    bed.cluster.tell(|state| state.leaders[partition as usize] = (0, 6));
    let mut client = bed.client();
    let mut changed = bed.cluster.changed.subscribe();
    let waiting = tokio::spawn(async move { submit(&mut client, vec![keyless(PRACTICE)]).await });
    // The router's map may still name the old leader: it asks, and is told that nobody leads.
    let asked = async {
        while bed.cluster.submits() == 0 {
            changed.changed().await.unwrap();
        }
    };
    let _either_way = tokio::time::timeout(Duration::from_millis(100), asked).await;
    bed.cluster.lead(partition, node % 3 + 1);
    assert_eq!(accepted(&waiting.await.unwrap()[0]).message_id.len(), 26);
    assert_eq!(bed.cluster.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_leader_is_not_pressed() {
    let bed = Bed::start().await;
    bed.cluster.misbehave(leader(&bed), &[Mishap::Overloaded]);
    let results = submit(&mut bed.client(), vec![spec(PRACTICE, "k")]).await;
    let status = refused(&results[0]);
    assert_eq!(told(&status), (Code::ResourceExhausted, ErrorReason::Overloaded));
    assert!(status.get_error_details().retry_info().is_some());
    assert_eq!(bed.cluster.submits(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_has_not_heard_of_the_practice_yet_is_asked_again() {
    let bed = Bed::start().await;
    bed.cluster.misbehave(leader(&bed), &[Mishap::PracticeUnknown; 2]);
    let results = submit(&mut bed.client(), vec![keyless(PRACTICE)]).await;
    assert_eq!(accepted(&results[0]).message_id.len(), 26);
    assert_eq!((bed.cluster.submits(), bed.cluster.accepted()), (3, 1));
}
