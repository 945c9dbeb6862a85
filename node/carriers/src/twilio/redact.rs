//! Removes the text of a message at the carrier once its state there is final.
//!
//! Best effort, because nothing depends on it but how long the carrier holds a text: what waits is bounded, and forgotten
//! when the node stops. Every result is counted.
use super::Shared;
use super::answer::is_message_sid;
use super::send::ask;
use http::{Method, StatusCode};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::sleep;

/// Tries of one text, at most.
const TRIES_MAX: u32 = 4;

/// The message with this id shall lose its text.
pub(crate) fn ask_for(shared: &Shared, sid: String) {
    if shared.account().redact && is_message_sid(&sid) && shared.redactions.try_send(sid).is_err() {
        shared.pool.meters.redaction("no_room");
    }
}

/// Runs until the connector leaves.
pub(crate) async fn run(shared: Arc<Shared>, mut waiting: mpsc::Receiver<String>) {
    while let Some(sid) = waiting.recv().await {
        let result = redact(&shared, &sid).await;
        shared.pool.meters.redaction(result);
    }
}

async fn redact(shared: &Shared, sid: &str) -> &'static str {
    let path = format!("{}/{sid}.json", shared.account().messages_path());
    let mut pause = shared.account().tuning.redact_retry;
    for attempt in 1..=TRIES_MAX {
        let Some(terms) = shared.account().contract.get().look_up else { return "unsupported" };
        while let Err(wait) = shared.quota.take(terms.quota_per_minute) {
            sleep(wait).await;
        }
        let answer = ask(shared, Method::POST, &path, b"Body=".to_vec()).await;
        match answer.map(|answer| answer.status) {
            Some(status) if status.is_success() => return "done",
            Some(StatusCode::NOT_FOUND) => return "gone",
            _ if attempt < TRIES_MAX => {
                sleep(pause).await;
                pause *= 2;
            }
            _ => {}
        }
    }
    "failed"
}
