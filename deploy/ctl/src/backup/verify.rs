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

#[cfg(test)]
mod tests {
    use super::super::manifest::FORMAT;
    use super::super::manifest::tests::manifest;
    use super::*;
    use bytes::Bytes;

    async fn write(to: &Location, name: &str) {
        let put = async |object: &str, data: &'static [u8]| {
            to.put(&format!("{name}/{object}"), Bytes::from_static(data)).await.unwrap();
        };
        put(BEGUN, b"{}").await;
        put(META, b"meta").await;
        put(KEYS, b"keys").await;
        for partition in 1..=2 {
            put(&file_name(partition, 0), b"rows").await;
            put(&file_name(partition, 1), b"more").await;
        }
        to.put(&format!("{name}/{MANIFEST}"), manifest().encode()).await.unwrap();
    }

    /// In a directory; with `CARILLON_TEST_S3` (s3://bucket/prefix and the AWS_* variables) in that store as well.
    async fn locations() -> (tempfile::TempDir, Vec<Location>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b").display().to_string();
        let mut all = vec![Location::open(&path).unwrap()];
        match std::env::var("CARILLON_TEST_S3") {
            Ok(text) => all.push(Location::open(&format!("{text}/{:016x}", rand::random::<u64>())).unwrap()),
            Err(_) => println!("SKIPPED for s3: CARILLON_TEST_S3 names no store"),
        }
        (dir, all)
    }

    #[tokio::test]
    async fn what_is_complete_is_listed_and_verified_and_every_other_thing_is_named() {
        let (_dir, all) = locations().await;
        for at in all {
            assert!(list(&at).await.unwrap().is_empty());
            assert!(matches!(newest(&at).await, Err(BackupError::NotFound(_))));
            write(&at, "1").await;
            at.put(&format!("2/{BEGUN}"), Bytes::from_static(b"{}")).await.unwrap();
            at.put("3/else", Bytes::from_static(b"{}")).await.unwrap();
            at.put(&format!("4/{MANIFEST}"), Bytes::from_static(b"{\"format\": 99}")).await.unwrap();
            let listed = list(&at).await.unwrap();
            let names: Vec<_> = listed.iter().map(|l| (l.name.as_str(), l.manifest.is_some())).collect();
            assert_eq!(names, [("1", true), ("2", false), ("4", false)]);
            assert!(listed[2].problem.as_ref().is_some_and(|p| p.contains(&format!("knows {FORMAT}"))));
            assert_eq!(newest(&at).await.unwrap(), "1");
            let seen = std::sync::atomic::AtomicU64::new(0);
            let count = |progress: Progress| {
                if let Progress::Bytes(bytes) = progress {
                    seen.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                }
            };
            assert_eq!(verify(&at, "1", &count).await.unwrap(), manifest());
            assert_eq!(seen.into_inner(), manifest().bytes());
            for (name, wanted) in [("2", "not complete"), ("3", "no backup 3"), ("1/..", "no backup")] {
                let told = verify(&at, name, &|_| {}).await.unwrap_err().to_string();
                assert!(told.contains(wanted), "{told}");
            }
            at.put(&format!("1/{}", file_name(2, 1)), Bytes::from_static(b"moro")).await.unwrap();
            let told = verify(&at, "1", &|_| {}).await.unwrap_err().to_string();
            assert!(told.contains("the hash of partition-00002/000001.sst differs"), "{told}");
        }
    }

    #[test]
    fn only_directories_and_buckets_are_locations() {
        for text in ["", "s3://", "gs://bucket/x", "http://host/x"] {
            assert!(matches!(Location::open(text), Err(BackupError::Location(_))), "{text:?}");
        }
    }
}
