//! One raft `Ready` becomes ordered outputs. This is the only place that knows the order; it is
//!  1. `ready`, and nothing else on the node until 4;
//!  2. messages that may overtake the disk (raft gives them only on a leader) go to `send`;
//!  3. a snapshot replaces the log view (raft gives no committed entries with one), entries become readable in it, and
//!     {snapshot, entries, hard state, membership, messages to send after} a `PersistTask`;
//!  4. `advance_append_async`;
//!  5. later, in order, `persisted`; commits that it causes are in the next ready.
//!
//! The empty-ready rule: a ready with nothing to write still waits behind an earlier write that is under way, because
//! its messages may speak of what that write makes true. Only when nothing is under way does it complete at once.
//!
//! A moved commit index alone is not worth a write: it goes with the next one, or after `COMMIT_WRITE_TICKS` with any
//! ready. `Group::open` does not depend on it.
use crate::error::GroupError;
use crate::group::{Group, Outstanding};
use crate::log_store::{GroupWrite, SnapshotMark};
use crate::log_view::entry_bytes;
use crate::output::{CommittedEntry, Outputs, PersistTask, ReadReady, RoleChange};
use crate::wire;
use carillon_proto::internal::{ConfState, RaftMessage};
use raft::Ready;
use raft::eraftpb::{Entry, Message};

/// How long the commit index on disk may lag, in ticks, while there is traffic.
const COMMIT_WRITE_TICKS: u32 = 10;

/// A snapshot, and the membership that it brings as of an index.
type Restored = (SnapshotMark, (ConfState, u64));

impl Group {
    /// Adds what is to be done to `out`. True: something was added or changed, poll again.
    ///
    /// After an error the group must not be used any more.
    pub fn poll(&mut self, out: &mut Outputs) -> Result<bool, GroupError> {
        let mut progress = false;
        if self.raw.has_ready() {
            self.handle_ready(out)?;
            progress = true;
        }
        if let Some(mark) = self.snapshots.installed.take() {
            out.installed = Some(mark);
            progress = true;
        }
        progress |= self.deliver_held_back(out)?;
        progress |= self.note_role(out);
        if let Some(fetch) = self.snapshots.take_fetch() {
            out.snapshot_fetch = Some(fetch);
            progress = true;
        }
        if let Some(replica) = self.raw.store().take_wanted() {
            out.snapshot_wanted = Some(replica);
            progress = true;
        }
        Ok(progress)
    }

    fn handle_ready(&mut self, out: &mut Outputs) -> Result<(), GroupError> {
        let mut ready = self.raw.ready();
        let restored = self.restore(&ready)?;
        let number = ready.number();
        let must_sync = ready.must_sync();
        out.send.extend(to_wire(ready.take_messages()));
        for read in ready.take_read_states() {
            let ctx = wire::parse_read_context(&read.request_ctx);
            out.reads.extend(ctx.map(|ctx| ReadReady { ctx, index: read.index }));
        }
        if let Some(hard_state) = ready.hs() {
            self.hard_state = hard_state.clone();
            self.unwritten_ticks.get_or_insert(0);
        }
        let after = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        let entries = ready.take_entries();
        let last = self.raw.store().last();
        let replaces = !self.outstanding.is_empty()
            && (restored.is_some() || entries.first().is_some_and(|e| e.index <= last));
        self.raw.mut_store().append(&entries);
        self.raw.advance_append_async(ready);
        let group = self.config.group;
        let (snapshot, conf) = restored.unzip();
        let hard_state = self.hard_state_to_write(must_sync);
        let write = GroupWrite { group, snapshot, entries, hard_state, conf, ..Default::default() };
        if let Some(mark) = snapshot {
            self.snapshots.writing = Some((number, mark));
        }
        self.hand_out(number, must_sync, replaces, write, after, out);
        if let Some(last) = committed.last() {
            self.deliverable = last.index;
            if committed[0].index == self.emitted + 1 && self.applier_has_room() {
                self.emit(committed, out);
            }
        }
        Ok(())
    }

    /// A snapshot in a ready: the log view starts anew after it. Gives what is to be written for it.
    fn restore(&mut self, ready: &Ready) -> Result<Option<Restored>, GroupError> {
        if ready.snapshot().is_empty() {
            return Ok(None);
        }
        let metadata = ready.snapshot().get_metadata();
        let mark = self.snapshots.take_restoring().filter(|mark| mark.index == metadata.index);
        let mark = mark.ok_or(GroupError::Snapshot(self.config.group))?;
        self.raw.mut_store().reset(mark.index, mark.term);
        (self.emitted, self.deliverable, self.conf_index) = (mark.index, mark.index, mark.index);
        self.snapshots.last_index = mark.index;
        Ok(Some((mark, (wire::conf_state_to_wire(metadata.get_conf_state().clone()), mark.index))))
    }

    /// Steps 3 and 5 of the order, and the empty-ready rule.
    fn hand_out(
        &mut self,
        number: u64,
        must_sync: bool,
        replaces: bool,
        write: GroupWrite,
        after: Vec<Message>,
        out: &mut Outputs,
    ) {
        if write.is_empty() {
            match self.outstanding.back_mut() {
                None => {
                    self.raw.on_persist_ready(number);
                    out.send.extend(to_wire(after));
                    return;
                }
                Some(back) if after.is_empty() => {
                    back.through = number;
                    return;
                }
                Some(_) => {}
            }
        }
        self.replacing += usize::from(replaces);
        let bytes = write.entries.iter().map(entry_bytes).sum();
        self.outstanding.push_back(Outstanding { number, through: number, replaces, bytes });
        self.outstanding_bytes += bytes;
        let group = self.config.group;
        out.persist.push(PersistTask { group, number, write, must_sync, after: to_wire(after).collect() });
    }

    fn hard_state_to_write(&mut self, must_sync: bool) -> Option<raft::eraftpb::HardState> {
        let ticks = self.unwritten_ticks?;
        if !must_sync && ticks < COMMIT_WRITE_TICKS {
            return None;
        }
        self.unwritten_ticks = None;
        Some(self.hard_state.clone())
    }

    fn applier_has_room(&self) -> bool {
        self.unapplied_bytes < self.config.unapplied_bytes_max
    }

    fn emit(&mut self, entries: Vec<Entry>, out: &mut Outputs) {
        let Some(last) = entries.last() else { return };
        assert_eq!(entries[0].index, self.emitted + 1, "committed entries have no gaps");
        self.emitted = last.index;
        let bytes = entries.iter().map(entry_bytes).sum();
        self.unapplied.push_back((self.emitted, bytes));
        self.unapplied_bytes += bytes;
        let conf_index = self.conf_index;
        out.committed.extend(entries.into_iter().map(|entry| CommittedEntry::new(entry, conf_index)));
    }

    /// Entries that were committed while the applier had no room are not kept in memory but read again.
    fn deliver_held_back(&mut self, out: &mut Outputs) -> Result<bool, GroupError> {
        if self.emitted >= self.deliverable || !self.applier_has_room() {
            return Ok(false);
        }
        let (low, high) = (self.emitted + 1, self.deliverable + 1);
        let entries = self.raw.store().read(low, high, self.config.committed_bytes_max)?;
        self.emit(entries, out);
        Ok(true)
    }

    /// Compared with what was told last, because raft announces a new term without a new leader nowhere.
    fn note_role(&mut self, out: &mut Outputs) -> bool {
        let role = RoleChange { term: self.term(), leader: self.leader_id(), is_leader: self.is_leader() };
        if self.role == Some(role) {
            return false;
        }
        self.role = Some(role);
        out.role = Some(role);
        true
    }
}

fn to_wire(messages: Vec<Message>) -> impl Iterator<Item = RaftMessage> {
    messages.into_iter().map(wire::message_to_wire)
}
