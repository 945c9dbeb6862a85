//! One connection: read, decode, hand over as a batch, write.
//!
//! Owns: the reading task of a connection and its writing task. All whole PDUs
//! of one read are decoded without the lock, handled under one lock, and
//! their answers leave in one write.
//! Invariant: a connection that ends, however it ends, leaves the center.
//! Bounds: 64 KiB are read at a time; a connection whose output is not taken
//! is not read (see `outbox`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf};
use tokio::net::TcpStream;

use super::Server;
use super::center::Flow;
use super::outbox::Outbox;
use super::wire::{self, Cut};

const READ_OCTETS: usize = 64 << 10;
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a closing connection may take to write its last octets.
const LINGER: Duration = Duration::from_secs(2);

/// Serves one accepted socket until it ends.
pub async fn serve(server: Arc<Server>, socket: TcpStream, id: u32) {
    // Without this, small answers would wait for the peer's acknowledgement.
    let _ = socket.set_nodelay(true);
    let ended = match server.tls.clone() {
        None => run(&server, socket, id).await,
        Some(acceptor) => match tokio::time::timeout(TLS_TIMEOUT, acceptor.accept(socket)).await {
            Ok(Ok(stream)) => run(&server, stream, id).await,
            Ok(Err(error)) => Err(error),
            Err(elapsed) => Err(io::Error::other(elapsed)),
        },
    };
    if let Err(error) = ended {
        tracing::debug!(bind = id, kind = ?error.kind(), "connection ended with an error");
    }
}

async fn run<S>(server: &Arc<Server>, stream: S, id: u32) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let outbox = Arc::new(Outbox::default());
    server.center.lock().connect(id, outbox.clone(), server.now_us());
    if server.stop.is_cancelled() {
        // It came while the others were told goodbye.
        outbox.close();
    }
    let writing = tokio::spawn({
        let outbox = outbox.clone();
        async move {
            let ended = outbox.write_to(&mut writer).await;
            outbox.close();
            ended
        }
    });
    let ended = read(server, &mut reader, &outbox, id).await;
    outbox.close();
    {
        let mut center = server.center.lock();
        center.disconnect(id, server.now_us());
        center.wake_writers();
    }
    let mut writing = writing;
    if tokio::time::timeout(LINGER, &mut writing).await.is_err() {
        writing.abort();
    }
    ended
}

async fn read<S: AsyncRead>(
    server: &Server,
    reader: &mut ReadHalf<S>,
    outbox: &Outbox,
    id: u32,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(READ_OCTETS);
    let mut frames = Vec::new();
    loop {
        buffer.reserve(READ_OCTETS);
        tokio::select! {
            biased;
            () = outbox.closed() => return Ok(()),
            read = reader.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(());
                }
            }
        }
        // The arrival time of everything this read brought.
        let now_us = server.now_us();
        let lost = loop {
            match wire::cut(&mut buffer) {
                Cut::More => break None,
                Cut::Frame(frame) => frames.push(wire::parse(frame)),
                Cut::Lost(sequence) => break Some(sequence),
            }
        };
        let flow = handle(server, id, &mut frames, lost, now_us);
        if flow == Flow::Close {
            return Ok(());
        }
        outbox.room().await;
    }
}

fn handle(server: &Server, id: u32, frames: &mut Vec<wire::Frame>, lost: Option<u32>, now_us: u64) -> Flow {
    let mut center = server.center.lock();
    let mut flow = Flow::Continue;
    for frame in frames.drain(..) {
        flow = center.handle(id, frame, now_us);
        if flow == Flow::Close {
            break;
        }
    }
    if let (Some(sequence), Flow::Continue) = (lost, flow) {
        center.lost_framing(id, sequence);
        flow = Flow::Close;
    }
    center.wake_writers();
    if center.wake_sooner {
        server.tick_sooner.notify_one();
    }
    flow
}
