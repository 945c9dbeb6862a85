//! The carrier simulator seen from outside: sets its profile and reads its ground truth over HTTP.
//!
//! Owns: [`Carrier`], and the sums of the ground truth that the ledger compares ([`Received`]).
//! Bounds: [`RECORDS_MAX`] records are read at most.

use std::collections::HashMap;

use bytes::Bytes;
use http::Method;

use crate::http::{Http, HttpError};
use crate::smsc::{Stats, TruthEntry, TruthPage};

pub const RECORDS_MAX: u64 = 16_000_000;
const PAGE: usize = 10_000;

/// A simulator that cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum CarrierError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{path} of the carrier simulator does not parse: {why}")]
    Parse { path: &'static str, why: String },
    #[error("the carrier simulator was reset or started again during the run")]
    Restarted,
    #[error("more than {RECORDS_MAX} records")]
    TooMany,
}

/// What the carrier received of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Whole messages accepted.
    pub accepted: u32,
    /// How often it arrived whole, accepted or not.
    pub arrivals: u32,
    /// When it was accepted first, in us since the epoch; 0 if never.
    pub first_accept_us: u64,
    /// The first time that it arrived, accepted or not, in us since the epoch.
    pub first_arrival_us: u64,
    /// The last time that it arrived, accepted or not, in ms since the epoch.
    pub last_arrival_ms: i64,
    /// A receipt reported this last.
    pub state: Option<String>,
    /// A final receipt of a message in one part was acknowledged.
    pub acknowledged: bool,
}

/// Where a run begins in the ground truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub generation: u32,
    pub records: u64,
    pub violations: u64,
    pub unrecorded: u64,
}

/// The ground truth of one run.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    pub received: HashMap<u128, Received>,
    /// How often each part was accepted, by [`part_key`].
    pub parts: HashMap<[u64; 2], u32>,
    pub submits: u64,
    /// Accepted whole messages, copies included.
    pub messages: u64,
    /// By what made the simulator not simply accept: count.
    pub faults: std::collections::BTreeMap<String, u64>,
    pub violations: u64,
    /// Submits that the simulator could not record: the truth is incomplete.
    pub unrecorded: u64,
    pub window_max: u64,
    pub limit: Option<u32>,
    /// What the receipts of the parts of a long message said so far that was not DELIVRD, by destination, reference
    /// and number of parts.
    worst_parts: HashMap<(u128, u16, u8), String>,
}

impl Truth {
    /// Counts one record.
    pub fn add(&mut self, entry: &TruthEntry) {
        self.submits += 1;
        if entry.fault != "none" {
            *self.faults.entry(entry.fault.clone()).or_insert(0) += 1;
        }
        let part_of = (entry.total > 1).then_some((entry.destination, entry.reference, entry.total));
        if entry.accepted {
            *self.parts.entry(part_key(entry.destination, entry.octets)).or_insert(0) += 1;
        }
        // An interim notice that came after the receipt says nothing.
        if let (Some(part_of), true, Some(state)) = (part_of, entry.accepted, &entry.state)
            && !matches!(state.as_str(), "DELIVRD" | "ENROUTE")
        {
            self.worst_parts.insert(part_of, state.clone());
        }
        let Some(key) = entry.message else { return };
        // A long message is what its worst part is.
        let worst = part_of.filter(|_| entry.completes).and_then(|part_of| self.worst_parts.remove(&part_of));
        let received = self.received.entry(key).or_default();
        received.arrivals += 1;
        received.last_arrival_ms = received.last_arrival_ms.max((entry.at_us / 1000) as i64);
        if received.first_arrival_us == 0 {
            received.first_arrival_us = entry.at_us;
        }
        if entry.completes {
            if received.accepted == 0 {
                received.first_accept_us = entry.at_us;
            }
            received.accepted += 1;
            self.messages += 1;
        }
        received.acknowledged |= entry.total == 1
            && entry.receipts_acked > 0
            && entry.state.as_deref().is_some_and(|state| state != "ENROUTE");
        if worst.is_some() {
            received.state = worst;
        } else if entry.state.is_some() {
            received.state.clone_from(&entry.state);
        }
    }
}

impl Truth {
    /// Adds what another carrier received. The limit and the fullest window stay those of the first.
    pub fn merge(&mut self, other: Self) {
        let earliest = |a: u64, b: u64| if a == 0 || b == 0 { a.max(b) } else { a.min(b) };
        for (key, theirs) in other.received {
            let own = self.received.entry(key).or_default();
            // Its receipt counts that has one; of two the one of the carrier that took it.
            if theirs.state.is_some() && (own.state.is_none() || own.accepted == 0) {
                own.state = theirs.state;
            }
            own.accepted += theirs.accepted;
            own.arrivals += theirs.arrivals;
            own.first_accept_us = earliest(own.first_accept_us, theirs.first_accept_us);
            own.first_arrival_us = earliest(own.first_arrival_us, theirs.first_arrival_us);
            own.last_arrival_ms = own.last_arrival_ms.max(theirs.last_arrival_ms);
            own.acknowledged |= theirs.acknowledged;
        }
        for (part, count) in other.parts {
            *self.parts.entry(part).or_insert(0) += count;
        }
        for (fault, count) in other.faults {
            *self.faults.entry(fault).or_insert(0) += count;
        }
        self.submits += other.submits;
        self.messages += other.messages;
        self.violations += other.violations;
        self.unrecorded += other.unrecorded;
    }
}

/// Names one part of one message: the hash of its number and that of its text octets, together.
pub fn part_key(destination: u128, octets: u128) -> [u64; 2] {
    let both = destination ^ octets;
    [(both >> 64) as u64, both as u64]
}

/// The simulator at an address.
#[derive(Clone)]
pub struct Carrier {
    http: Http,
    address: String,
}

fn parse<T: serde::de::DeserializeOwned>(path: &'static str, body: &Bytes) -> Result<T, CarrierError> {
    serde_json::from_slice(body).map_err(|e| CarrierError::Parse { path, why: e.to_string() })
}

impl Carrier {
    pub fn new(http: Http, address: &str) -> Self {
        Self { http, address: address.to_owned() }
    }

    pub async fn stats(&self) -> Result<Stats, CarrierError> {
        parse("/stats", &self.http.get(&self.address, "/stats?seconds=0").await?)
    }

    /// Puts a profile (TOML) into effect now; its storms count from this moment.
    pub async fn set_profile(&self, toml: &str) -> Result<(), CarrierError> {
        let body = Bytes::copy_from_slice(toml.as_bytes());
        self.http.call(Method::POST, &self.address, "/profile", body).await?;
        Ok(())
    }

    /// Drops every connection at once.
    pub async fn disconnect(&self) -> Result<(), CarrierError> {
        self.http.call(Method::POST, &self.address, "/disconnect", Bytes::new()).await?;
        Ok(())
    }

    /// Forgets everything received so far.
    pub async fn reset(&self) -> Result<(), CarrierError> {
        self.http.call(Method::POST, &self.address, "/reset", Bytes::new()).await?;
        Ok(())
    }

    async fn page(&self, since: u64, limit: usize) -> Result<TruthPage, CarrierError> {
        let path = format!("/truth?since={since}&limit={limit}");
        parse("/truth", &self.http.get(&self.address, &path).await?)
    }

    /// Where the ground truth stands now.
    pub async fn mark(&self) -> Result<Mark, CarrierError> {
        let (stats, page) = (self.stats().await?, self.page(u64::MAX, 1).await?);
        Ok(Mark {
            generation: page.generation,
            records: page.total,
            violations: stats.violations(),
            unrecorded: stats.unrecorded,
        })
    }

    /// Gives every record since `mark` to `take`, a page at a time.
    pub async fn records(&self, mark: &Mark, mut take: impl FnMut(&TruthEntry)) -> Result<(), CarrierError> {
        let mut since = mark.records;
        loop {
            let page = self.page(since, PAGE).await?;
            if page.generation != mark.generation {
                return Err(CarrierError::Restarted);
            }
            page.records.iter().for_each(&mut take);
            if page.next.saturating_sub(mark.records) > RECORDS_MAX {
                return Err(CarrierError::TooMany);
            }
            if page.next >= page.total || page.next <= since {
                return Ok(());
            }
            since = page.next;
        }
    }

    /// The ground truth since `mark`.
    pub async fn truth(&self, mark: &Mark) -> Result<Truth, CarrierError> {
        let mut truth = Truth::default();
        self.records(mark, |entry| truth.add(entry)).await?;
        let stats = self.stats().await?;
        truth.violations = stats.violations().saturating_sub(mark.violations);
        truth.unrecorded = stats.unrecorded.saturating_sub(mark.unrecorded);
        truth.window_max = stats.accounts.iter().map(|a| a.window_max).max().unwrap_or(0);
        truth.limit = stats.accounts.iter().filter_map(|a| a.limit).max();
        Ok(truth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u8, total: u8, state: &str) -> TruthEntry {
        let completes = number == total;
        let value = serde_json::json!({
            "index": 0, "at_us": 5_000 * u64::from(number), "system_id": "x", "bind": 1, "sequence": 1,
            "destination": "01", "octets": format!("{:x}", 16 + number),
            "message": completes.then_some("07"), "coding": 0, "reference": 9, "total": total, "number": number,
            "message_id": 1, "accepted": true, "completes": completes, "fault": "none", "answer": 0,
            "answer_sent": true, "receipts_sent": 1, "receipts_acked": 1, "state": state,
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_long_message_is_what_its_worst_part_is() {
        for (states, wanted) in [
            (["DELIVRD", "DELIVRD"], "DELIVRD"),
            (["UNDELIV", "DELIVRD"], "UNDELIV"),
            (["DELIVRD", "UNDELIV"], "UNDELIV"),
            (["ENROUTE", "DELIVRD"], "DELIVRD"),
        ] {
            let mut truth = Truth::default();
            truth.add(&entry(1, 2, states[0]));
            assert!(truth.received.is_empty());
            truth.add(&entry(2, 2, states[1]));
            let received = Received {
                accepted: 1,
                arrivals: 1,
                first_accept_us: 10_000,
                first_arrival_us: 10_000,
                last_arrival_ms: 10,
                state: Some(wanted.to_owned()),
                acknowledged: false,
            };
            assert_eq!(truth.received, HashMap::from([(7, received)]), "{states:?}");
            assert_eq!((truth.submits, truth.messages, truth.parts.len()), (2, 1, 2));
            assert_eq!(truth.parts.get(&part_key(1, 0x11)), Some(&1));
        }
    }

    #[test]
    fn two_carriers_are_one_account_and_what_both_accepted_is_there_twice() {
        let taken = |state: &str| {
            let mut truth = Truth { limit: Some(30), ..Truth::default() };
            let entry = entry(1, 1, state);
            truth.add(&TruthEntry { accepted: true, completes: true, message: Some(7), ..entry });
            truth
        };
        let refused = || {
            let mut truth = Truth::default();
            let entry = TruthEntry { accepted: false, completes: false, state: None, ..entry(1, 1, "") };
            truth.add(&TruthEntry { message: Some(7), fault: "storm".to_owned(), ..entry });
            truth
        };
        let mut once = taken("DELIVRD");
        once.merge(refused());
        let seen = &once.received[&7];
        assert_eq!((seen.accepted, seen.arrivals, seen.state.as_deref()), (1, 2, Some("DELIVRD")));
        assert_eq!((once.messages, once.submits, once.faults["storm"], once.limit), (1, 2, 1, Some(30)));
        let mut moved = refused();
        moved.merge(taken("DELIVRD"));
        assert_eq!(moved.received[&7].state.as_deref(), Some("DELIVRD"));
        let mut twice = taken("DELIVRD");
        twice.merge(taken("UNDELIV"));
        assert_eq!((twice.received[&7].accepted, twice.messages), (2, 2));
    }

    #[test]
    fn refused_submits_are_arrivals_and_faults_but_not_messages() {
        let mut truth = Truth::default();
        let refused =
            TruthEntry { accepted: false, completes: false, fault: "storm".to_owned(), ..entry(1, 1, "") };
        truth.add(&TruthEntry { state: None, message: Some(7), ..refused });
        assert_eq!(
            truth.received[&7],
            Received { arrivals: 1, first_arrival_us: 5_000, last_arrival_ms: 5, ..Received::default() }
        );
        assert_eq!((truth.messages, truth.parts.len(), truth.faults["storm"]), (0, 0, 1));
    }
}
