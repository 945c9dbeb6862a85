//! Plays a day: submits its messages when their time has come, and takes back what is to be taken back.
//!
//! Owns: the pace. Bounds: [`BATCH_MAX`] messages in a batch, [`BATCHES_WAITING_MAX`] batches and
//! [`CANCELS_WAITING_MAX`] cancels waiting; a slow cluster holds up the day, and nothing is left out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use carillon_proto::public::CancelMessagesRequest;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::book::{Book, Origin};
use crate::bulk::{Answered, Batch, BulkConfig, BulkError, BulkStats, submit_all};
use crate::client::Client;
use crate::sample_day::{Day, DayMessage, Line};

pub const BATCH_MAX: usize = 200;
pub const BATCHES_WAITING_MAX: usize = 16;
pub const CANCELS_WAITING_MAX: usize = 1_000;
/// Lines of this much time share a batch.
const TICK_MS: u64 = 100;
/// A cancel waits this long for the id of its message.
const ID_PATIENCE: Duration = Duration::from_secs(60);

/// A day that could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    #[error(transparent)]
    Bulk(#[from] BulkError),
    #[error("a part of the player ended early")]
    Ended,
}

/// What a run is about, shared by its parts.
pub struct Stage {
    pub client: Client,
    pub book: Mutex<Book>,
    /// Something was answered.
    pub answered: Notify,
    /// Keeps the keys of this run apart.
    pub run: String,
    pub start: Instant,
    pub start_ms: i64,
}

enum Cancel {
    Keys(Vec<String>),
    References { practice: String, references: Vec<String> },
}

type Origins = Mutex<HashMap<u64, Vec<Origin>>>;

/// Plays the whole day; returns when everything is answered.
pub async fn play(stage: Arc<Stage>, day: &Day, config: BulkConfig) -> Result<BulkStats, PlayError> {
    let (batches, batches_out) = mpsc::channel(BATCHES_WAITING_MAX);
    let (answers_in, answers) = mpsc::channel(BATCHES_WAITING_MAX);
    let (cancels, cancels_out) = mpsc::channel(CANCELS_WAITING_MAX);
    let origins: Origins = Mutex::default();
    let bulk = submit_all(stage.client.clone(), config, batches_out, answers_in);
    let (stats, sent, (), ()) = tokio::join!(
        bulk,
        pace(&stage, day, &origins, batches, cancels),
        take_down(&stage, &origins, answers),
        cancel_all(&stage, cancels_out),
    );
    let stats = stats?;
    sent?;
    stage.book.lock().close();
    Ok(stats)
}

struct Pacer<'a> {
    origins: &'a Origins,
    batches: mpsc::Sender<Batch>,
    next_tag: u64,
    batch: Vec<(carillon_proto::public::MessageSpec, Origin)>,
}

impl Pacer<'_> {
    async fn flush(&mut self) -> Result<(), PlayError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let (messages, origins) = std::mem::take(&mut self.batch).into_iter().unzip();
        let tag = self.next_tag;
        self.next_tag += 1;
        self.origins.lock().insert(tag, origins);
        self.batches.send(Batch { tag, messages }).await.map_err(|_| PlayError::Ended)
    }
}

async fn pace(
    stage: &Stage,
    day: &Day,
    origins: &Origins,
    batches: mpsc::Sender<Batch>,
    cancels: mpsc::Sender<Cancel>,
) -> Result<(), PlayError> {
    let by_key: HashMap<&str, &DayMessage> = day.messages().map(|m| (m.key.as_str(), m)).collect();
    let mut pacer = Pacer { origins, batches, next_tag: 0, batch: Vec::new() };
    let mut tick = 0;
    for line in &day.lines {
        if line.at_ms() / TICK_MS != tick || pacer.batch.len() >= BATCH_MAX {
            pacer.flush().await?;
            tick = line.at_ms() / TICK_MS;
            // The whole tick leaves at its end, so nothing is early.
            tokio::time::sleep_until(stage.start + Duration::from_millis((tick + 1) * TICK_MS)).await;
        }
        let spec = |message: &DayMessage| message.to_spec(stage.start_ms, &stage.run);
        let cancel = match line {
            Line::Message(message) => {
                pacer.batch.push((spec(message), Origin::Message(message.clone())));
                continue;
            }
            Line::Again(again) => {
                let message = by_key.get(again.again.as_str()).ok_or(PlayError::Ended)?;
                pacer.batch.push((spec(message), Origin::Again(again.again.clone())));
                continue;
            }
            Line::CancelKeys(cancel) => Cancel::Keys(cancel.cancel_keys.clone()),
            Line::CancelReferences(cancel) => Cancel::References {
                practice: cancel.practice.clone(),
                references: cancel.cancel_references.iter().map(|r| format!("{}-{r}", stage.run)).collect(),
            },
        };
        cancels.send(cancel).await.map_err(|_| PlayError::Ended)?;
    }
    pacer.flush().await
}

async fn take_down(stage: &Stage, origins: &Origins, mut answers: mpsc::Receiver<Answered>) {
    while let Some(answered) = answers.recv().await {
        let origins = origins.lock().remove(&answered.batch.tag).unwrap_or_default();
        let mut book = stage.book.lock();
        for (origin, result) in origins.iter().zip(&answered.results) {
            book.answer(origin, result, stage.start_ms);
        }
        drop(book);
        stage.answered.notify_waiters();
    }
}

async fn cancel_all(stage: &Stage, mut cancels: mpsc::Receiver<Cancel>) {
    while let Some(cancel) = cancels.recv().await {
        let request = match cancel {
            Cancel::Keys(keys) => {
                let mut message_ids = Vec::with_capacity(keys.len());
                for key in keys {
                    match id_of(stage, &key).await {
                        Some(id) => message_ids.push(id),
                        None => stage.book.lock().surprise("a message to cancel has no id".to_owned()),
                    }
                }
                CancelMessagesRequest { message_ids, ..Default::default() }
            }
            Cancel::References { practice, references } => {
                CancelMessagesRequest { practice, external_references: references, ..Default::default() }
            }
        };
        if request.message_ids.is_empty() && request.external_references.is_empty() {
            continue;
        }
        let answer = stage.client.cancel(request).await;
        let mut book = stage.book.lock();
        match answer {
            Ok(results) => results.iter().for_each(|result| book.cancel_answer(result)),
            Err(error) => book.surprise(format!("cancel failed: {error}")),
        }
    }
}

/// The id of a message; waits for its answer.
async fn id_of(stage: &Stage, key: &str) -> Option<String> {
    let wait = async {
        loop {
            let answered = stage.answered.notified();
            tokio::pin!(answered);
            // Listening before looking: an answer in between is not missed.
            answered.as_mut().enable();
            if let Some(id) = stage.book.lock().id_of(key) {
                return id;
            }
            answered.await;
        }
    };
    tokio::time::timeout(ID_PATIENCE, wait).await.ok()
}
