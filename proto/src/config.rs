//! Configuration files of every process: one TOML file each, unknown keys are errors. The keys are the process's own.
use serde::de::DeserializeOwned;
use std::path::Path;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {reason}")]
    Read { path: String, reason: String },
    #[error("{path}: {reason}")]
    Parse { path: String, reason: String },
    #[error("{key}: {reason}")]
    Invalid { key: String, reason: &'static str },
}

/// Reads a file. The caller checks what the types cannot.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError::Read { path: name.clone(), reason: e.to_string() })?;
    toml::from_str(&text).map_err(|e| ConfigError::Parse { path: name, reason: e.to_string() })
}

/// The first rule that does not hold: (holds, key, what it must be).
pub fn first_broken(rules: &[(bool, &'static str, &'static str)]) -> Result<(), ConfigError> {
    match rules.iter().find(|(holds, _, _)| !holds) {
        Some((_, key, reason)) => Err(ConfigError::Invalid { key: (*key).to_owned(), reason }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::TlsFiles;

    #[test]
    fn a_missing_file_an_unknown_key_and_a_missing_one_are_told_with_the_path() {
        let path = std::env::temp_dir().join(format!("carillon-config-{}.toml", std::process::id()));
        let error = |text: Option<&str>| {
            let _missing = std::fs::remove_file(&path);
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            read::<TlsFiles>(&path).map_err(|e| e.to_string())
        };
        let name = path.display().to_string();
        assert!(error(None).unwrap_err().starts_with(&format!("cannot read {name}")));
        for (text, word) in [("cert = 'c'\nkey = 'k'\nca = 'a'\nx = 1", "x"), ("cert = 'c'\nkey = 'k'", "ca")]
        {
            let error = error(Some(text)).unwrap_err();
            assert!(error.starts_with(&name) && error.contains(&format!("`{word}`")), "{error}");
        }
        assert_eq!(error(Some("cert = 'c'\nkey = 'k'\nca = 'a'")).unwrap().ca, Path::new("a"));
        std::fs::remove_file(&path).unwrap();
    }
}
