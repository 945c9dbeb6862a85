//! The keyring: unwrapped keys of practices, in memory, filled from the wrapped ones in the meta group.
//!
//! Bounded by the number of practices and epochs. A key provider that fails does not stop practices whose keys are here.
use super::{KeyProvider, PracticeKeys, SealError};
use crate::engine::NodeHandle;
use crate::meta::{MetaClient, MetaError};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use carillon_core::meta::MetaView;
use carillon_proto::internal::{DataKeyRecord, MetaCommand, PutDataKey, meta_command::Kind};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::Arc;
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("the practice has no data key of this epoch")]
    Missing,
    #[error(transparent)]
    Provider(#[from] super::ProviderError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the data key could not be registered: {0}")]
    Meta(#[from] MetaError),
    #[error("no randomness")]
    Random,
}

pub struct Keyring {
    provider: Arc<dyn KeyProvider>,
    handle: NodeHandle,
    meta: MetaClient,
    keys: RwLock<HashMap<(u32, u32), Arc<PracticeKeys>>>,
}

impl Keyring {
    pub fn new(provider: Arc<dyn KeyProvider>, handle: NodeHandle, meta: MetaClient) -> Self {
        Self { provider, handle, meta, keys: RwLock::new(HashMap::new()) }
    }

    /// Whether this node's key provider opens wrapped keys that come from elsewhere.
    pub fn can_open(&self, records: &[DataKeyRecord]) -> Result<(), KeyringError> {
        for key in records {
            self.provider.unwrap(key.practice_no, key.epoch, &key.provider_key_id, &key.wrapped_key)?;
        }
        Ok(())
    }

    /// Names the key that wraps.
    pub fn provider_key_id(&self) -> &str {
        self.provider.key_id()
    }

    /// Keys of an epoch, to open what was sealed with it.
    pub fn of_epoch(&self, practice_no: u32, epoch: u32) -> Result<Arc<PracticeKeys>, KeyringError> {
        if let Some(keys) = self.keys.read().get(&(practice_no, epoch)) {
            return Ok(Arc::clone(keys));
        }
        self.load(&self.handle.meta(), practice_no, epoch)
    }

    fn load(&self, view: &MetaView, practice_no: u32, epoch: u32) -> Result<Arc<PracticeKeys>, KeyringError> {
        let record = view.data_key(practice_no, epoch).ok_or(KeyringError::Missing)?;
        let data_key =
            self.provider.unwrap(practice_no, epoch, &record.provider_key_id, &record.wrapped_key)?;
        let keys = Arc::new(PracticeKeys::new(epoch, &data_key)?);
        self.keys.write().insert((practice_no, epoch), Arc::clone(&keys));
        Ok(keys)
    }

    /// The newest keys of a practice, to seal with. Makes and registers a first data key when there is none.
    pub async fn newest(&self, practice_no: u32) -> Result<Arc<PracticeKeys>, KeyringError> {
        let view = self.handle.meta();
        if let Some(record) = view.newest_data_key(practice_no) {
            return self.of_epoch(practice_no, record.epoch);
        }
        let mut data_key = Zeroizing::new([0_u8; 32]);
        SystemRandom::new().fill(data_key.as_mut()).map_err(|_| KeyringError::Random)?;
        let wrapped = self.provider.wrap(practice_no, 1, &data_key)?;
        let command = MetaCommand {
            kind: Some(Kind::PutDataKey(PutDataKey {
                practice_no,
                epoch: 1,
                wrapped_key: wrapped.into(),
                provider_key_id: self.provider.key_id().to_owned(),
            })),
        };
        // A refusal means that another node was first: the stored one counts, ours is forgotten.
        self.meta.propose(vec![command]).await?;
        self.load(&self.handle.meta(), practice_no, 1)
    }
}
