//! Where backups are: a local directory, or a bucket of an S3-compatible store.
//!
//! Credentials and endpoint of a store come from the environment, with the names that other tools use: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT`, and `AWS_ALLOW_HTTP=true` for one without TLS. A role instead of a key has
//! variables of its own ([`CREDENTIALS`]); one of them must be set, because looking for a role where there is none takes minutes.
use super::BackupError;
use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::sync::Arc;

/// One of them says where credentials come from.
const CREDENTIALS: [&str; 6] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_METADATA_ENDPOINT",
    "AWS_SKIP_SIGNATURE",
];

/// Cheap to clone.
#[derive(Clone)]
pub struct Location {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl Location {
    /// Where backups are already: a directory that exists, or `s3://bucket/prefix`. Makes nothing.
    pub fn existing(text: &str) -> Result<Self, BackupError> {
        if !text.contains("://") && !text.is_empty() && !std::path::Path::new(text).is_dir() {
            return Err(BackupError::NoDirectory(text.to_owned()));
        }
        Self::open(text)
    }

    /// A directory, which is made if it does not exist, or `s3://bucket/prefix`.
    pub fn open(text: &str) -> Result<Self, BackupError> {
        if let Some(rest) = text.strip_prefix("s3://") {
            // The one provider of cryptography of this program, for the client of the store too.
            carillon_proto::tls::install_provider();
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(BackupError::Location(text.to_owned()));
            }
            if !CREDENTIALS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
                return Err(BackupError::NoCredentials(text.to_owned()));
            }
            let store = AmazonS3Builder::from_env().with_bucket_name(bucket).build()?;
            return Ok(Self { store: Arc::new(store), prefix: Path::from(prefix) });
        }
        if text.is_empty() || text.contains("://") {
            return Err(BackupError::Location(text.to_owned()));
        }
        let unusable =
            |e: std::io::Error| BackupError::Unreadable { name: text.to_owned(), reason: e.to_string() };
        fs_err::create_dir_all(text).map_err(unusable)?;
        let store = LocalFileSystem::new_with_prefix(text)?.with_fsync(true);
        Ok(Self { store: Arc::new(store), prefix: Path::default() })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// It is there as a whole or not at all.
    pub(super) async fn put(&self, name: &str, data: Bytes) -> Result<(), BackupError> {
        self.store.put(&self.path(name), data.into()).await?;
        Ok(())
    }

    /// `None`: there is no such object.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, BackupError> {
        match self.store.get(&self.path(name)).await {
            Ok(found) => Ok(Some(found.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directories directly below, in order.
    pub(super) async fn directories(&self) -> Result<Vec<String>, BackupError> {
        let prefix = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let found = self.store.list_with_delimiter(prefix).await?;
        let names = found.common_prefixes.iter().filter_map(|p| p.filename().map(ToOwned::to_owned));
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }
}
