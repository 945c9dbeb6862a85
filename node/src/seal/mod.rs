//! Sealing (D11): what a patient's data looks like on disk, in logs and between replicas.
//!
//! Owns the key provider (wraps data keys), the keyring (unwrapped data keys of practices, in memory only), the
//! envelope and the keyed hashes. Plaintext goes in at ingest and comes out just before a carrier's socket or for an
//! authenticated reader; nothing else in the node sees it.
//!
//! Not here: gRPC buffers (they hold plaintext until they are freed and are not zeroized), and the carriers' sockets.
mod envelope;
mod keyring;
mod provider;

pub use envelope::{Context, Field, Nonces, PracticeKeys, SealError};
pub use keyring::{Keyring, KeyringError};
pub use provider::{FileKeyProvider, KeyProvider, ProviderError};
