//! Applies the entries of a partition: reads the batch, runs its commands in order, writes what they caused.
//!
//! Invariants
//!  - Entries come without a gap; anything else is a bug and stops the replica.
//!  - The clock of the tables never goes back, whatever a batch says.
//!  - After an `Err` the caller drops everything that was written since the entry began and fences the replica.
use crate::applied::{self, EntryMeta};
use crate::digest::Digest;
use crate::effect::{CommandResult, Effects, Refusal};
use crate::entry::{Entry, Read};
use crate::records::{applied_record, encode};
use crate::tables::{ReadTables, TableError, Tables};
use crate::turn::{HighestIds, OptOuts, Restored, Turn};
use crate::{
    accept, attempt, cancel, dead_letter, keys, leader, opt_out, order, outcome, quarantine, receipt,
    reroute, restore, retire, schedule, series, unknown, update,
};
use bytes::Bytes;
use carillon_proto::internal::command::Kind;
use carillon_proto::internal::{AppliedRecord, Command, EventBlock};

/// Commands that are read before the first of them runs, so that storage can look for their rows together.
const READ_AHEAD: usize = 32;

/// Applies entries to one partition's tables; remembers what it would otherwise read each time.
///
/// Nothing else may write to the tables. After a snapshot replaced them, open a new one.
#[derive(Debug)]
pub struct Applier {
    last: AppliedRecord,
    highest: HighestIds,
    opt_outs: OptOuts,
    restore: Restored,
    permits: bool,
}

impl Applier {
    pub fn open(tables: &dyn ReadTables) -> Result<Self, TableError> {
        let (last, restore) = (applied_record(tables)?, restore::of(tables)?);
        let (highest, opt_outs) = (HighestIds::default(), OptOuts::default());
        Ok(Self { last, highest, opt_outs, restore, permits: true })
    }

    /// The last entry applied.
    pub fn last(&self) -> &AppliedRecord {
        &self.last
    }

    /// Whether BeginAttempt reads the payload and answers `Begun`; on at first. A follower, which drops the
    /// effects anyway, saves a read for each attempt by switching it off; it then gets `Done`. The tables and the digest
    /// are the same either way.
    pub fn set_permits(&mut self, wanted: bool) {
        self.permits = wanted;
    }

    /// Applies one entry. `data` is an encoded `CommandBatch`, or empty for raft's own entries. `effects` is
    /// emptied first and holds what this entry caused.
    pub fn apply(
        &mut self,
        tables: &mut dyn Tables,
        meta: EntryMeta,
        data: &Bytes,
        effects: &mut Effects,
    ) -> Result<&AppliedRecord, TableError> {
        effects.results.clear();
        effects.schedule.clear();
        effects.events.clear();
        effects.references.clear();
        if data.is_empty() {
            self.pass(tables, meta);
            return Ok(&self.last);
        }
        applied::check_order(&self.last, meta);
        let entry = Entry::read(data)?;
        let mut digest = Digest::of_entry(&self.last.digest, meta, data);
        let mut turn = Turn {
            tables: &mut *tables,
            schedule: &mut effects.schedule,
            events: std::mem::take(&mut effects.events),
            references: &mut effects.references,
            highest: &mut self.highest,
            opt_outs: &mut self.opt_outs,
            restore: &mut self.restore,
            now_ms: entry.now_ms.max(self.last.now_ms),
            term: meta.term,
            leader_start_term: self.last.leader_start_term,
            permits: self.permits,
            wakes: Vec::new(),
        };
        effects.results.reserve(entry.commands.len());
        run_all(&mut turn, &entry, &mut digest, &mut effects.results)?;
        let Turn { events, now_ms, leader_start_term, .. } = turn;
        effects.events = events;
        let events_index = meta.index + self.restore.events_base;
        write_events(tables, events_index, now_ms, &mut effects.events, &mut digest);
        let digest = digest.finish();
        self.last = applied::write(tables, &self.last, meta, now_ms, leader_start_term, digest);
        Ok(&self.last)
    }

    /// Moves over an entry that is not for the tables (a configuration change, a new leader's empty entry).
    pub fn pass(&mut self, tables: &mut dyn Tables, meta: EntryMeta) {
        self.last = applied::pass(tables, &self.last, meta);
    }
}

/// Applies one entry without an [`Applier`]: for tools and tests; reads table A each time.
pub fn apply(
    tables: &mut dyn Tables,
    meta: EntryMeta,
    data: &Bytes,
    effects: &mut Effects,
) -> Result<AppliedRecord, TableError> {
    let mut applier = Applier::open(tables)?;
    applier.apply(tables, meta, data, effects)?;
    Ok(applier.last)
}

/// Runs the commands of an entry in order.
fn run_all(
    turn: &mut Turn,
    entry: &Entry,
    digest: &mut Digest,
    results: &mut Vec<CommandResult>,
) -> Result<(), TableError> {
    for places in entry.commands.chunks(READ_AHEAD) {
        let commands = places.iter().map(|place| entry.command(place)).collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<_> = commands.iter().filter_map(Read::expects).collect();
        if keys.len() > 1 {
            turn.tables.expect(keys)?;
        }
        for command in commands {
            let result = match command {
                Read::Accept(_) if turn.restore.under_way => CommandResult::Refused(Refusal::Restoring),
                Read::Accept(view) => accept::accept(turn, &view)?,
                Read::Other(command) => run(turn, *command)?,
            };
            order::wake(turn)?;
            note(digest, &result);
            results.push(result);
        }
    }
    Ok(())
}

/// What a command did, into the digest.
fn note(digest: &mut Digest, result: &CommandResult) {
    digest.add(&summary(result));
    match result {
        CommandResult::Retired(retired) => [retired.messages, retired.keys, retired.event_blocks]
            .iter()
            .for_each(|n| digest.add(&n.to_be_bytes())),
        CommandResult::Updated(updated) => {
            updated.outcomes.iter().for_each(|o| digest.add(&[o.disposition as u8, o.state as u8]));
        }
        CommandResult::Resolved(resolved) => digest.add(&resolved.messages.to_be_bytes()),
        _ => {}
    }
}

fn run(turn: &mut Turn, command: Command) -> Result<CommandResult, TableError> {
    if turn.restore.under_way && !matches!(command.kind, Some(Kind::Restore(_) | Kind::LeaderStart(_))) {
        return Ok(CommandResult::Refused(Refusal::Restoring));
    }
    match command.kind {
        Some(Kind::Accept(c)) => accept::accept_decoded(turn, &c),
        Some(Kind::Cancel(c)) => cancel::by_id(turn, &c),
        Some(Kind::CancelByReference(c)) => cancel::by_reference(turn, &c),
        Some(Kind::BeginAttempt(c)) => attempt::begin(turn, &c),
        Some(Kind::RecordOutcome(c)) => outcome::record(turn, &c),
        Some(Kind::RecordReceipt(c)) => receipt::record(turn, &c),
        Some(Kind::Expire(c)) => schedule::expire(turn, &c),
        Some(Kind::LeaderStart(c)) => leader::start(turn, &c),
        Some(Kind::HoldBack(c)) => schedule::hold_back(turn, &c),
        Some(Kind::SetHours(c)) => schedule::set_hours(turn, c),
        Some(Kind::Retire(c)) => retire::retire(turn, &c),
        Some(Kind::OptOut(c)) => opt_out::record(turn, &c),
        Some(Kind::UpdateByReference(c)) => update::by_reference(turn, c),
        Some(Kind::DropDeadLetter(c)) => dead_letter::drop_one(turn, &c),
        Some(Kind::PutSeries(c)) => series::put(turn, c),
        Some(Kind::AdvanceSeries(c)) => series::advance(turn, &c),
        Some(Kind::EndSeries(c)) => series::finish(turn, &c),
        Some(Kind::Reroute(c)) => reroute::reroute(turn, &c),
        Some(Kind::Restore(c)) => restore::restore(turn, c),
        Some(Kind::ResolveQuarantine(c)) => quarantine::resolve(turn, &c),
        Some(Kind::ResolveUnknown(c)) => unknown::resolve(turn, &c),
        None => Ok(CommandResult::Refused(Refusal::Malformed)),
    }
}

/// One row for the events of an entry, if there are any.
fn write_events(
    tables: &mut dyn Tables,
    index: u64,
    now_ms: u64,
    events: &mut Vec<carillon_proto::internal::EventRecord>,
    digest: &mut Digest,
) {
    if events.is_empty() {
        return;
    }
    let block = EventBlock { now_ms, events: std::mem::take(events) };
    let row = encode(&block);
    digest.add(&row);
    tables.put(keys::events(index), row);
    *events = block.events;
}

/// What the digest says about a result. `Begun` and `Done` are the same: whether a permission carries the payload
/// depends on the replica, and the events already tell them apart.
fn summary(result: &CommandResult) -> [u8; 2] {
    match result {
        CommandResult::Accepted => [1, 0],
        CommandResult::Duplicate { .. } => [2, 0],
        CommandResult::KeyReused { .. } => [3, 0],
        CommandResult::SameContent { .. } => [63, 0],
        CommandResult::Canceled(outcomes) => [4, outcomes.len() as u8],
        CommandResult::Begun(_) | CommandResult::Done => [5, 0],
        CommandResult::Refused(refusal) => match refusal {
            Refusal::NotFound => [6, 0],
            Refusal::WrongState(state) => [7, *state as u8],
            Refusal::StaleTerm => [8, 0],
            Refusal::Expired => [9, 0],
            Refusal::NotExpired => [10, 0],
            Refusal::UnknownReference => [11, 0],
            Refusal::Malformed => [12, 0],
            Refusal::Restoring => [14, 0],
            Refusal::NotFresh => [15, 0],
            Refusal::OutOfOrder => [16, 0],
            Refusal::OptedOut => [18, 0],
            Refusal::OldVersion { .. } => [40, 0],
            Refusal::VersionReused => [41, 0],
            Refusal::MovedOn => [42, 0],
            Refusal::QuietHours => [19, 0],
            Refusal::FrequencyCap => [60, 0],
            Refusal::Burst => [61, 0],
            Refusal::OutOfTurn => [62, 0],
            Refusal::TakenBack => [64, 0],
        },
        CommandResult::Retired(retired) => [13, u8::from(retired.more)],
        CommandResult::Resolved(resolved) => [17, u8::from(resolved.more)],
        CommandResult::Updated(updated) => [43, u8::from(updated.duplicate)],
    }
}
