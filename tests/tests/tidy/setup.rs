//! `deploy/setup.sh` where it may not install: it names everything that is missing, and how to get it there.
use crate::root;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs it with nothing in its path but `programs` and an empty program for each of `pretended`.
fn run(dir: &Path, programs: &[&str], pretended: &[&str]) -> (Option<i32>, String) {
    fs_err::create_dir_all(dir).unwrap();
    for program in programs {
        let found = find(program).unwrap_or_else(|| panic!("this machine has no {program}"));
        symlink(found, dir.join(program)).unwrap();
    }
    for program in pretended {
        symlink(find("true").expect("a program that does nothing"), dir.join(program)).unwrap();
    }
    let output = Command::new(find("bash").expect("bash"))
        .arg(root().join("deploy/setup.sh"))
        .env_clear()
        .env("PATH", dir)
        .env("LIBCLANG_PATH", "somewhere")
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_is_missing_is_named_with_its_purpose_and_the_command_of_the_system() {
    let dir = tempfile::tempdir().unwrap();
    for (manager, command) in [
        ("dnf", "as root: dnf install gcc-c++ make ccache"),
        ("pacman", "as root: pacman -S base-devel make ccache"),
        ("apk", "as root: apk add build-base make ccache"),
        ("brew", "brew install gcc make ccache"),
    ] {
        let (code, told) = run(&dir.path().join(manager), &["id", "env"], &[manager]);
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains(&format!("setup: {command}")), "{manager}: {told}");
        for purpose in ["C++ compiler", "GNU make", "ccache"] {
            assert!(told.contains(&format!("setup: missing: {purpose}")) || told.contains(purpose), "{told}");
        }
        assert!(!told.contains("libclang"), "it is there: {told}");
    }
    let (code, told) = run(&dir.path().join("none"), &["id", "env"], &[]);
    assert!(code == Some(1) && told.contains("no package manager that is known here"), "{told}");
}

#[test]
fn what_is_only_slower_without_does_not_stop_a_build() {
    let dir = tempfile::tempdir().unwrap();
    let tools = ["id", "cc", "c++", "make", "cargo", "rustc", "cut", "sort", "head"];
    let (_, told) = run(dir.path(), &tools, &["dnf"]);
    assert!(told.contains("dnf install ccache") && !told.contains("cargo is missing"), "{told}");
}
