//! Positions in one priority of table D: due time, then message id.
//!
//! A bound is a position that need not exist as a row; "below the bound" is what a window knows.
use carillon_proto::MessageId;

/// Order of the rows of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowKey {
    pub due_ms: u64,
    id: u128,
}

impl RowKey {
    /// Before every row.
    pub const START: Self = Self { due_ms: 0, id: 0 };

    pub fn of(due_ms: u64, message_id: MessageId) -> Self {
        Self { due_ms, id: u128::from_be_bytes(*message_id.as_bytes()) }
    }

    /// Before every row that is due at `due_ms`.
    pub fn start_of(due_ms: u64) -> Self {
        Self { due_ms, id: 0 }
    }

    /// The next possible position.
    pub fn next(self) -> Self {
        match self.id.checked_add(1) {
            Some(id) => Self { id, ..self },
            None => Self { due_ms: self.due_ms.saturating_add(1), id: 0 },
        }
    }

    /// A position before this one, such that the rows after it include all rows from this one on. It may be
    /// too early by some rows of one millisecond, because not every position is a valid message id.
    pub fn exclusive_before(self) -> Option<(u64, MessageId)> {
        let same_ms = self.id.checked_sub(1).and_then(|id| MessageId::from_bytes(&id.to_be_bytes()).ok());
        if let Some(id) = same_ms {
            return Some((self.due_ms, id));
        }
        let slot = carillon_proto::Slot::new(carillon_proto::slot::SLOTS - 1).expect("the last slot");
        let last = MessageId::new((1 << 48) - 1, slot, u64::MAX);
        self.due_ms.checked_sub(1).map(|due_ms| (due_ms, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::Slot;

    fn id(time_ms: u64, slot: u16, random: u64) -> MessageId {
        MessageId::new(time_ms, Slot::new(slot).unwrap(), random)
    }

    #[test]
    fn nothing_lies_between_a_position_and_the_one_before() {
        for x in [id(5, 3, 7), id(5, 0, 0), id(5, 3, 0), id(0, 0, 0), id((1 << 48) - 1, 4095, u64::MAX)] {
            let key = RowKey::of(10, x);
            let (due_ms, before) = key.exclusive_before().unwrap();
            assert!(RowKey::of(due_ms, before) < key);
            assert_eq!(RowKey::of(10, x).next().exclusive_before(), Some((10, x)));
        }
        assert_eq!(RowKey::START.exclusive_before(), None);
        assert!(RowKey::start_of(11) > RowKey::of(10, id((1 << 48) - 1, 4095, u64::MAX)));
    }

    #[test]
    fn order_is_due_time_then_id() {
        assert!(RowKey::of(1, id(9, 9, 9)) < RowKey::of(2, id(1, 1, 1)));
        assert!(RowKey::of(2, id(1, 1, 1)) < RowKey::of(2, id(1, 1, 2)));
    }
}
