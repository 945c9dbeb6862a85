//! eraftpb <-> our own prost messages, field by field.
//!
//! rust-protobuf 2.28 can be brought down by crafted bytes, so it never decodes what comes from the network: prost
//! decodes, and this module builds eraftpb values from the result. Entry data is moved, never copied.
//!
//! Peers are authenticated but may be broken or old: what a peer may never send is refused here, before raft (which
//! panics on much of it) sees it.
use bytes::Bytes;
use carillon_proto::internal as proto;
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{
    ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

/// Entries in one message. A sender that respects `GroupConfig` stays below: an entry takes at least 4 of at most
/// 1 MiB.
pub const ENTRIES_MAX: usize = 1 << 18;
/// Data of one entry.
pub const ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// Data of all entries of one message: the limit of a message, which one last entry may pass.
pub const MESSAGE_DATA_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Context of a message or an entry.
pub const CONTEXT_BYTES_MAX: usize = 64;
/// Data of a snapshot message: a manifest, not the files.
pub const SNAPSHOT_BYTES_MAX: usize = 1024 * 1024;
/// Replicas in one list of a membership.
pub const MEMBERS_MAX: usize = 64;

/// Why a message of a peer is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("unknown raft message type {0}")]
    UnknownType(i32),
    /// Proposals, forwarded reads and transfers, and messages that a replica sends only to itself.
    #[error("raft message type {0} is not for peers")]
    NotForPeers(i32),
    #[error("raft message without a term")]
    NoTerm,
    #[error("unknown raft entry type {0}")]
    UnknownEntryType(i32),
    #[error("raft message with {0} entries")]
    TooManyEntries(usize),
    #[error("{what} of {bytes} bytes")]
    TooLarge { what: &'static str, bytes: usize },
    /// Indexes are consecutive, terms never fall and none is above the message's.
    #[error("raft entry {index} of term {term} is out of order")]
    EntryOrder { index: u64, term: u64 },
    #[error("raft message type {0} with a field that it never has")]
    UnexpectedField(i32),
    #[error("membership with {0} replicas in one list")]
    TooManyMembers(usize),
}

/// For sending. Total: raft makes only messages that peers accept, because `Group` never lets it forward anything.
pub fn message_to_wire(message: Message) -> proto::RaftMessage {
    proto::RaftMessage {
        msg_type: message.msg_type.value(),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_vec().into_iter().map(entry_to_wire).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.into_option().map(snapshot_to_wire),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        deprecated_priority: message.deprecated_priority,
        priority: message.priority,
    }
}

/// What a peer sent, if a peer may send it.
pub fn message_from_wire(wire: proto::RaftMessage) -> Result<Message, WireError> {
    let msg_type = peer_type(wire.msg_type)?;
    if wire.term == 0 {
        // raft takes a message without a term for one of its own.
        return Err(WireError::NoTerm);
    }
    limit("context", wire.context.len(), CONTEXT_BYTES_MAX)?;
    let only_append = msg_type == MessageType::MsgAppend || wire.entries.is_empty();
    let only_snapshot = msg_type == MessageType::MsgSnapshot || wire.snapshot.is_none();
    if !only_append || !only_snapshot {
        return Err(WireError::UnexpectedField(wire.msg_type));
    }
    let mut message = Message::default();
    message.msg_type = msg_type;
    message.to = wire.to;
    message.from = wire.from;
    message.term = wire.term;
    message.log_term = wire.log_term;
    message.index = wire.index;
    message.entries = entries_from_wire(wire.entries, wire.index, wire.term)?.into();
    message.commit = wire.commit;
    message.commit_term = wire.commit_term;
    if let Some(snapshot) = wire.snapshot {
        message.set_snapshot(snapshot_from_wire(snapshot)?);
    }
    message.request_snapshot = wire.request_snapshot;
    message.reject = wire.reject;
    message.reject_hint = wire.reject_hint;
    message.context = wire.context;
    message.deprecated_priority = wire.deprecated_priority;
    message.priority = wire.priority;
    Ok(message)
}

fn peer_type(value: i32) -> Result<MessageType, WireError> {
    use MessageType::*;
    match MessageType::from_i32(value).ok_or(WireError::UnknownType(value))? {
        MsgHup | MsgBeat | MsgPropose | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum
        | MsgTransferLeader | MsgReadIndex | MsgReadIndexResp => Err(WireError::NotForPeers(value)),
        known => Ok(known),
    }
}

fn entries_from_wire(
    wire: Vec<proto::RaftEntry>,
    after_index: u64,
    term_max: u64,
) -> Result<Vec<Entry>, WireError> {
    if wire.len() > ENTRIES_MAX {
        return Err(WireError::TooManyEntries(wire.len()));
    }
    let bytes = wire.iter().fold(0usize, |sum, entry| sum.saturating_add(entry.data.len()));
    limit("entries", bytes, MESSAGE_DATA_BYTES_MAX)?;
    let mut last = (after_index, 1);
    let mut entries = Vec::with_capacity(wire.len());
    for entry in wire {
        let (index, term) = (entry.index, entry.term);
        if last.0.checked_add(1) != Some(index) || term < last.1 || term > term_max {
            return Err(WireError::EntryOrder { index, term });
        }
        last = (index, term);
        entries.push(entry_from_wire(entry)?);
    }
    Ok(entries)
}

pub fn entry_to_wire(entry: Entry) -> proto::RaftEntry {
    proto::RaftEntry {
        entry_type: entry.entry_type.value(),
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
        sync_log: entry.sync_log,
    }
}

pub fn entry_from_wire(wire: proto::RaftEntry) -> Result<Entry, WireError> {
    limit("entry", wire.data.len(), ENTRY_BYTES_MAX)?;
    limit("entry context", wire.context.len(), CONTEXT_BYTES_MAX)?;
    let mut entry = Entry::default();
    entry.entry_type =
        EntryType::from_i32(wire.entry_type).ok_or(WireError::UnknownEntryType(wire.entry_type))?;
    entry.term = wire.term;
    entry.index = wire.index;
    entry.data = wire.data;
    entry.context = wire.context;
    entry.sync_log = wire.sync_log;
    Ok(entry)
}

pub fn snapshot_to_wire(mut snapshot: Snapshot) -> proto::RaftSnapshot {
    let metadata = snapshot.metadata.take().map(|metadata| proto::SnapshotMetadata {
        conf_state: metadata.conf_state.into_option().map(conf_state_to_wire),
        index: metadata.index,
        term: metadata.term,
    });
    proto::RaftSnapshot { data: snapshot.data, metadata }
}

pub fn snapshot_from_wire(wire: proto::RaftSnapshot) -> Result<Snapshot, WireError> {
    limit("snapshot", wire.data.len(), SNAPSHOT_BYTES_MAX)?;
    let mut snapshot = Snapshot::default();
    snapshot.data = wire.data;
    if let Some(wire) = wire.metadata {
        let mut metadata = SnapshotMetadata::default();
        metadata.index = wire.index;
        metadata.term = wire.term;
        if let Some(conf_state) = wire.conf_state {
            metadata.set_conf_state(conf_state_from_wire(conf_state)?);
        }
        snapshot.set_metadata(metadata);
    }
    Ok(snapshot)
}

pub fn conf_state_to_wire(conf_state: ConfState) -> proto::ConfState {
    proto::ConfState {
        voters: conf_state.voters,
        learners: conf_state.learners,
        voters_outgoing: conf_state.voters_outgoing,
        learners_next: conf_state.learners_next,
        auto_leave: conf_state.auto_leave,
    }
}

pub fn conf_state_from_wire(wire: proto::ConfState) -> Result<ConfState, WireError> {
    for list in [&wire.voters, &wire.learners, &wire.voters_outgoing, &wire.learners_next] {
        if list.len() > MEMBERS_MAX {
            return Err(WireError::TooManyMembers(list.len()));
        }
    }
    let mut conf_state = ConfState::default();
    conf_state.voters = wire.voters;
    conf_state.learners = wire.learners;
    conf_state.voters_outgoing = wire.voters_outgoing;
    conf_state.learners_next = wire.learners_next;
    conf_state.auto_leave = wire.auto_leave;
    Ok(conf_state)
}

pub fn hard_state_to_wire(hard_state: &HardState) -> proto::HardState {
    proto::HardState { term: hard_state.term, vote: hard_state.vote, commit: hard_state.commit }
}

pub fn hard_state_from_wire(wire: proto::HardState) -> HardState {
    let mut hard_state = HardState::default();
    hard_state.term = wire.term;
    hard_state.vote = wire.vote;
    hard_state.commit = wire.commit;
    hard_state
}

/// The context of a read.
pub(crate) fn read_context(ctx: u64) -> Bytes {
    Bytes::copy_from_slice(&ctx.to_be_bytes())
}

/// `None` when it is not one of ours.
pub(crate) fn parse_read_context(context: &[u8]) -> Option<u64> {
    context.try_into().ok().map(u64::from_be_bytes)
}

fn limit(what: &'static str, bytes: usize, bytes_max: usize) -> Result<(), WireError> {
    if bytes > bytes_max { Err(WireError::TooLarge { what, bytes }) } else { Ok(()) }
}
