//! Knobs of what is stored: how long, how full the disk may be, and how it is checked.
use carillon_proto::config::{self, ConfigError};
use serde::Deserialize;

const DAY_S: u64 = 86_400;
/// Keys name their message for at least this long (P4), unless `lab = true`.
const KEYS_MIN_S: u64 = 7 * DAY_S;
const LONGEST_S: u64 = 3_660 * DAY_S;

/// How long things are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Messages that are final, and events. 1 hour to 10 years (from 1 s in labs), default 30 days.
    pub final_messages_s: u64,
    /// Idempotency keys, counted from the acceptance; a key lives at least as long as its message. 7 days to 10 years (from 1 s
    /// in labs), default 7 days.
    pub idempotency_keys_s: u64,
    /// Messages dropped in one partition, at most. 10 to 100000, default 2000.
    pub messages_per_second_max: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { final_messages_s: 30 * DAY_S, idempotency_keys_s: KEYS_MIN_S, messages_per_second_max: 2_000 }
    }
}

/// When submits are refused because the disk is nearly full. The smaller of the two limits counts: the percentage
/// on small volumes, the bytes on large ones.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// Of the volume of `data_dir`. 1 to 50, default 15.
    pub free_percent_min: u8,
    /// 16 MiB to 1 TiB, default 2 GiB.
    pub free_bytes_min: u64,
    /// A file that is deleted when a quarter of the limit is left, so that outcomes and flushes find room. 0 = none; at
    /// most 16 GiB; default 64 MiB.
    pub ballast_bytes: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self { free_percent_min: 15, free_bytes_min: 2 << 30, ballast_bytes: 64 << 20 }
    }
}

/// Reading everything once in a while, so that damage is found while the other replicas are well.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scrub {
    /// From the end of one pass to the next. 0 = never, otherwise 60 s to 1 year; default 7 days.
    pub every_s: u64,
    /// 64 KiB to 1 GiB, default 8 MiB.
    pub bytes_per_second: u64,
}

impl Default for Scrub {
    fn default() -> Self {
        Self { every_s: 7 * DAY_S, bytes_per_second: 8 << 20 }
    }
}

impl Retention {
    pub(super) fn validate(&self, lab: bool) -> Result<(), ConfigError> {
        let (finals, keys) = if lab { (1, 1) } else { (3_600, KEYS_MIN_S) };
        config::first_broken(&[
            (
                (finals..=LONGEST_S).contains(&self.final_messages_s),
                "retention.final_messages_s",
                "must be an hour to 10 years",
            ),
            (
                (keys..=LONGEST_S).contains(&self.idempotency_keys_s),
                "retention.idempotency_keys_s",
                "must be 7 days to 10 years",
            ),
            (
                (10..=100_000).contains(&self.messages_per_second_max),
                "retention.messages_per_second_max",
                "must be 10 to 100000",
            ),
        ])
    }
}

impl Disk {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        config::first_broken(&[
            ((1..=50).contains(&self.free_percent_min), "disk.free_percent_min", "must be 1 to 50"),
            (
                (16 << 20..=1 << 40).contains(&self.free_bytes_min),
                "disk.free_bytes_min",
                "must be 16 MiB to 1 TiB",
            ),
            (self.ballast_bytes <= 16 << 30, "disk.ballast_bytes", "must be at most 16 GiB"),
        ])
    }
}

impl Scrub {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        config::first_broken(&[
            (
                self.every_s == 0 || (60..=366 * DAY_S).contains(&self.every_s),
                "scrub.every_s",
                "must be 0 or 60 to 31622400",
            ),
            (
                (64 << 10..=1 << 30).contains(&self.bytes_per_second),
                "scrub.bytes_per_second",
                "must be 64 KiB to 1 GiB",
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_labs_keys_live_seven_days_and_messages_an_hour() {
        let check = |finals: u64, keys: u64, lab: bool| {
            let retention =
                Retention { final_messages_s: finals, idempotency_keys_s: keys, ..Retention::default() };
            retention.validate(lab).map_err(|error| error.to_string().split(':').next().unwrap().to_owned())
        };
        assert_eq!(check(3_600, 7 * DAY_S, false), Ok(()));
        assert_eq!(check(3_600, 7 * DAY_S - 1, false), Err("retention.idempotency_keys_s".to_owned()));
        assert_eq!(check(3_599, 7 * DAY_S, false), Err("retention.final_messages_s".to_owned()));
        assert_eq!(check(1, 1, true), Ok(()));
    }
}
