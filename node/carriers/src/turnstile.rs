//! Who is next on a lane: in the order of arrival, urgent ones before the others.
//!
//! Those that are not urgent queue for one place in front of the turnstile, so an urgent one finds at most the one that is passing. Both
//! queues are fair, and nobody is passed by twice by the same message.
use tokio::sync::{Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(crate) struct Turnstile {
    next: Mutex<()>,
    ordinary: Mutex<()>,
}

/// Held while passing.
pub(crate) struct Turn<'a> {
    _next: MutexGuard<'a, ()>,
    _ordinary: Option<MutexGuard<'a, ()>>,
}

impl Turnstile {
    pub async fn pass(&self, urgent: bool) -> Turn<'_> {
        let ordinary = if urgent { None } else { Some(self.ordinary.lock().await) };
        Turn { _next: self.next.lock().await, _ordinary: ordinary }
    }
}
