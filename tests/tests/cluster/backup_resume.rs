//! A backup that broke off, finished with `--resume`; and looking for backups where there are none.
use crate::backup::{LIMIT_TIME, ctl, done, files, lab_of, refused, refused_verify};
use carillon_tests::rig::{Rig, program, until};
use carillon_tests::steps::say;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;
use tokio::process::Command;

/// The complete partitions of a backup, and when their files were written.
fn complete_parts(backup: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let written = |path: &PathBuf| std::fs::metadata(path).unwrap().modified().unwrap();
    let all = files(backup);
    let parts = all.iter().filter(|path| path.ends_with("part.json")).filter_map(|path| path.parent());
    let parts: BTreeSet<&Path> = parts.collect();
    let of_parts = all.iter().filter(|path| path.parent().is_some_and(|dir| parts.contains(dir)));
    let newest = of_parts.map(|path| (path.parent().unwrap().to_owned(), written(path)));
    let mut found = BTreeMap::new();
    for (dir, at) in newest {
        let known = found.entry(dir).or_insert(at);
        *known = at.max(*known);
    }
    found
}

/// Starts a backup and kills it with SIGKILL as soon as a partition is complete. Gives its name.
async fn broken_off(lab: &str, to: &str) -> String {
    for _ in 0..10 {
        drop(std::fs::remove_dir_all(to));
        let mut command = Command::new(program("carillonctl"));
        command.args(["backup", "create", "--lab", lab, "--to", to]).kill_on_drop(true);
        let mut running = command.stdout(Stdio::null()).spawn().expect("carillonctl runs");
        let is_there =
            |end: &str| Path::new(to).is_dir() && files(Path::new(to)).iter().any(|path| path.ends_with(end));
        until("a partition is complete", LIMIT_TIME, async || match is_there("part.json") {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        })
        .await;
        running.kill().await.unwrap();
        if !is_there("manifest.json") {
            let mut names = std::fs::read_dir(to).unwrap().map(|entry| entry.unwrap().file_name());
            return names.next().expect("it was begun").to_string_lossy().into_owned();
        }
    }
    panic!("backups are always complete before they are killed");
}

/// A backup is killed in its middle. `--resume` finishes it: what was complete is not copied again, the rest is, and the whole of
/// it is good.
pub async fn resumed(rig: &Rig) {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let (lab, store) = (lab_of(rig), scratch.path().join("resumed"));
    let to = store.display().to_string();
    let name = broken_off(&lab, &to).await;
    let done_before = complete_parts(&store.join(&name));
    say(&format!("killed when {} partitions were complete", done_before.len()));
    let (code, listed, _) = ctl(&["backup", "list", "--from", &to, "--max-age-h", "1"]).await;
    assert_eq!((code, &listed["backups"][0]["state"]), (3, &Value::from("incomplete")));
    let text = refused_verify(&to, &name).await;
    assert!(text.contains(&format!("--resume {name}")), "it says how to go on: {text}");
    let create = ["backup", "create", "--lab", &lab, "--to", &to, "--resume", &name];
    assert_eq!(done(&create).await["backup"], name.as_str());
    let done_after = complete_parts(&store.join(&name));
    assert!(done_before.iter().all(|(part, when)| done_after.get(part) == Some(when)), "copied again");
    assert_eq!(done_after.len() as u32, rig.lab.plan().partitions);
    done(&["backup", "verify", "--from", &to, "--backup", &name]).await;
    refused(&create, "is complete already").await;
    // A name that nothing was begun under, and a place where nothing is.
    refused(&["backup", "create", "--lab", &lab, "--to", &to, "--resume", "none"], "there is no backup none")
        .await;
    let typo = scratch.path().join("typo");
    for command in ["list", "verify"] {
        refused(&["backup", command, "--from", &typo.display().to_string()], "there is no directory").await;
    }
    assert!(!typo.exists(), "looking for backups makes no directory");
}
