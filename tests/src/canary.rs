//! Looks for marks in files, in every form in which plaintext may lie there by accident.
//!
//! Owns: [`Canary`]. Forms of each mark: as it is (any case), hexadecimal, base64 in its three alignments (both
//! alphabets), UTF-16 in both byte orders, and the list of decimal bytes that `{:?}` of a byte slice prints; of a
//! number also the usual ways to write it. Does not: decompress. A mark is random enough for LZ4 to keep its first
//! occurrence in a block as it is.

use aho_corasick::AhoCorasick;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use std::path::{Path, PathBuf};

/// Files larger than this are read as a whole all the same; the bound is here to notice a runaway log.
const FILE_BYTES_MAX: u64 = 4 << 30;

/// A mark that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    pub path: PathBuf,
    pub offset: usize,
    /// The mark and its form.
    pub what: String,
    /// What surrounds it.
    pub excerpt: String,
}

/// What a search covered.
#[derive(Debug, Default)]
pub struct Search {
    pub files: usize,
    pub bytes: u64,
    /// The first find in each file.
    pub finds: Vec<Find>,
}

/// Searches for a set of marks.
pub struct Canary {
    finder: AhoCorasick,
    names: Vec<String>,
}

/// The characters of base64 that depend on the mark alone, when `before` bytes of a group of three come before it.
fn base64_core(mark: &[u8], before: usize, engine: &impl base64::Engine) -> Vec<u8> {
    let mut bytes = vec![0; before];
    bytes.extend_from_slice(mark);
    let text = engine.encode(&bytes).into_bytes();
    let from = (before * 8).div_ceil(6);
    let to = (before + mark.len()) * 8 / 6;
    text[from..to].to_vec()
}

/// Every form of a mark.
pub fn forms(mark: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = mark.as_bytes();
    let mut forms = vec![
        ("plain".to_owned(), bytes.to_vec()),
        ("hex".to_owned(), hex::encode(bytes).into_bytes()),
        ("utf-16le".to_owned(), mark.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("utf-16be".to_owned(), mark.encode_utf16().flat_map(u16::to_be_bytes).collect()),
        (
            "decimal bytes".to_owned(),
            bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ").into_bytes(),
        ),
    ];
    for before in 0..3 {
        forms.push((format!("base64+{before}"), base64_core(bytes, before, &STANDARD_NO_PAD)));
        forms.push((format!("base64url+{before}"), base64_core(bytes, before, &URL_SAFE_NO_PAD)));
    }
    if mark.len() == 10 && mark.bytes().all(|b| b.is_ascii_digit()) {
        let (area, exchange, line) = (&mark[..3], &mark[3..6], &mark[6..]);
        for text in [
            format!("({area}) {exchange}-{line}"),
            format!("{area}-{exchange}-{line}"),
            format!("{area}.{exchange}.{line}"),
            format!("{area} {exchange} {line}"),
        ] {
            forms.push(("written number".to_owned(), text.into_bytes()));
        }
    }
    forms
}

impl Canary {
    pub fn new(marks: &[String]) -> Self {
        let (mut names, mut patterns) = (Vec::new(), Vec::new());
        for mark in marks {
            assert!(mark.len() >= 8 && mark.is_ascii(), "a mark of {} bytes is found by chance", mark.len());
            for (form, bytes) in forms(mark) {
                names.push(format!("{mark} as {form}"));
                patterns.push(bytes);
            }
        }
        let finder = AhoCorasick::builder().ascii_case_insensitive(true).build(&patterns);
        Self { finder: finder.expect("a few hundred patterns"), names }
    }

    /// The first mark in `bytes`.
    pub fn in_bytes(&self, path: &Path, bytes: &[u8]) -> Option<Find> {
        let found = self.finder.find(bytes)?;
        let (from, to) = (found.start().saturating_sub(120), (found.end() + 60).min(bytes.len()));
        Some(Find {
            path: path.to_owned(),
            offset: found.start(),
            what: self.names[found.pattern().as_usize()].clone(),
            excerpt: String::from_utf8_lossy(&bytes[from..to]).into_owned(),
        })
    }

    /// Every file below `dir`.
    pub fn in_tree(&self, dir: &Path) -> Search {
        let mut search = Search::default();
        let mut open = vec![dir.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs_err::read_dir(&dir).expect("a readable directory") {
                let entry = entry.expect("a readable entry");
                let kind = entry.file_type().expect("a type");
                if kind.is_dir() {
                    open.push(entry.path());
                } else if kind.is_file() {
                    let length = entry.metadata().expect("a length").len();
                    assert!(length <= FILE_BYTES_MAX, "{} has {length} bytes", entry.path().display());
                    let bytes = fs_err::read(entry.path()).expect("a readable file");
                    search.files += 1;
                    search.bytes += bytes.len() as u64;
                    search.finds.extend(self.in_bytes(&entry.path(), &bytes));
                }
            }
        }
        search
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;

    #[test]
    fn every_form_is_found_in_a_planted_file_and_an_innocent_one_is_not() {
        let marks = ["zqBodyVx7Lk".to_owned(), "2125550142".to_owned()];
        let canary = Canary::new(&marks);
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("innocent"), "Body, 212 and 5550142 lie here apart").unwrap();
        assert_eq!(canary.in_tree(dir.path()).finds, []);
        for (at, (form, bytes)) in marks.iter().flat_map(|mark| forms(mark)).enumerate() {
            let below = dir.path().join("a/b");
            fs_err::create_dir_all(&below).unwrap();
            let planted = below.join(format!("{at}"));
            fs_err::write(&planted, [b"\0\xff{\"x\":\"".as_slice(), &bytes, b"\"}"].concat()).unwrap();
            let search = canary.in_tree(dir.path());
            assert_eq!(search.finds.len(), 1, "{form}");
            assert_eq!(search.finds[0].path, planted);
            fs_err::remove_file(planted).unwrap();
        }
    }

    #[test]
    fn base64_is_found_wherever_the_mark_lies_in_the_text() {
        let canary = Canary::new(&["zqBodyVx7Lk".to_owned()]);
        for before in 0..7 {
            let text = format!("{}zqBodyVx7Lk and more", "-".repeat(before));
            for coded in
                [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text), hex::encode_upper(&text)]
            {
                assert!(canary.in_bytes(Path::new("x"), coded.as_bytes()).is_some(), "{before}: {coded}");
            }
        }
    }
}
