//! Plaintext of a patient in memory.
//!
//! Invariants: no `Display`, no `Clone`, no serialization; `Debug` prints `[sealed]`; wiped on drop. The only way in
//! is [`Clear::expose`], a word that reviews can search for.
use std::fmt;
use zeroize::Zeroize;

/// A value that must not leave memory except to the carrier's socket.
pub struct Clear<T: Zeroize>(T);

impl<T: Zeroize> Clear<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The plaintext. Never pass it to a log, an error or a metric.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> From<T> for Clear<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: Zeroize> fmt::Debug for Clear<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[sealed]")
    }
}

impl<T: Zeroize> Drop for Clear<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn debug_shows_nothing() {
        let body = Clear::new(String::from("Ada, your visit is at nine"));
        assert_eq!(format!("{body:?} {:?}", Some(&body)), "[sealed] Some([sealed])");
        assert_eq!(body.expose(), "Ada, your visit is at nine");
    }

    struct Probe(Arc<AtomicBool>);
    impl Zeroize for Probe {
        fn zeroize(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_is_wiped_on_drop() {
        let wiped = Arc::new(AtomicBool::new(false));
        drop(Clear::new(Probe(wiped.clone())));
        assert!(wiped.load(Ordering::SeqCst));
    }
}
