//! A thin client of the public API: TLS, a deadline on every call, retries that are safe.
//!
//! Owns: [`Client`]. It repeats a call only after UNAVAILABLE or RESOURCE_EXHAUSTED, after the delay that RetryInfo
//! names (else a doubling one), and never beyond [`ClientConfig::patience`]. A handshake that failed on a certificate is
//! UNAVAILABLE too and is not repeated: it fails again until somebody has changed a certificate.
//! Does not: stream (see `bulk` and `watch`), or keep anything.

use std::time::Duration;

use carillon_proto::errors;
use carillon_proto::google::rpc::Status as RpcStatus;
use carillon_proto::public::messages_client::MessagesClient;
use carillon_proto::public::{
    CancelMessagesRequest, CancelResult, ListMessagesRequest, Message, MessageState, MessageView,
    SubmitMessagesRequest, SubmitMessagesResponse,
};
use carillon_proto::tls::{self, TlsError, TlsFiles};
use carillon_proto::transport::Cause;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

/// Octets of one answer at most: a page of 1,000 messages in the FULL view fits.
const ANSWER_OCTETS_MAX: usize = 16 << 20;
/// Messages that [`Client::list`] collects at most.
pub const LIST_MAX: usize = 4_000_000;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
const SETTLE_POLL: Duration = Duration::from_secs(1);

/// A call that failed for good.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{call}: {}", why(status))]
    Call { call: &'static str, status: Box<Status> },
    #[error("a list is longer than {LIST_MAX} messages")]
    TooLong,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig {
    /// Of one call.
    pub deadline: Duration,
    /// Of a call with all of its repetitions.
    pub patience: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), patience: Duration::from_secs(60) }
    }
}

/// A connection to a router; cheap to clone.
#[derive(Clone)]
pub struct Client {
    messages: MessagesClient<Channel>,
    channel: Channel,
    config: ClientConfig,
}

/// True when repeating the call may help and is safe.
pub fn is_retryable(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::ResourceExhausted)
}

/// The same for a call as a whole, whose status still knows how the connection failed.
pub fn may_pass(status: &Status) -> bool {
    is_retryable(status.code()) && !Cause::of(status).is_some_and(|cause| cause.is_permanent())
}

/// What failed on the way and what to do about it, or what the server said.
pub fn why(status: &Status) -> String {
    match Cause::of(status) {
        Some(cause) => format!("{cause}; {}", cause.remedy()),
        None => format!("{} {}", status.code(), status.message()),
    }
}

/// The delay that an error asks for.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// The stable reason of an item's error, or the name of its code.
pub fn reason_of_item(error: &RpcStatus) -> String {
    let status = errors::from_rpc(error);
    match errors::reason_of(&status) {
        Some(reason) => errors::word(reason).to_owned(),
        None => format!("{:?}", status.code()),
    }
}

/// A delay that doubles.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(BACKOFF_MIN)
    }
}

impl Backoff {
    /// The next delay: what was asked for, else twice the last one.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let delay = asked.unwrap_or(self.0).min(BACKOFF_MAX.max(asked.unwrap_or_default()));
        self.0 = (self.0 * 2).min(BACKOFF_MAX);
        delay
    }

    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

impl Client {
    /// Connects when first used.
    pub fn connect(address: &str, files: &TlsFiles, config: ClientConfig) -> Result<Self, ClientError> {
        let channel = tls::channel(address, tls::client_config(files)?, None)?;
        Ok(Self::of_channel(channel, config))
    }

    pub fn of_channel(channel: Channel, config: ClientConfig) -> Self {
        let messages = MessagesClient::new(channel.clone())
            .max_decoding_message_size(ANSWER_OCTETS_MAX)
            .max_encoding_message_size(ANSWER_OCTETS_MAX);
        Self { messages, channel, config }
    }

    pub fn messages(&self) -> MessagesClient<Channel> {
        self.messages.clone()
    }

    /// For calls with a codec of one's own.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    async fn repeat<Q, A, F>(&self, call: &'static str, request: Q, send: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: AsyncFn(MessagesClient<Channel>, Request<Q>) -> Result<tonic::Response<A>, Status>,
    {
        let until = Instant::now() + self.config.patience;
        let mut backoff = Backoff::default();
        loop {
            let mut attempt = Request::new(request.clone());
            attempt.set_timeout(self.config.deadline);
            let status = match send(self.messages.clone(), attempt).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            let at = Instant::now() + backoff.next(retry_delay(&status));
            if !may_pass(&status) || at >= until {
                return Err(ClientError::Call { call, status: Box::new(status) });
            }
            tokio::time::sleep_until(at).await;
        }
    }

    /// One call of SubmitMessages. Give every message an idempotency key: the call may be repeated.
    pub async fn submit(
        &self,
        request: SubmitMessagesRequest,
    ) -> Result<SubmitMessagesResponse, ClientError> {
        let send = async |mut c: MessagesClient<Channel>, q| c.submit_messages(q).await;
        self.repeat("submit", request, send).await
    }

    pub async fn cancel(&self, request: CancelMessagesRequest) -> Result<Vec<CancelResult>, ClientError> {
        let send = async |mut c: MessagesClient<Channel>, q| c.cancel_messages(q).await;
        Ok(self.repeat("cancel", request, send).await?.results)
    }

    /// One page of ListMessages: the messages and the token of the next page.
    async fn page(&self, request: ListMessagesRequest) -> Result<(Vec<Message>, String), ClientError> {
        let send = async |mut c: MessagesClient<Channel>, q| c.list_messages(q).await;
        let page = self.repeat("list", request, send).await?;
        Ok((page.messages, page.next_page_token))
    }

    /// Every message of the tenant accepted at or after `since_ms`, in one of `states` (all when empty), each given
    /// to `take` with its plaintext left out (BASIC view).
    pub async fn list(
        &self,
        since_ms: i64,
        states: &[MessageState],
        mut take: impl FnMut(Message),
    ) -> Result<usize, ClientError> {
        let mut request = ListMessagesRequest {
            states: states.iter().map(|state| *state as i32).collect(),
            accepted_after: Some(crate::sample_day::timestamp(since_ms)),
            page_size: 1_000,
            view: MessageView::Basic as i32,
            ..Default::default()
        };
        let mut count = 0;
        loop {
            let (messages, next) = self.page(request.clone()).await?;
            count += messages.len();
            if count > LIST_MAX {
                return Err(ClientError::TooLong);
            }
            messages.into_iter().for_each(&mut take);
            if next.is_empty() {
                return Ok(count);
            }
            request.page_token = next;
        }
    }
}

impl Client {
    /// Waits until no message accepted since then is in one of `states`; false when `until` comes first.
    pub async fn until_none(
        &self,
        since_ms: i64,
        states: &[MessageState],
        until: Instant,
    ) -> Result<bool, ClientError> {
        loop {
            match self.list(since_ms, states, drop).await {
                Ok(0) => return Ok(true),
                // Still moving, or the cluster is busy electing: look again.
                Ok(_) | Err(_) if Instant::now() < until => tokio::time::sleep(SETTLE_POLL).await,
                Ok(_) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::public::ErrorReason;

    #[test]
    fn the_delay_is_what_was_asked_for_or_doubles_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let overloaded = errors::status(ErrorReason::Overloaded, "");
        assert_eq!(backoff.next(retry_delay(&overloaded)), Duration::from_millis(200));
        let full = errors::status(ErrorReason::StorageFull, "");
        assert_eq!(backoff.next(retry_delay(&full)), Duration::from_secs(5));
        assert_eq!(backoff.next(None), Duration::from_millis(200));
        let delays: Vec<_> = (0..8).map(|_| backoff.next(None)).collect();
        assert_eq!(delays.last(), Some(&BACKOFF_MAX));
        backoff.reset();
        assert_eq!(backoff.next(None), BACKOFF_MIN);
    }

    #[test]
    fn an_item_error_is_named_by_its_reason() {
        let status = errors::status(ErrorReason::PracticeNotFound, "");
        assert_eq!(reason_of_item(&errors::to_rpc(&status)), "PRACTICE_NOT_FOUND");
        let plain = RpcStatus { code: Code::Aborted as i32, ..Default::default() };
        assert_eq!(reason_of_item(&plain), "Aborted");
    }
}
