//! Random histories of several groups, with reopenings, against a model in memory.
mod log_suite;

use carillon_consensus::{GroupWrite, LogError, LogStore};
use log_suite::{Candidate, Engine, Rocks, append, entries, entry, hard_state};
use proptest::prelude::*;
use raft::eraftpb::Entry;
use std::collections::BTreeMap;
use tempfile::tempdir;

#[derive(Debug, Clone)]
enum Step {
    /// Starts `back` entries before the end.
    Append {
        group: u32,
        back: u64,
        count: u64,
        size: usize,
        sync: bool,
    },
    Vote {
        group: u32,
        term: u64,
    },
    Truncate {
        group: u32,
        keep: u64,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0u32..3;
    prop_oneof![
        6 => (group.clone(), 0u64..4, 1u64..6, 0usize..3000, any::<bool>())
            .prop_map(|(group, back, count, size, sync)| Step::Append { group, back, count, size, sync }),
        1 => (group.clone(), 1u64..9).prop_map(|(group, term)| Step::Vote { group, term }),
        1 => (group, 0u64..6).prop_map(|(group, keep)| Step::Truncate { group, keep }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Default)]
struct Model {
    truncated: u64,
    vote: Option<u64>,
    entries: BTreeMap<u64, Entry>,
    exists: bool,
}

impl Model {
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.truncated)
    }
}

fn check(log: &impl LogStore, group: u32, model: &Model) -> Result<(), LogError> {
    let state = log.load(group)?;
    assert_eq!(state.is_some(), model.exists);
    let Some(state) = state else { return Ok(()) };
    assert_eq!((state.truncated_index, state.last_index), (model.truncated, model.last()));
    assert_eq!(state.hard_state.vote, model.vote.unwrap_or(0));
    let stored = log.entries(group, model.truncated + 1, model.last() + 1, u64::MAX)?;
    assert!(stored.iter().eq(model.entries.values()));
    Ok(())
}

fn run<C: Candidate>(steps: Vec<Step>) {
    let dir = tempdir().unwrap();
    let mut log = Some(C::open(dir.path()).unwrap());
    let mut models: BTreeMap<u32, Model> = (0..3).map(|group| (group, Model::default())).collect();
    for (number, step) in steps.into_iter().enumerate() {
        let term = number as u64 + 10;
        let open = log.as_ref().expect("open");
        match step {
            Step::Append { group, back, count, size, sync } => {
                let model = models.get_mut(&group).unwrap();
                let first = model.last().saturating_sub(back).max(model.truncated) + 1;
                let new = entries(group, first..=first + count - 1, term, size);
                open.write(&[append(group, new.clone())], sync).unwrap();
                model.entries.split_off(&first);
                model.entries.extend(new.into_iter().map(|entry| (entry.index, entry)));
                model.exists = true;
            }
            Step::Vote { group, term: vote } => {
                let write = GroupWrite {
                    group,
                    hard_state: Some(hard_state(term, vote, 0)),
                    ..GroupWrite::default()
                };
                open.write(&[write], true).unwrap();
                let model = models.get_mut(&group).unwrap();
                (model.vote, model.exists) = (Some(vote), true);
            }
            Step::Truncate { group, keep } => {
                let model = models.get_mut(&group).unwrap();
                let index = model.last().saturating_sub(keep);
                if index > model.truncated {
                    open.truncate(group, index, model.entries[&index].term).unwrap();
                    model.entries = model.entries.split_off(&(index + 1));
                    model.truncated = index;
                }
            }
            Step::Reopen => {
                drop(log.take());
                log = Some(C::open(dir.path()).unwrap());
            }
        }
        for (group, model) in &models {
            check(log.as_ref().expect("open"), *group, model).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn engine_behaves_like_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        run::<Engine>(steps);
    }

    #[test]
    fn rocks_behaves_like_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        run::<Rocks>(steps);
    }
}

/// The model itself is worth something: it notices a wrong entry.
#[test]
#[should_panic(expected = "stored.iter().eq")]
fn the_model_notices_a_wrong_entry() {
    let dir = tempdir().unwrap();
    let log = Engine::open(dir.path()).unwrap();
    log.write(&[append(1, vec![entry(1, 1, 1, 8)])], true).unwrap();
    let other = entry(1, 1, 2, 8);
    let model = Model { exists: true, entries: BTreeMap::from([(1, other)]), ..Model::default() };
    check(&log, 1, &model).unwrap();
}
