//! A replica becomes files and files become a replica: the same rows, or an error; never a part.
use bytes::Bytes;
use carillon_core::tables::{ReadTables, Tables};
use carillon_proto::internal::{AppliedRecord, SnapshotManifest};
use carillon_store::snapshot::{ExportOptions, Pace, SnapshotError, export, file_path, verify_file};
use carillon_store::{Family, StateDb, StateError, StateOptions};
use prost::Message;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tempfile::{TempDir, tempdir};

const GROUP: u32 = 7;

fn open(path: &Path) -> StateDb {
    StateDb::open(path, &StateOptions::default()).unwrap()
}

fn rows(tables: &dyn ReadTables) -> BTreeMap<Vec<u8>, Bytes> {
    let mut rows = BTreeMap::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.insert(key.to_vec(), Bytes::copy_from_slice(value));
        true
    };
    tables.scan(&[], &[0xff; 9], &mut visit).unwrap();
    rows
}

fn commit(state: &StateDb, index: u64, count: u64) {
    let replica = state.replica(GROUP).unwrap();
    let mut batch = replica.batch().unwrap();
    for row in 0..count {
        let value: Vec<u8> = (0..400u64).map(|n| (n * 31 + row * 7 + index) as u8).collect();
        batch.put(format!("M{row:08}").into_bytes(), value);
    }
    batch.delete(format!("M{:08}", index % count).into_bytes());
    let applied = AppliedRecord {
        index,
        term: 3,
        digest: Bytes::from(vec![index as u8; 16]),
        ..AppliedRecord::default()
    };
    batch.put(b"A".to_vec(), applied.encode_to_vec());
    batch.commit().unwrap();
}

fn small() -> ExportOptions {
    ExportOptions { file_bytes: 64 << 10, ..ExportOptions::new(1, 99) }
}

/// A source with 1000 rows at index 5, and its export.
fn exported(dir: &TempDir) -> (StateDb, SnapshotManifest) {
    let state = open(&dir.path().join("source"));
    for index in 1..=5 {
        commit(&state, index, 1000);
    }
    let replica = state.replica(GROUP).unwrap();
    let manifest = export(&replica, &dir.path().join("out"), &small(), &|| false).unwrap();
    (state, manifest)
}

fn family(generation: u64) -> Family {
    Family { group: GROUP, generation }
}

#[test]
fn an_export_is_one_moment_and_its_import_is_the_same_replica() {
    let dir = tempdir().unwrap();
    let (source, manifest) = exported(&dir);
    let moment = rows(&*source.replica(GROUP).unwrap());
    assert_eq!((manifest.group, manifest.index, manifest.term), (GROUP, 5, 3));
    assert_eq!((manifest.node_id, manifest.snapshot_id, manifest.rows), (1, 99, moment.len() as u64));
    assert!(manifest.files.len() > 4, "{} files", manifest.files.len());
    assert_eq!(manifest.bytes, manifest.files.iter().map(|f| f.bytes).sum::<u64>());
    commit(&source, 6, 1000);

    let target = open(&dir.path().join("target"));
    commit(&target, 1, 10);
    target.set_live(family(1)).unwrap();
    let generation = target.next_generation(GROUP);
    assert_eq!(generation, 2);
    target.import(family(generation), &manifest, &dir.path().join("out")).unwrap();
    assert_eq!(target.replica(GROUP).unwrap().applied().unwrap().unwrap().index, 1, "not live yet");
    target.set_live(family(2)).unwrap();
    let replica = target.replica(GROUP).unwrap();
    assert_eq!(rows(&*replica), moment);
    assert_eq!(target.durable_applied(GROUP).unwrap().unwrap().index, 5, "no flush is needed");
    // It goes on like any other.
    commit(&target, 6, 1000);
    assert_eq!(rows(&*replica), rows(&*source.replica(GROUP).unwrap()));
    target.flush(GROUP).unwrap();
    drop((replica, target));

    let target = open(&dir.path().join("target"));
    assert!(matches!(target.replica(GROUP), Err(StateError::Ambiguous { .. })), "until the log decides");
    let dropped = target.keep_only(&BTreeMap::from([(GROUP, 2)])).unwrap();
    assert_eq!(dropped, [family(1)]);
    assert_eq!(target.replica(GROUP).unwrap().applied().unwrap().unwrap().index, 6);
    assert_eq!(target.next_generation(GROUP), 3);
}

#[test]
fn an_export_appears_whole_or_not_at_all() {
    let dir = tempdir().unwrap();
    let state = open(&dir.path().join("source"));
    let out = dir.path().join("out");
    let replica = state.replica(GROUP).unwrap();
    assert!(matches!(export(&replica, &out, &small(), &|| false), Err(SnapshotError::Empty(GROUP))));
    assert!(!out.exists() && !out.with_extension("making").exists());
    commit(&state, 1, 3000);
    assert!(matches!(export(&replica, &out, &small(), &|| true), Err(SnapshotError::Stopped)));
    assert!(!out.exists() && !out.with_extension("making").exists());
    // Leftovers of one that was interrupted.
    std::fs::create_dir_all(out.with_extension("making")).unwrap();
    std::fs::write(file_path(&out.with_extension("making"), 0), b"half").unwrap();
    let manifest = export(&replica, &out, &small(), &|| false).unwrap();
    let count = std::fs::read_dir(&out).unwrap().count();
    assert_eq!(count, manifest.files.len());
    for (number, file) in (0..).zip(&manifest.files) {
        verify_file(&file_path(&out, number), number, file).unwrap();
    }
}

#[test]
fn every_flipped_cut_or_missing_file_is_refused_and_leaves_nothing() {
    let dir = tempdir().unwrap();
    let (_source, manifest) = exported(&dir);
    let out = dir.path().join("out");
    let target = open(&dir.path().join("target"));
    commit(&target, 1, 10);
    target.set_live(family(1)).unwrap();
    let refused = |what: &str| {
        let error = target.import(family(2), &manifest, &out).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { .. } | SnapshotError::Io(_)), "{what}: {error}");
        assert_eq!(target.families(), [family(1)], "{what}");
    };
    for number in 0..manifest.files.len() as u32 {
        let path = file_path(&out, number);
        let whole = std::fs::read(&path).unwrap();
        for at in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            refused(&format!("file {number} byte {at}"));
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        refused("cut");
        std::fs::remove_file(&path).unwrap();
        refused("missing");
        std::fs::write(&path, &whole).unwrap();
    }
    target.import(family(2), &manifest, &out).unwrap();
}

#[test]
fn a_manifest_that_does_not_describe_the_content_is_refused() {
    let dir = tempdir().unwrap();
    let (_source, manifest) = exported(&dir);
    let target = open(&dir.path().join("target"));
    let wrong = [
        SnapshotManifest { index: 6, ..manifest.clone() },
        SnapshotManifest { term: 4, ..manifest.clone() },
        SnapshotManifest { digest: Bytes::from_static(b"other"), ..manifest.clone() },
        SnapshotManifest { group: 8, ..manifest.clone() },
        SnapshotManifest { files: Vec::new(), ..manifest.clone() },
    ];
    for manifest in wrong {
        // The files are moved by an import, so each one gets its own.
        let copy = tempdir().unwrap();
        for number in 0..manifest.files.len() as u32 {
            std::fs::copy(file_path(&dir.path().join("out"), number), file_path(copy.path(), number))
                .unwrap();
        }
        let error = target.import(family(2), &manifest, copy.path()).unwrap_err();
        assert!(matches!(error, SnapshotError::Mismatch { group: GROUP, .. }), "{error}");
        assert_eq!(target.families(), []);
    }
}

/// What is on disk after each step of an install, and which generation the log names by then.
#[test]
fn a_crash_at_any_step_of_an_install_leaves_the_old_or_the_new_replica() {
    let dir = tempdir().unwrap();
    let (source, manifest) = exported(&dir);
    let new_rows = rows(&*source.replica(GROUP).unwrap());
    let target = open(&dir.path().join("target"));
    commit(&target, 1, 10);
    target.flush(GROUP).unwrap();
    target.set_live(family(1)).unwrap();
    let old_rows = rows(&*target.replica(GROUP).unwrap());

    let crash = |name: &str| target.checkpoint(&dir.path().join(name)).unwrap();
    crash("before");
    target.replica_at(family(2)).unwrap();
    crash("created");
    target.import(family(2), &manifest, &dir.path().join("out")).unwrap();
    crash("imported");
    target.set_live(family(2)).unwrap();
    crash("switched");
    target.destroy_generation(family(1)).unwrap();
    crash("dropped");

    for (name, generation, expected) in [
        ("before", 1, &old_rows),
        ("created", 1, &old_rows),
        ("imported", 1, &old_rows),
        ("imported", 2, &new_rows),
        ("switched", 2, &new_rows),
        ("dropped", 2, &new_rows),
    ] {
        let again = dir.path().join(format!("{name}-{generation}"));
        copy_dir(&dir.path().join(name), &again);
        let state = open(&again);
        state.keep_only(&BTreeMap::from([(GROUP, generation)])).unwrap();
        assert_eq!(&rows(&*state.replica(GROUP).unwrap()), expected, "{name} {generation}");
        assert_eq!(state.families(), [family(generation)]);
    }
    // The log never names a family that is not there; if it did, that must not pass for an empty one.
    let state = open(&dir.path().join("before"));
    let missing = state.keep_only(&BTreeMap::from([(GROUP, 2)]));
    assert!(matches!(missing, Err(StateError::NoReplica(f)) if f == family(2)));
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn groups_that_left_are_dropped_at_start() {
    let dir = tempdir().unwrap();
    let state = open(dir.path());
    commit(&state, 1, 10);
    state.replica(8).unwrap();
    let dropped = state.keep_only(&BTreeMap::from([(8, 1)])).unwrap();
    assert_eq!(dropped, [family(1)]);
    assert_eq!(state.families(), [Family { group: 8, generation: 1 }]);
    assert_eq!(state.replica(GROUP).unwrap().applied().unwrap(), None, "it starts empty");
}

#[test]
fn a_pace_asks_for_the_time_that_its_bytes_take() {
    let mut pace = Pace::new(1000);
    assert_eq!(pace.spend(500, Duration::ZERO), Duration::from_millis(500));
    assert_eq!(pace.spend(1500, Duration::from_millis(700)), Duration::from_millis(1300));
    assert_eq!(pace.spend(1000, Duration::from_secs(9)), Duration::ZERO, "late already");
    assert_eq!(Pace::new(0).spend(u64::MAX / 2, Duration::ZERO), Duration::ZERO);
}
