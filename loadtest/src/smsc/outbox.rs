//! What waits to be written to one connection.
//!
//! Owns: one output buffer per connection. Everybody appends to it; one writer
//! takes all of it and writes it at once, so answers made together leave
//! together.
//! Bound: soft limit [`SOFT_MAX`]: above it the connection is not read and gets
//! no receipts, so the buffer exceeds it by one batch of answers at most.
//! Invariant: what was appended before [`Outbox::close`] is written before the
//! connection ends (if the peer takes it).

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Octets that may wait before the connection is paused.
pub const SOFT_MAX: usize = 4 << 20;
/// How long one write may take: a peer that does not read for longer is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Inner {
    buffer: BytesMut,
    closing: bool,
}

/// The output buffer of a connection.
#[derive(Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
    ready: Notify,
    drained: Notify,
    closed: CancellationToken,
}

impl Outbox {
    /// Appends without waking the writer; call [`Outbox::wake`] after the batch.
    pub fn append(&self, put: impl FnOnce(&mut BytesMut)) {
        put(&mut self.inner.lock().buffer);
    }

    pub fn wake(&self) {
        self.ready.notify_one();
    }

    pub fn has_room(&self) -> bool {
        self.inner.lock().buffer.len() < SOFT_MAX
    }

    /// Ends the connection after what is in the buffer.
    pub fn close(&self) {
        self.inner.lock().closing = true;
        self.ready.notify_one();
        self.closed.cancel();
    }

    /// Resolves when [`Outbox::close`] was called.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Waits until the buffer has room or the connection ends.
    pub async fn room(&self) {
        while !self.has_room() {
            tokio::select! {
                () = self.drained.notified() => {}
                () = self.closed.cancelled() => return,
            }
        }
    }

    /// Writes what is appended until the outbox is closed.
    pub async fn write_to(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        loop {
            let (chunk, closing) = {
                let mut inner = self.inner.lock();
                (inner.buffer.split(), inner.closing)
            };
            if chunk.is_empty() {
                if closing {
                    return io.shutdown().await;
                }
                self.ready.notified().await;
                continue;
            }
            let write = async {
                io.write_all(&chunk).await?;
                io.flush().await
            };
            tokio::time::timeout(WRITE_TIMEOUT, write).await.map_err(io::Error::other)??;
            self.drained.notify_one();
        }
    }
}
