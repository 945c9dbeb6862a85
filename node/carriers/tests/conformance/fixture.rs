//! What the suite needs of a carrier: its side of the wire, and the connector that talks to it.
use crate::support::{Inbox, within};
use carillon_carriers::{BoxFuture, ConnectorState};
use carillon_carriers::{Connector, GateClosed, SegmentGate};
use carillon_proto::internal::ReceiptState;
use carillon_proto::public::Outcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a test may change before the connector starts.
#[derive(Clone, Copy)]
pub struct Terms {
    pub response_timeout_ms: u32,
    pub throttle_pause_ms: u32,
    /// Messages without an answer, at most.
    pub window: u32,
    pub receipt_ack_timeout: Duration,
    /// Nobody listens at the carrier's address.
    pub absent: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            response_timeout_ms: 60_000,
            throttle_pause_ms: 100,
            window: 16,
            receipt_ack_timeout: Duration::from_secs(60),
            absent: false,
        }
    }
}

/// How the carrier's answer to one receipt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It may forget the receipt.
    Taken,
    /// It shall send it again.
    Again,
    /// Not understood or not believed; sending it again changes nothing.
    Refused,
}

/// A receipt on its way to the connector.
pub type Told1 = JoinHandle<Told>;

/// What is wrong with a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    Signature,
    Oversized,
    Malformed,
}

/// One message that reached the carrier and has no answer yet.
pub struct Arrived<T> {
    pub token: T,
    pub text: String,
    /// Digits.
    pub recipient: String,
}

/// A carrier played by the test, and the connector that talks to it.
pub trait CarrierUnderTest: Sized + Send {
    /// What an answer is given for.
    type Token: Send;
    type Connector: Connector + 'static;

    /// Words that [`Self::refuse`] knows, with the outcome and the code that they must become.
    const REFUSALS: &'static [(&'static str, Outcome, &'static str)];
    /// The refusal that means "slow down".
    const THROTTLE: &'static str;
    /// What can be wrong with a receipt of this carrier.
    const WRONGS: &'static [Wrong];

    /// Starts both and waits until they are connected, unless the carrier is absent.
    fn start(terms: Terms) -> impl Future<Output = Self> + Send;
    fn connector(&self) -> Arc<Self::Connector>;
    fn inbox(&mut self) -> &mut Inbox;

    /// The next message.
    fn arrived(&mut self) -> impl Future<Output = Arrived<Self::Token>> + Send;
    /// Nothing arrives although the connector had every chance.
    fn assert_silent(&mut self) -> impl Future<Output = ()> + Send;
    /// Says yes, with id number `n`; gives the reference as the connector must know it.
    fn accept(&mut self, token: Self::Token, n: u32) -> impl Future<Output = String> + Send;
    fn refuse(&mut self, token: Self::Token, word: &str) -> impl Future<Output = ()> + Send;
    /// Breaks the connection that the message came on.
    fn hang_up(&mut self, token: Self::Token) -> impl Future<Output = ()> + Send;

    /// Sends a receipt for id number `n`.
    fn report(&mut self, n: u32, state: ReceiptState) -> impl Future<Output = Told1> + Send;
    /// Sends something that is not a proper receipt.
    fn report_wrong(&mut self, wrong: Wrong) -> impl Future<Output = Told1> + Send;
}

/// Waits for the answer to a receipt.
pub async fn told(answer: Told1) -> Told {
    within(answer).await.unwrap()
}

/// Waits for a state of the connector.
pub async fn until<C: Connector + ?Sized>(connector: &C, state: ConnectorState) {
    within(async {
        while connector.status().state != state {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Counts permissions and gives them only when the test does.
pub struct HandGate {
    pub permits: Semaphore,
    pub taken: AtomicU32,
}

impl HandGate {
    pub fn closed() -> Arc<Self> {
        Arc::new(Self { permits: Semaphore::new(0), taken: AtomicU32::new(0) })
    }
}

impl SegmentGate for HandGate {
    fn acquire(&self) -> BoxFuture<'_, Result<(), GateClosed>> {
        Box::pin(async {
            self.permits.acquire().await.map_err(|_| GateClosed)?.forget();
            self.taken.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }

    fn acquire_together(&self, segments: u32) -> BoxFuture<'_, Result<Instant, GateClosed>> {
        Box::pin(async move {
            self.permits.acquire_many(segments).await.map_err(|_| GateClosed)?.forget();
            self.taken.fetch_add(segments, Ordering::SeqCst);
            Ok(Instant::now() + Duration::from_secs(60))
        })
    }
}
