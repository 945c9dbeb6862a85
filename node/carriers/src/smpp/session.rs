//! One bound session: a single task that owns the socket, the numbers and the clocks of its PDUs.
//!
//! Invariants
//!  - Every submission gets exactly one [`PartAnswer`], and `NotWritten` only if none of its octets was handed to the
//!    socket ([`Outbox`] keeps that proof).
//!  - An answer is overdue only if the socket was seen empty after its time: our own slowness, or a pause in reading,
//!    never makes an outcome ambiguous.
//!  - Nothing in the loop waits for anything but the socket, the queues and the clock, all at once; PDUs that gathered
//!    meanwhile leave in one write.
//!
//! Not here: connecting and binding (bind.rs), what an answer means for a message (send.rs).
use super::Shared;
use super::inbound::{Acked, Receipts};
use super::inflight::InFlight;
use super::outbox::{Outbox, SLICES_MAX};
use super::pdu::{self, Wire};
use super::pool::Seat;
use bytes::BytesMut;
use carillon_proto::MessageId;
use rusmpp::CommandId;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::io::poll_read_buf;

mod clock;
mod frames;

/// Sequence numbers have 31 bits.
const SEQUENCE_MAX: u32 = 0x7fff_ffff;
/// Room made for each read.
const READ_OCTETS: usize = 16 * 1024;

/// A socket, plain or encrypted.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One part of a message, on its way to the socket.
pub(crate) struct Submission {
    pub wire: Wire,
    pub send_by: Instant,
    pub tag: Tag,
    pub seat: Arc<Seat>,
    pub reply: oneshot::Sender<PartAnswer>,
}

/// Which part of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub message_id: MessageId,
    pub attempt_no: u32,
    pub part: u32,
    pub parts: u32,
}

/// Nothing of it left, because its time was over before its turn came.
pub(crate) const SEND_BY_PASSED: &str = "send_by_passed";

/// What became of one part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PartAnswer {
    /// Proven: no octet left. With a stable word.
    NotWritten(&'static str),
    Answered {
        status: u32,
        nack: bool,
        carrier_ref: Option<String>,
    },
    TimedOut,
    /// Written, at least in part, and the connection ended without an answer.
    Lost,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// We said goodbye.
    Unbound,
    PeerUnbound,
    PeerClosed,
    /// The carrier says that this session is not bound.
    NotBound,
    ReadFailed,
    WriteFailed,
    WriteStalled,
    EnquireTimeout,
    BadLength,
}

impl SessionEnd {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::PeerUnbound => "peer_unbound",
            Self::PeerClosed => "peer_closed",
            Self::NotBound => "not_bound",
            Self::ReadFailed => "read_failed",
            Self::WriteFailed => "write_failed",
            Self::WriteStalled => "write_stalled",
            Self::EnquireTimeout => "enquire_timeout",
            Self::BadLength => "bad_length",
        }
    }
}

/// The session is about to end.
struct Closing {
    end: SessionEnd,
    by: Instant,
    /// Also ends as soon as nothing is left to wait for.
    early: bool,
}

/// What comes to a session from inside.
struct Queues {
    submissions: mpsc::Receiver<Submission>,
    acked: mpsc::Receiver<Acked>,
}

pub(crate) struct Session {
    shared: Arc<Shared>,
    slot: usize,
    generation: u64,
    io: Box<dyn Io>,
    /// A failed write may have taken its octets: an encrypting stream buffers before it writes.
    encrypted: bool,
    inbuf: BytesMut,
    outbox: Outbox,
    flush_due: bool,
    in_flight: InFlight,
    receipts: Receipts,
    sequence: u32,
    closing: Option<Closing>,
    heard_at: Instant,
    /// The socket was last seen empty.
    drained_at: Instant,
    /// The outbox last made progress or was empty.
    moved_at: Instant,
    /// An enquire_link without answer, sent at this time.
    enquired_at: Option<Instant>,
}

impl Session {
    /// Serves a bound socket until it ends. `inbuf` holds what came after the answer to the bind; `sequence` is the
    /// last number used.
    pub async fn run(
        shared: Arc<Shared>,
        slot: usize,
        io: Box<dyn Io>,
        inbuf: BytesMut,
        sequence: u32,
    ) -> SessionEnd {
        let account = &shared.pool.account;
        // One place for each seat: handing over a submission never fails for lack of room.
        let (submit, submissions) = mpsc::channel(account.window);
        let (receipts, acked) = Receipts::new(account.tuning.receipts_unacked_max);
        let mut queues = Queues { submissions, acked };
        let generation = shared.pool.session_up(slot, submit);
        let now = Instant::now();
        let mut session = Self {
            slot,
            generation,
            io,
            encrypted: shared.tls.is_some(),
            inbuf,
            outbox: Outbox::new(),
            flush_due: false,
            in_flight: InFlight::default(),
            receipts,
            sequence,
            closing: None,
            heard_at: now,
            drained_at: now,
            moved_at: now,
            enquired_at: None,
            shared,
        };
        let end = session.serve(&mut queues).await;
        session.finish(queues);
        end
    }

    async fn serve(&mut self, queues: &mut Queues) -> SessionEnd {
        let mut view = self.shared.pool.watch();
        let sleep = sleep_until(Instant::now());
        tokio::pin!(sleep);
        loop {
            let now = Instant::now();
            while let Ok(submission) = queues.submissions.try_recv() {
                self.accept(submission, now);
            }
            while let Ok(acked) = queues.acked.try_recv() {
                self.acknowledge(acked);
            }
            if let Err(end) = self.read_frames(now) {
                return end;
            }
            let phase = view.borrow_and_update().phase;
            if let Some(end) = self.look_at_the_clock(now, phase) {
                return end;
            }
            let wake = self.next_wake();
            // A timer that rings early costs one idle turn; setting it in each turn would cost more.
            if wake < sleep.deadline() || sleep.is_elapsed() {
                sleep.as_mut().reset(wake);
            }
            tokio::select! {
                biased;
                io = poll_fn(|cx| self.poll_io(cx)) => {
                    if let Err(end) = io {
                        return end;
                    }
                }
                // `now` is from before the wait.
                Some(submission) = queues.submissions.recv() => self.accept(submission, Instant::now()),
                Some(acked) = queues.acked.recv() => self.acknowledge(acked),
                _ = view.changed() => {}
                () = &mut sleep => {}
            }
        }
    }

    /// Nobody is left without an answer.
    fn finish(&mut self, mut queues: Queues) {
        self.shared.pool.session_down(self.slot, self.generation);
        self.salvage();
        for sequence in self.outbox.withdraw_all() {
            self.not_written(sequence, "connection_lost");
        }
        for waiting in self.in_flight.drain() {
            waiting.reply(PartAnswer::Lost);
        }
        queues.submissions.close();
        while let Ok(submission) = queues.submissions.try_recv() {
            let _ = submission.reply.send(PartAnswer::NotWritten("connection_lost"));
        }
    }

    /// Reads what had arrived before the connection broke: each answer in it is one ambiguous outcome less.
    fn salvage(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(1..)) = poll_read_buf(Pin::new(&mut *self.io), &mut cx, &mut self.inbuf) {}
        while let Ok(Some(frame)) = pdu::next_frame(&mut self.inbuf) {
            if matches!(frame.header.command, CommandId::SubmitSmResp | CommandId::GenericNack) {
                self.handle(frame, Instant::now());
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence % SEQUENCE_MAX + 1;
        self.sequence
    }

    /// Takes a submission: from here on it has a number and a place in the order.
    fn accept(&mut self, submission: Submission, now: Instant) {
        let refusal = if self.closing.is_some() {
            "connection_lost"
        } else if submission.send_by <= now {
            SEND_BY_PASSED
        } else if submission.reply.is_closed() {
            // Whoever wanted this gave up, and will not hear the answer.
            "given_up"
        } else {
            let sequence = self.next_sequence();
            let deadline = now + self.shared.pool.account.response_timeout;
            let (mut wire, send_by) = self.in_flight.insert(sequence, submission, now, deadline);
            wire.set_sequence(sequence);
            self.touch_outbox(now);
            self.outbox.push_submit(wire, sequence, send_by);
            return;
        };
        let _ = submission.reply.send(PartAnswer::NotWritten(refusal));
    }

    fn acknowledge(&mut self, acked: Acked) {
        if let Some((sequence, status)) = self.receipts.acked(&self.shared, acked) {
            self.write(pdu::deliver_sm_resp(sequence, status));
        }
    }

    fn write(&mut self, wire: Wire) {
        self.touch_outbox(Instant::now());
        self.outbox.push(wire);
    }

    /// The stall clock of an empty outbox starts with its first PDU.
    fn touch_outbox(&mut self, now: Instant) {
        if self.outbox.is_empty() {
            self.moved_at = now;
        }
    }

    fn not_written(&mut self, sequence: u32, code: &'static str) {
        if let Some(waiting) = self.in_flight.remove(sequence) {
            waiting.reply(PartAnswer::NotWritten(code));
        }
    }

    fn may_read(&self) -> bool {
        !self.receipts.is_full() && !self.outbox.is_full()
    }

    /// Writes what can be written, then reads once. Ready when something moved.
    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SessionEnd>> {
        let mut moved = false;
        if !self.outbox.is_empty() {
            // Right before the socket: the process may have been stopped since the last look at the clock.
            for sequence in self.outbox.withdraw_due(Instant::now()) {
                self.not_written(sequence, SEND_BY_PASSED);
            }
        }
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.outbox.slices(&mut slices);
            match Pin::new(&mut *self.io).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(octets)) if octets > 0 => {
                    let submits = self.outbox.advance(octets);
                    self.shared.pool.meters.pdus_written.increment(submits);
                    self.moved_at = Instant::now();
                    self.flush_due = true;
                    moved = true;
                }
                Poll::Ready(_) => {
                    if self.encrypted {
                        self.outbox.suspect();
                    }
                    return Poll::Ready(Err(SessionEnd::WriteFailed));
                }
                Poll::Pending => break,
            }
        }
        if self.flush_due && self.outbox.is_empty() {
            match Pin::new(&mut *self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.flush_due = false;
                    // Listed with the others in failpoints.rs of carillon-node.
                    if !self.in_flight.is_empty() {
                        fail::fail_point!("send::after_last_byte", |_| std::process::abort());
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(SessionEnd::WriteFailed)),
                Poll::Pending => {}
            }
        }
        if self.may_read() {
            self.inbuf.reserve(READ_OCTETS);
            match poll_read_buf(Pin::new(&mut *self.io), cx, &mut self.inbuf) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.ended(SessionEnd::PeerClosed))),
                Poll::Ready(Ok(_)) => {
                    self.heard_at = Instant::now();
                    moved = true;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(self.ended(SessionEnd::ReadFailed))),
                Poll::Pending => self.drained_at = Instant::now(),
            }
        }
        if moved { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// When we are leaving anyway, the reason is the one that we left for.
    fn ended(&self, otherwise: SessionEnd) -> SessionEnd {
        self.closing.as_ref().map_or(otherwise, |closing| closing.end)
    }

    /// Takes no more submits; ends when nothing is left to wait for, or after the goodbye timeout.
    fn close(&mut self, end: SessionEnd, now: Instant, early: bool) {
        self.shared.pool.session_down(self.slot, self.generation);
        let by = now + self.shared.pool.account.tuning.goodbye_timeout;
        self.closing.get_or_insert(Closing { end, by, early });
    }
}
