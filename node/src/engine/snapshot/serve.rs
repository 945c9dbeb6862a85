//! Streams the files of an offered snapshot to another node.
use super::{Hub, STREAMS_MAX};
use crate::engine::shard::{ShardMessage, SnapshotMessage};
use crate::failpoints;
use carillon_proto::internal::{FetchSnapshotRequest, ReportSnapshotRequest, SnapshotChunk};
use carillon_store::snapshot::file_path;
use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait for the network.
const CHUNKS_AHEAD: usize = 4;
/// How often a stream says that its receiver is alive.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

pub type ChunkStream = ReceiverStream<Result<SnapshotChunk, Status>>;

impl Hub {
    /// One file from an offset on.
    pub fn serve(self: &Arc<Self>, request: FetchSnapshotRequest) -> Result<ChunkStream, Status> {
        let Some(path) = self.touch(&request) else {
            return Err(Status::not_found("this snapshot is not offered (any more)"));
        };
        let slot = self.stream_slots.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{STREAMS_MAX} snapshot streams are open already; try again"))
        })?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let hub = Arc::clone(self);
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = hub.stream(&request, path, &sender).await {
                tracing::warn!(group = request.group, %error, "snapshot stream broke");
                drop(sender.send(Err(Status::data_loss("the file cannot be read"))).await);
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    /// What a follower says of a snapshot.
    pub fn reported(&self, report: &ReportSnapshotRequest) {
        let (replica, installed) = (report.replica_id, report.installed);
        let message = SnapshotMessage::Reported { replica, installed };
        drop(self.inbox.try_send(ShardMessage::Snapshot { group: report.group, message }));
    }

    /// The export is in use. `None`: there is no such file.
    fn touch(&self, request: &FetchSnapshotRequest) -> Option<PathBuf> {
        let mut exports = self.exports.lock();
        let export = exports.get_mut(&(request.group, request.snapshot_id))?;
        export.last_used = Instant::now();
        (export.manifest.files.len() as u64 > u64::from(request.file))
            .then(|| file_path(&export.dir, request.file))
    }

    async fn stream(
        &self,
        request: &FetchSnapshotRequest,
        path: PathBuf,
        sender: &mpsc::Sender<Result<SnapshotChunk, Status>>,
    ) -> std::io::Result<()> {
        let mut file = tokio::fs::File::open(path).await?;
        file.seek(SeekFrom::Start(request.offset)).await?;
        let mut told: Option<Instant> = None;
        loop {
            let mut data = vec![0; CHUNK_BYTES];
            let read = file.read(&mut data).await?;
            data.truncate(read);
            if read == 0 {
                return Ok(());
            }
            if told.is_some() && failpoints::fails("snapshot::stream_error") {
                return Err(std::io::Error::other("fail point snapshot::stream_error"));
            }
            self.outgoing.take(read).await;
            if sender.send(Ok(SnapshotChunk { data: data.into() })).await.is_err() {
                return Ok(());
            }
            metrics::counter!("carillon_snapshot_sent_bytes_total").increment(read as u64);
            if told.is_none_or(|at| at.elapsed() > PROGRESS_EVERY) {
                told = Some(Instant::now());
                self.touch(request);
                let message = SnapshotMessage::Progress { replica: request.replica_id };
                drop(self.inbox.try_send(ShardMessage::Snapshot { group: request.group, message }));
            }
        }
    }
}
