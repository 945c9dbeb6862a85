//! What practices may send: caps and fuses of a tenant or practice, and practices that are paused on a carrier.
//!
//! Bounds: a policy for each practice and tenant, a pause for each practice and carrier.
use super::apply::{Change, MetaRefusal, Outcome, number, put_if_new};
use super::keys;
use super::view::MetaView;
use crate::records::{decode, encode};
use crate::tables::{TableError, Tables};
use carillon_proto::internal::{
    PausePractice, PauseRecord, PolicyRecord, PracticeRecord, PutPolicy, SendingPolicy,
};
use carillon_proto::public::MessageClass;

/// In force where nobody set anything: no caps, both fuses. Ten minutes is longer than the retries of a client that gave up too early
/// and shorter than the time after which a practice means it; thirty messages an hour to one patient is no appointment book.
pub fn default_policy() -> SendingPolicy {
    SendingPolicy {
        recipient_per_day: 0,
        recipient_per_week: 0,
        // People on call are paged as often as it takes.
        exempt_classes: vec![MessageClass::Staff as i32],
        duplicate_window_s: 600,
        burst: 30,
        burst_window_s: 3_600,
    }
}

impl MetaView {
    /// What holds for a practice: its own policy, else its tenant's, else the default.
    pub fn policy_of(&self, practice: &PracticeRecord) -> SendingPolicy {
        let of_tenant = self.policies.get(&practice.tenant);
        let own = of_tenant.and_then(|policies| policies.get(&practice.practice));
        let policy = own.or_else(|| of_tenant.and_then(|policies| policies.get("")));
        policy.cloned().unwrap_or_else(default_policy)
    }

    /// When the last pause of the practice on the carrier ended; 0 if it had none.
    pub fn resumed_ms(&self, practice_no: u32, carrier_no: u32) -> u64 {
        let pause = self.pauses.get(&(practice_no, carrier_no)).filter(|pause| !pause.paused);
        pause.map_or(0, |pause| pause.changed_at_ms)
    }
}

pub(super) fn put(tables: &mut dyn Tables, command: PutPolicy) -> Outcome {
    let known = match command.practice.as_str() {
        "" => has_practices(tables, &command.tenant)?,
        practice => number(tables, &keys::practice_name(&command.tenant, practice))?.is_some(),
    };
    let key = keys::policy(&command.tenant, &command.practice);
    match command.policy {
        None if tables.get(&key)?.is_none() => Ok(Ok(Change::Same)),
        None => {
            tables.delete(key);
            Ok(Ok(Change::Changed))
        }
        Some(_) if !known && command.practice.is_empty() => Ok(Err(MetaRefusal::NoTenant)),
        Some(_) if !known => Ok(Err(MetaRefusal::NoPractice)),
        Some(policy) => {
            let (tenant, practice) = (command.tenant, command.practice);
            put_if_new(tables, key, encode(&PolicyRecord { tenant, practice, policy: Some(policy) }))
        }
    }
}

fn has_practices(tables: &dyn Tables, tenant: &str) -> Result<bool, TableError> {
    let range = crate::keys::KeyRange::of_prefix(&keys::practice_name(tenant, ""));
    let mut found = false;
    tables.scan(&range.start, &range.end, &mut |_, _| {
        found = true;
        false
    })?;
    Ok(found)
}

pub(super) fn pause(tables: &mut dyn Tables, now_ms: u64, command: &PausePractice) -> Outcome {
    let &PausePractice { practice_no, carrier_no, paused, cause } = command;
    if tables.get(&keys::practice(practice_no))?.is_none() {
        return Ok(Err(MetaRefusal::NoPractice));
    }
    if tables.get(&keys::carrier(carrier_no))?.is_none() {
        return Ok(Err(MetaRefusal::NoCarrier));
    }
    let key = keys::pause(practice_no, carrier_no);
    let before = tables.get(&key)?.map(|row| decode::<PauseRecord>('m', row)).transpose()?;
    if before.map_or(!paused, |before| before.paused == paused) {
        return Ok(Ok(Change::Same));
    }
    let record = PauseRecord { practice_no, carrier_no, paused, cause, changed_at_ms: now_ms };
    put_if_new(tables, key, encode(&record))
}
