//! Key providers: what wraps the data keys. The file provider is for labs; a production one keeps the key outside.
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest;
use std::path::Path;
use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    #[error("cannot read the key file {path}: {reason}")]
    File { path: String, reason: String },
    #[error("the key that wrapped this data key is not available")]
    OtherKey,
    #[error("the wrapped data key does not open")]
    Refused,
    #[error("wrapping failed")]
    Failed,
}

/// Wraps and unwraps data keys of 32 bytes.
pub trait KeyProvider: Send + Sync {
    /// Names the wrapping key; stored beside each wrapped key.
    fn key_id(&self) -> &str;
    fn wrap(&self, practice_no: u32, epoch: u32, data_key: &[u8; 32]) -> Result<Vec<u8>, ProviderError>;
    fn unwrap(
        &self,
        practice_no: u32,
        epoch: u32,
        key_id: &str,
        wrapped: &[u8],
    ) -> Result<Zeroizing<[u8; 32]>, ProviderError>;
}

/// A key in a file: 32 bytes as 64 hex digits on the last line; lines that begin with `#` are comments.
pub struct FileKeyProvider {
    key: RandomizedNonceKey,
    key_id: String,
}

impl FileKeyProvider {
    pub fn open(path: &Path) -> Result<Self, ProviderError> {
        let error = |reason: &str| ProviderError::File {
            path: path.display().to_string(),
            reason: reason.to_owned(),
        };
        let text = Zeroizing::new(fs_err::read_to_string(path).map_err(|e| error(&e.to_string()))?);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with('#'));
        let line = line.ok_or_else(|| error("it is empty"))?;
        let bytes = Zeroizing::new(hex::decode(line).map_err(|_| error("it does not hold hex digits"))?);
        if bytes.len() != 32 {
            return Err(error("it must hold 64 hex digits"));
        }
        let fingerprint = digest::digest(&digest::SHA256, &bytes);
        Ok(Self {
            key: RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| ProviderError::Failed)?,
            key_id: format!("file:{}", hex::encode(&fingerprint.as_ref()[..8])),
        })
    }

    fn aad(practice_no: u32, epoch: u32) -> Aad<Vec<u8>> {
        let mut aad = b"carillon data key".to_vec();
        aad.extend_from_slice(&practice_no.to_be_bytes());
        aad.extend_from_slice(&epoch.to_be_bytes());
        Aad::from(aad)
    }
}

impl KeyProvider for FileKeyProvider {
    fn key_id(&self) -> &str {
        &self.key_id
    }

    fn wrap(&self, practice_no: u32, epoch: u32, data_key: &[u8; 32]) -> Result<Vec<u8>, ProviderError> {
        let mut buffer = data_key.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Self::aad(practice_no, epoch), &mut buffer)
            .map_err(|_| ProviderError::Failed)?;
        let mut out = nonce.as_ref().to_vec();
        out.extend_from_slice(&buffer);
        Ok(out)
    }

    fn unwrap(
        &self,
        practice_no: u32,
        epoch: u32,
        key_id: &str,
        wrapped: &[u8],
    ) -> Result<Zeroizing<[u8; 32]>, ProviderError> {
        if key_id != self.key_id {
            return Err(ProviderError::OtherKey);
        }
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN).ok_or(ProviderError::Refused)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| ProviderError::Refused)?;
        let mut buffer = Zeroizing::new(sealed.to_vec());
        let opened = self
            .key
            .open_in_place(nonce, Self::aad(practice_no, epoch), &mut buffer)
            .map_err(|_| ProviderError::Refused)?;
        let key: [u8; 32] = (&*opened).try_into().map_err(|_| ProviderError::Refused)?;
        Ok(Zeroizing::new(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(digit: &str) -> FileKeyProvider {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), format!("# lab only\n{}\n", digit.repeat(64))).unwrap();
        FileKeyProvider::open(file.path()).unwrap()
    }

    #[test]
    fn wraps_for_one_practice_and_epoch_only() {
        let (a, b) = (provider("a"), provider("b"));
        let wrapped = a.wrap(3, 1, &[9; 32]).unwrap();
        assert_eq!(*a.unwrap(3, 1, a.key_id(), &wrapped).unwrap(), [9; 32]);
        assert!(a.unwrap(4, 1, a.key_id(), &wrapped).is_err());
        assert!(a.unwrap(3, 2, a.key_id(), &wrapped).is_err());
        assert!(matches!(b.unwrap(3, 1, a.key_id(), &wrapped), Err(ProviderError::OtherKey)));
    }

    #[test]
    fn a_bad_key_file_is_refused_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "# only a comment\n", "abcd", "not hex"] {
            fs_err::write(file.path(), text).unwrap();
            let error = FileKeyProvider::open(file.path()).err().unwrap().to_string();
            assert!(error.contains(&file.path().display().to_string()), "{error}");
        }
    }
}
