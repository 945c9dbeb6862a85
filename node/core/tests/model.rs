//! Random commands against a naive model: after every entry each message is in the state that the model says, and all
//! invariants of the tables hold (see `support`).
mod support;

#[path = "support/model.rs"]
mod model;

use carillon_core::{CommandResult, keys};
use carillon_proto::internal::MessageStatus;
use carillon_proto::public::MessageState;
use model::{Model, Op};
use proptest::prelude::*;
use prost::Message as _;
use support::*;

/// Runs the operations one per entry, or several in one, and compares.
fn check(batches: &[Vec<Op>]) {
    let (mut world, mut model) = (World::new(), Model::default());
    for batch in batches {
        // Due times depend on a hash; the model takes them over after checking the bounds.
        for op in batch {
            world.now_ms += op.pause_ms();
            if matches!(op, Op::LeaderStart) {
                world.term += 1;
            }
            let kind = model.command(op, world.term);
            let result = world.one(kind);
            let refused = model.apply(op, world.now_ms, world.term);
            assert_eq!(matches!(result, CommandResult::Refused(_)), refused, "{op:?}: {result:?}");
            compare(&world, &mut model, op);
        }
    }
    assert_eq!(model.states().count(), world.tables.rows().keys().filter(|k| k[0] == b'S').count());
}

fn compare(world: &World, model: &mut Model, op: &Op) {
    for n in 0..model::MESSAGES {
        model.take_state(n, world.state(n));
        let expected = model.state(n);
        assert_eq!(world.state(n), expected, "message {n} after {op:?}");
        if expected != MessageState::Unspecified {
            let status = world.status(n);
            model.take_due(n, status.due_ms, world.now_ms);
            assert_eq!(status.attempts_counted, model.counted(n), "message {n} after {op:?}");
        }
    }
}

/// Everything in one entry per batch gives the same messages as one entry per command.
fn check_batching(batches: &[Vec<Op>]) {
    let (mut single, mut batched) = (World::new(), World::new());
    let mut model = Model::default();
    for batch in batches {
        single.now_ms += 500;
        batched.now_ms += 500;
        let kinds: Vec<_> = batch
            .iter()
            .filter(|op| !matches!(op, Op::LeaderStart))
            .map(|op| {
                let kind = model.command(op, single.term);
                model.apply(op, single.now_ms, single.term);
                kind
            })
            .collect();
        let results: Vec<_> = kinds.iter().map(|kind| single.one(kind.clone())).collect();
        assert_eq!(batched.run(kinds).results, results);
    }
    let statuses = |world: &World| -> Vec<(Vec<u8>, MessageStatus)> {
        let rows = world.tables.rows().iter().filter(|(k, _)| keys::decode_status(k).is_some());
        rows.map(|(k, v)| (k.clone(), MessageStatus::decode(v.clone()).unwrap())).collect()
    };
    assert_eq!(statuses(&single), statuses(&batched));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_agree_with_the_model(batches in model::batches()) {
        check(&batches);
    }

    #[test]
    fn batches_are_the_same_as_single_commands(batches in model::batches()) {
        check_batching(&batches);
    }
}
