//! From the shard to a thread that may stand still: a bounded channel, and what it has no room for in order behind it.
//!
//! The shard never waits, so this keeps what does not fit and offers it again in the next turn; the thread's completions
//! bring that turn about, the next tick at the latest. Does not bound what is kept: the shard does, by what it takes from
//! the groups while they wait (`shard.rs`). How much is kept is a metric.
use crossbeam_channel::{Sender, TrySendError};
use std::collections::VecDeque;

/// Messages in a channel.
pub(super) const HAND_OVERS_MAX: usize = 256;

pub(super) struct HandOver<T> {
    to: &'static str,
    sender: Sender<T>,
    kept: VecDeque<T>,
    gone: bool,
}

impl<T> HandOver<T> {
    pub fn new(to: &'static str, sender: Sender<T>) -> Self {
        Self { to, sender, kept: VecDeque::new(), gone: false }
    }

    /// Hands over, after everything that is kept.
    pub fn push(&mut self, message: T) {
        self.kept.push_back(message);
        self.flush();
    }

    /// Hands over what is kept, as far as there is room.
    pub fn flush(&mut self) {
        while let Some(message) = self.kept.pop_front() {
            match self.sender.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    self.kept.push_front(message);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => {
                    if !std::mem::replace(&mut self.gone, true) {
                        tracing::error!(to = self.to, "a thread is gone");
                    }
                }
            }
        }
    }

    /// Tells how much is kept.
    pub fn report(&self) {
        metrics::gauge!("carillon_engine_kept", "thread" => self.to).set(self.kept.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_channel_stops_nobody_and_keeps_the_order() {
        let (sender, receiver) = crossbeam_channel::bounded(2);
        let mut hand_over = HandOver::new("test", sender);
        (0..5).for_each(|n| hand_over.push(n));
        assert_eq!((receiver.len(), hand_over.kept.len()), (2, 3));
        assert_eq!(receiver.recv(), Ok(0));
        hand_over.push(5);
        let mut seen = vec![];
        while let Ok(n) = receiver.try_recv() {
            seen.push(n);
            hand_over.flush();
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
        drop(receiver);
        (6..9).for_each(|n| hand_over.push(n));
        assert!(hand_over.kept.is_empty(), "nothing is kept for a thread that is gone");
    }
}
