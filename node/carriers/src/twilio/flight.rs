//! Whether the body of a request left: the proof behind `NOT_SENT` and `AMBIGUOUS`.
//!
//! hyper asks the body for its octets when it writes the request. Until then nothing of the message is outside; a carrier
//! cannot act on a request whose body never came. From then on it may have everything.
//!
//! Invariant: a flight ends up in exactly one of two states, `TAKEN` or `GROUNDED`, and both sides learn the same one: a
//! grounded body gives no octets, whoever asks, and none are given at or after `send_by`.
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use tokio::sync::Notify;
use tokio::time::Instant;
use zeroize::Zeroizing;

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const GROUNDED: u8 = 2;

/// The body must not leave any more.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the body was taken back")]
pub(crate) struct Grounded;

#[derive(Default)]
struct State {
    phase: AtomicU8,
    taken: Notify,
}

/// What the sender knows of a body. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Flight(Arc<State>);

impl Flight {
    /// Takes the body back. False: it left, or may have.
    pub fn ground(&self) -> bool {
        self.decide(GROUNDED)
    }

    pub fn is_taken(&self) -> bool {
        self.0.phase.load(Ordering::Acquire) == TAKEN
    }

    /// Waits until the body was taken.
    pub async fn taken(&self) {
        let woken = self.0.taken.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if !self.is_taken() {
            woken.await;
        }
    }

    /// The first decision counts. True: it is this one.
    fn decide(&self, phase: u8) -> bool {
        match self.0.phase.compare_exchange(WAITING, phase, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(decided) => decided == phase,
        }
    }

    fn take(&self) -> bool {
        let took = self.0.phase.compare_exchange(WAITING, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if took {
            self.0.taken.notify_waiters();
        }
        took
    }
}

/// The body of a request, wiped on drop. hyper copies it into its own buffer, which is not.
pub(crate) struct Payload {
    octets: Option<Bytes>,
    length: u64,
    send_by: Option<Instant>,
    flight: Flight,
}

impl Payload {
    /// A body that may leave before `send_by`.
    pub fn until(octets: Zeroizing<Vec<u8>>, send_by: Instant) -> (Self, Flight) {
        let flight = Flight::default();
        (Self::new(octets, Some(send_by), flight.clone()), flight)
    }

    /// A body that does not matter so much.
    pub fn of(octets: Vec<u8>) -> Self {
        Self::new(Zeroizing::new(octets), None, Flight::default())
    }

    fn new(octets: Zeroizing<Vec<u8>>, send_by: Option<Instant>, flight: Flight) -> Self {
        let length = octets.len() as u64;
        Self { octets: (length > 0).then(|| Bytes::from_owner(octets)), length, send_by, flight }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Grounded;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Grounded>>> {
        let Some(octets) = self.octets.take() else { return Poll::Ready(None) };
        if self.send_by.is_some_and(|send_by| Instant::now() >= send_by) {
            self.flight.ground();
        }
        let frame = if self.flight.take() { Ok(Frame::data(octets)) } else { Err(Grounded) };
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.octets.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.octets.is_some() { self.length } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use std::time::Duration;

    fn payload(send_by: Instant) -> (Payload, Flight) {
        Payload::until(Zeroizing::new(b"To=1".to_vec()), send_by)
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_body_that_was_taken_cannot_be_grounded() {
        let (body, flight) = payload(later());
        assert!(!flight.is_taken());
        let waiting = tokio::spawn({
            let flight = flight.clone();
            async move { flight.taken().await }
        });
        assert_eq!(body.collect().await.unwrap().to_bytes(), "To=1");
        waiting.await.unwrap();
        assert!(flight.is_taken() && !flight.ground());
        flight.taken().await;
    }

    #[tokio::test]
    async fn a_grounded_body_gives_nothing() {
        let (body, flight) = payload(later());
        assert!(flight.ground() && flight.ground() && !flight.is_taken());
        assert!(body.collect().await.is_err());
        assert!(!flight.is_taken());
    }

    #[tokio::test]
    async fn nothing_leaves_at_or_after_send_by() {
        let (body, flight) = payload(Instant::now());
        assert!(body.collect().await.is_err());
        assert!(flight.ground());
    }

    /// Many races of both sides: they never disagree.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn both_sides_always_learn_the_same() {
        for _ in 0..2_000 {
            let (body, flight) = payload(later());
            let taking = tokio::spawn(async move { body.collect().await.is_ok() });
            let grounded = flight.ground();
            assert_ne!(taking.await.unwrap(), grounded);
        }
    }
}
