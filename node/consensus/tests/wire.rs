//! The mirror of eraftpb is exact, bounded, and closed to what peers may not send.
#![allow(clippy::field_reassign_with_default)] // generated eraftpb structs
use bytes::Bytes;
use carillon_consensus::wire::{self, WireError};
use carillon_proto::internal as proto;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use protobuf::{Message as _, ProtobufEnum as _};
use raft::eraftpb::{
    ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
};

const FOR_PEERS: [MessageType; 10] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

prop_compose! {
    fn conf_states()(
        voters in vec(any::<u64>(), 0..5),
        learners in vec(any::<u64>(), 0..5),
        outgoing in vec(any::<u64>(), 0..5),
        next in vec(any::<u64>(), 0..5),
        auto_leave in any::<bool>(),
    ) -> ConfState {
        let mut state = ConfState::default();
        state.voters = voters;
        state.learners = learners;
        state.voters_outgoing = outgoing;
        state.learners_next = next;
        state.auto_leave = auto_leave;
        state
    }
}

prop_compose! {
    fn snapshots()(
        conf_state in proptest::option::of(conf_states()),
        index in any::<u64>(),
        term in any::<u64>(),
        data in bytes(200),
        metadata in any::<bool>(),
    ) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.data = data;
        if metadata {
            let mut m = SnapshotMetadata::default();
            m.index = index;
            m.term = term;
            if let Some(conf_state) = conf_state {
                m.set_conf_state(conf_state);
            }
            snapshot.set_metadata(m);
        }
        snapshot
    }
}

prop_compose! {
    /// Consecutive from `after + 1`, terms rising up to the message's.
    fn entries(after: u64, term: u64)(
        parts in vec((0..3i32, any::<u64>(), bytes(300), bytes(64), any::<bool>()), 0..8),
    ) -> Vec<Entry> {
        let mut terms: Vec<u64> = parts.iter().map(|p| p.1 % term + 1).collect();
        terms.sort_unstable();
        let entry = |(n, (kind, _, data, context, sync_log)): (usize, (i32, u64, Bytes, Bytes, bool))| {
            let mut e = Entry::default();
            e.entry_type = EntryType::from_i32(kind).unwrap();
            e.index = after + 1 + n as u64;
            e.term = terms[n];
            e.data = data;
            e.context = context;
            e.sync_log = sync_log;
            e
        };
        parts.into_iter().enumerate().map(entry).collect()
    }
}

fn messages() -> impl Strategy<Value = Message> {
    let base = (0..FOR_PEERS.len(), 1..u64::MAX, 0..u64::MAX - 100);
    base.prop_flat_map(|(kind, term, index)| {
        let numbers = vec(any::<u64>(), 8);
        let rest = (numbers, any::<bool>(), any::<i64>(), bytes(64));
        (Just((FOR_PEERS[kind], term, index)), rest, entries(index, term), snapshots())
    })
    .prop_map(|((kind, term, index), (n, reject, priority, context), entries, snapshot)| {
        let mut m = Message::default();
        m.msg_type = kind;
        (m.term, m.index) = (term, index);
        (m.to, m.from, m.log_term, m.commit) = (n[0], n[1], n[2], n[3]);
        (m.commit_term, m.request_snapshot, m.reject_hint) = (n[4], n[5], n[6]);
        (m.reject, m.priority, m.deprecated_priority) = (reject, priority, n[7]);
        m.context = context;
        if kind == MessageType::MsgAppend {
            m.entries = entries.into();
        }
        if kind == MessageType::MsgSnapshot {
            m.set_snapshot(snapshot);
        }
        m
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    /// rust-protobuf reads the same from the bytes: the mirror has the same field numbers and types.
    #[test]
    fn messages_round_trip(message in messages()) {
        let wire = wire::message_to_wire(message.clone());
        let mut parsed = Message::default();
        parsed.merge_from_bytes(&wire.encode_to_vec()).unwrap();
        prop_assert_eq!(&parsed, &message);
        let received = proto::RaftMessage::decode(wire.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(wire::message_from_wire(received).unwrap(), message);
    }

    #[test]
    fn conf_and_hard_states_round_trip(conf in conf_states(), term in any::<u64>(), vote in any::<u64>(), commit in any::<u64>()) {
        prop_assert_eq!(wire::conf_state_from_wire(wire::conf_state_to_wire(conf.clone())).unwrap(), conf);
        let mut hard = HardState::default();
        (hard.term, hard.vote, hard.commit) = (term, vote, commit);
        prop_assert_eq!(wire::hard_state_from_wire(wire::hard_state_to_wire(&hard)), hard);
    }

    /// Whatever bytes a peer sends: an error or a message, never a panic.
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..300)) {
        if let Ok(message) = proto::RaftMessage::decode(bytes.as_slice()) {
            let _ = wire::message_from_wire(message);
        }
    }
}

fn message(msg_type: MessageType) -> proto::RaftMessage {
    proto::RaftMessage { msg_type: msg_type as i32, from: 2, to: 1, term: 5, ..Default::default() }
}

fn entry(index: u64, term: u64) -> proto::RaftEntry {
    proto::RaftEntry { index, term, ..Default::default() }
}

fn append(entries: Vec<proto::RaftEntry>) -> Result<Message, WireError> {
    wire::message_from_wire(proto::RaftMessage { index: 10, entries, ..message(MessageType::MsgAppend) })
}

#[test]
fn entry_data_is_not_copied() {
    let data = Bytes::from(vec![1u8; 4096]);
    let mut e = Entry::default();
    e.data = data.clone();
    let wire = wire::entry_to_wire(e);
    assert_eq!(wire.data.as_ptr(), data.as_ptr());
    assert_eq!(wire::entry_from_wire(wire).unwrap().data.as_ptr(), data.as_ptr());
}

#[test]
fn only_types_for_peers_are_taken() {
    for value in -1..=30 {
        let known = MessageType::from_i32(value);
        let expected = match known {
            None => Err(WireError::UnknownType(value)),
            Some(t) if FOR_PEERS.contains(&t) => Ok(t),
            Some(_) => Err(WireError::NotForPeers(value)),
        };
        let wire = proto::RaftMessage { msg_type: value, term: 1, ..Default::default() };
        assert_eq!(wire::message_from_wire(wire).map(|m| m.msg_type), expected);
    }
}

#[test]
fn a_message_without_a_term_would_pass_for_a_local_one() {
    let wire = proto::RaftMessage { term: 0, ..message(MessageType::MsgHeartbeat) };
    assert_eq!(wire::message_from_wire(wire), Err(WireError::NoTerm));
}

#[test]
fn entries_must_follow_each_other() {
    assert!(append(vec![entry(11, 3), entry(12, 3), entry(13, 5)]).is_ok());
    for (bad, index, term) in [
        (vec![entry(12, 3)], 12, 3),
        (vec![entry(11, 3), entry(13, 3)], 13, 3),
        (vec![entry(11, 3), entry(12, 2)], 12, 2),
        (vec![entry(11, 6)], 11, 6),
        (vec![entry(11, 0)], 11, 0),
    ] {
        assert_eq!(append(bad), Err(WireError::EntryOrder { index, term }));
    }
    let last =
        proto::RaftMessage { index: u64::MAX, entries: vec![entry(0, 1)], ..message(MessageType::MsgAppend) };
    assert_eq!(wire::message_from_wire(last), Err(WireError::EntryOrder { index: 0, term: 1 }));
}

#[test]
fn sizes_and_places_are_limited() {
    let unknown = proto::RaftEntry { entry_type: 7, ..entry(11, 1) };
    assert_eq!(append(vec![unknown]), Err(WireError::UnknownEntryType(7)));
    let many: Vec<_> = (0..=wire::ENTRIES_MAX as u64).map(|n| entry(11 + n, 1)).collect();
    assert_eq!(append(many), Err(WireError::TooManyEntries(wire::ENTRIES_MAX + 1)));
    let data = Bytes::from(vec![0; wire::ENTRY_BYTES_MAX + 1]);
    let large = append(vec![proto::RaftEntry { data: data.clone(), ..entry(11, 1) }]);
    assert!(matches!(large, Err(WireError::TooLarge { what: "entry", .. })));
    let full = data.slice(..wire::ENTRY_BYTES_MAX);
    let three = (11..14).map(|n| proto::RaftEntry { data: full.clone(), ..entry(n, 1) }).collect();
    assert!(matches!(append(three), Err(WireError::TooLarge { what: "entries", .. })));
    let context = Bytes::from(vec![0; wire::CONTEXT_BYTES_MAX + 1]);
    let wire = proto::RaftMessage { context, ..message(MessageType::MsgHeartbeat) };
    assert!(matches!(wire::message_from_wire(wire), Err(WireError::TooLarge { what: "context", .. })));
    let wire = proto::RaftMessage { entries: vec![entry(1, 1)], ..message(MessageType::MsgHeartbeat) };
    assert!(matches!(wire::message_from_wire(wire), Err(WireError::UnexpectedField(_))));
    let wire = proto::RaftMessage { snapshot: Some(Default::default()), ..message(MessageType::MsgAppend) };
    assert!(matches!(wire::message_from_wire(wire), Err(WireError::UnexpectedField(_))));
    let crowd = proto::ConfState { voters: vec![1; wire::MEMBERS_MAX + 1], ..Default::default() };
    assert_eq!(wire::conf_state_from_wire(crowd), Err(WireError::TooManyMembers(wire::MEMBERS_MAX + 1)));
}
