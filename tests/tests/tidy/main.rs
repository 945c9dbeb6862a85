//! Tidy: the house rules as tests. Each rule is a function over text, and has a planted violation that proves it can
//! fail.
mod edges;
mod fail_points;
mod pitfalls;
mod setup;
mod sources;
mod words;

use std::path::{Path, PathBuf};

/// A file of the repository.
pub struct File {
    /// Relative to the root, with `/`.
    pub path: String,
    pub text: String,
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}

/// All text files under the given extensions, without build output.
pub fn files(extensions: &[&str]) -> Vec<File> {
    let root = root();
    let mut found = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(dir) = open.pop() {
        for entry in fs_err::read_dir(&dir).expect("readable directory").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", "lab", "node_modules", ".deps"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if extensions.iter().any(|e| name.ends_with(e)) {
                let relative =
                    path.strip_prefix(&root).expect("under the root").to_string_lossy().replace('\\', "/");
                found.push(File {
                    path: relative,
                    text: fs_err::read_to_string(&path).expect("readable text"),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no files with {extensions:?}");
    found
}

/// Fails with every complaint at once.
pub fn report(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n  {}", complaints.join("\n  "));
}
