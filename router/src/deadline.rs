//! How long a caller waits: the `grpc-timeout` header, and the point at which we must answer so that the answer still
//! arrives in time.
use tokio::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

/// A batch of a stream, which has no deadline of its own.
pub const STREAM_BATCH: Duration = Duration::from_secs(30);
/// Longer deadlines are cut to this, so that nothing waits for ever.
const LONGEST: Duration = Duration::from_secs(300);
/// No stream lives longer than its connection; this only keeps the sum in range.
const LONGEST_STREAM: Duration = Duration::from_secs(365 * 86_400);
/// The answer leaves this long before the deadline, or a tenth of the whole if that is less.
const MARGIN: Duration = Duration::from_millis(250);

/// When to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    answer_by: Instant,
}

impl Deadline {
    /// The caller gives up `timeout` from now.
    pub fn within(timeout: Duration) -> Self {
        Self::ahead(timeout.min(LONGEST))
    }

    /// From the header; `None` without one, or when it cannot be read.
    pub fn of_metadata(metadata: &MetadataMap) -> Option<Self> {
        timeout(metadata).map(Self::within)
    }

    /// Like [`of_metadata`](Self::of_metadata) for a stream that may live for long.
    pub fn of_stream(metadata: &MetadataMap) -> Option<Self> {
        timeout(metadata).map(|timeout| Self::ahead(timeout.min(LONGEST_STREAM)))
    }

    fn ahead(timeout: Duration) -> Self {
        Self { answer_by: Instant::now() + timeout - MARGIN.min(timeout / 10) }
    }

    /// Work must have stopped by then.
    pub fn answer_by(&self) -> Instant {
        self.answer_by
    }

    /// Zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.answer_by.saturating_duration_since(Instant::now())
    }

    pub fn has_passed(&self) -> bool {
        self.remaining().is_zero()
    }

    /// The earlier one.
    pub fn earlier(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if other.answer_by < self.answer_by => other,
            _ => self,
        }
    }
}

/// The caller's `grpc-timeout`.
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

/// At most 8 digits and a unit, as the gRPC protocol says.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(value * 3600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_nonsense_is_not() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("10S", Duration::from_secs(10)),
            ("250m", Duration::from_millis(250)),
            ("99999999u", Duration::from_micros(99_999_999)),
            ("5n", Duration::from_nanos(5)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
        for text in ["", "S", "10", "10s", "-1S", "+1S", "123456789S", "1.5S", "1\u{e9}"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_leaves_before_the_caller_gives_up() {
        assert_eq!(Deadline::within(Duration::from_secs(10)).remaining(), Duration::from_millis(9_750));
        assert_eq!(Deadline::within(Duration::from_millis(100)).remaining(), Duration::from_millis(90));
        assert!(Deadline::within(Duration::ZERO).has_passed());
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "99999999H".parse().unwrap());
        assert_eq!(Deadline::of_metadata(&metadata).unwrap().remaining(), LONGEST - MARGIN);
        assert_eq!(Deadline::of_stream(&metadata).unwrap().remaining(), LONGEST_STREAM - MARGIN);
        let (near, far) =
            (Deadline::within(Duration::from_secs(1)), Deadline::within(Duration::from_secs(2)));
        assert_eq!(
            (far.earlier(Some(near)), near.earlier(Some(far)), near.earlier(None)),
            (near, near, near)
        );
    }
}
