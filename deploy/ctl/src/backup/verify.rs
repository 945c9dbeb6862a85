//! What backups there are, and whether one of them is whole.
use super::location::Location;
use super::manifest::{BEGUN, KEYS, MANIFEST, META, Manifest, Object, file_name};
use super::{BackupError, Progress, Watcher};

/// A backup in a location.
#[derive(Debug, Clone)]
pub struct Listed {
    pub name: String,
    /// `None`: it broke off, or it is being made.
    pub manifest: Option<Manifest>,
    /// Why its manifest cannot be used.
    pub problem: Option<String>,
}

/// All backups, oldest first.
pub async fn list(from: &Location) -> Result<Vec<Listed>, BackupError> {
    let mut found = Vec::new();
    for name in from.directories().await? {
        match load(from, &name).await {
            Ok(manifest) => found.push(Listed { name, manifest: Some(manifest), problem: None }),
            Err(BackupError::NotFound(_)) => {}
            Err(BackupError::Incomplete(_)) => found.push(Listed { name, manifest: None, problem: None }),
            Err(error @ (BackupError::Damaged { .. } | BackupError::NewerFormat { .. })) => {
                found.push(Listed { name, manifest: None, problem: Some(error.to_string()) });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The name of the newest complete backup.
pub async fn newest(from: &Location) -> Result<String, BackupError> {
    let all = list(from).await?;
    let newest = all.into_iter().rfind(|listed| listed.manifest.is_some());
    newest.map(|listed| listed.name).ok_or_else(|| BackupError::NotFound("that is complete".to_owned()))
}

/// The manifest of a complete backup.
pub(super) async fn load(from: &Location, name: &str) -> Result<Manifest, BackupError> {
    if name.is_empty() || name.contains('/') {
        return Err(BackupError::NotFound(name.to_owned()));
    }
    match from.get(&format!("{name}/{MANIFEST}")).await? {
        Some(data) => Manifest::decode(name, &data),
        None if from.get(&format!("{name}/{BEGUN}")).await?.is_some() => {
            Err(BackupError::Incomplete(name.to_owned()))
        }
        None => Err(BackupError::NotFound(name.to_owned())),
    }
}

/// Reads every object and compares it with the manifest. Gives the manifest if everything is there and unchanged.
pub async fn verify(from: &Location, name: &str, watcher: Watcher<'_>) -> Result<Manifest, BackupError> {
    let manifest = load(from, name).await?;
    let mut objects: Vec<(String, &Object)> =
        vec![(META.to_owned(), &manifest.meta), (KEYS.to_owned(), &manifest.keys)];
    for part in &manifest.parts {
        if part.snapshot().is_none() {
            let what = format!("partition {} has a hash that is none", part.partition);
            return Err(BackupError::Damaged { name: name.to_owned(), what });
        }
        let files = part.files.iter().enumerate();
        objects.extend(files.map(|(number, file)| (file_name(part.partition, number), file)));
    }
    for (object, expected) in objects {
        let data = from.get(&format!("{name}/{object}")).await?;
        if let Some(what) = expected.problem(&object, data.as_deref()) {
            return Err(BackupError::Damaged { name: name.to_owned(), what });
        }
        watcher(Progress::Bytes(expected.bytes));
    }
    Ok(manifest)
}
