//! What can happen in the world, and to whom.
use super::carrier::{PartAnswer, Submit};
use super::client::{Answer, Request};
use super::wing::PeerCall;
use carillon_consensus::SnapshotFetch;
use carillon_proto::internal::RaftMessage;

/// What a frame says of its sender.
#[derive(Debug, Clone, Copy)]
pub struct FrameHead {
    pub store_id: u64,
    pub near_full: bool,
    /// Its wall clock, uncorrected.
    pub clock_ms: u64,
}

/// Something that will happen. `epoch` names the incarnation of a node: what was meant for an earlier one is void.
#[derive(Debug)]
pub enum Event {
    Tick {
        node: usize,
        epoch: u64,
    },
    Raft {
        from: usize,
        to: usize,
        head: FrameHead,
        group: u32,
        message: Box<RaftMessage>,
    },
    /// A turn of the shard: groups that took messages are polled.
    Turn {
        node: usize,
        epoch: u64,
    },
    Exported {
        node: usize,
        epoch: u64,
        group: u32,
    },
    Fetched {
        node: usize,
        epoch: u64,
        group: u32,
        fetch: SnapshotFetch,
    },
    DiskDone {
        node: usize,
        epoch: u64,
    },
    Apply {
        node: usize,
        epoch: u64,
        group: u32,
    },
    Flush {
        node: usize,
        epoch: u64,
    },
    FlushDone {
        node: usize,
        epoch: u64,
        group: u32,
        batches: usize,
    },
    Restart {
        node: usize,
    },
    /// A look at the volume.
    Space {
        node: usize,
        epoch: u64,
    },
    /// A look for what was kept long enough, and the next piece of it.
    Retention {
        node: usize,
        epoch: u64,
    },
    RetireMore {
        node: usize,
        epoch: u64,
        partition: u32,
    },
    Steward {
        node: usize,
        epoch: u64,
    },
    StewardLooked {
        node: usize,
        epoch: u64,
        round: u64,
    },
    Decide {
        node: usize,
        epoch: u64,
    },
    Gate {
        node: usize,
        epoch: u64,
        carrier_no: u32,
    },
    LeaseAsk {
        node: usize,
        epoch: u64,
    },
    SendTimeout {
        node: usize,
        epoch: u64,
        send_no: u64,
        part: u32,
    },
    CarrierGets {
        carrier: usize,
        submit: Box<Submit>,
    },
    CarrierAnswer {
        node: usize,
        epoch: u64,
        answer: PartAnswer,
    },
    Receipt {
        carrier: usize,
        receipt_no: u64,
    },
    ReceiptLook {
        node: usize,
        epoch: u64,
        report_no: u64,
    },
    FactsRetry {
        node: usize,
        epoch: u64,
        partition: u32,
    },
    Peer {
        from: usize,
        to: usize,
        call: Box<PeerCall>,
    },
    Client,
    Call {
        op: u64,
    },
    CallArrives {
        node: usize,
        op: u64,
        call_no: u32,
        request: Box<Request>,
    },
    CallAnswer {
        op: u64,
        call_no: u32,
        node: usize,
        answer: Box<Answer>,
    },
    CallTimeout {
        op: u64,
        call_no: u32,
    },
    MapNews {
        partition: u32,
        leader: u64,
        term: u64,
    },
    Operator,
    Backup {
        no: u64,
    },
    /// A new cluster takes the place of one that was lost.
    Rebuild,
    /// What is in quarantine is decided on.
    Quarantine,
    Fault(usize),
    FaultEnds(usize),
}

impl Event {
    /// The node that handles an event.
    pub fn node(&self) -> Option<usize> {
        match self {
            Self::Tick { node, .. }
            | Self::Turn { node, .. }
            | Self::Exported { node, .. }
            | Self::Fetched { node, .. }
            | Self::DiskDone { node, .. }
            | Self::Apply { node, .. }
            | Self::Flush { node, .. }
            | Self::FlushDone { node, .. }
            | Self::Decide { node, .. }
            | Self::Gate { node, .. }
            | Self::LeaseAsk { node, .. }
            | Self::SendTimeout { node, .. }
            | Self::CarrierAnswer { node, .. }
            | Self::ReceiptLook { node, .. }
            | Self::FactsRetry { node, .. }
            | Self::Space { node, .. }
            | Self::Retention { node, .. }
            | Self::RetireMore { node, .. }
            | Self::Steward { node, .. }
            | Self::StewardLooked { node, .. }
            | Self::CallArrives { node, .. } => Some(*node),
            Self::Raft { to, .. } | Self::Peer { to, .. } => Some(*to),
            _ => None,
        }
    }

    /// It belongs to carriers, callers, the operator or to fate.
    pub fn is_outside_of_nodes(&self) -> bool {
        matches!(
            self,
            Self::CarrierGets { .. }
                | Self::Receipt { .. }
                | Self::Client
                | Self::Call { .. }
                | Self::CallTimeout { .. }
                | Self::Operator
                | Self::Fault(_)
                | Self::FaultEnds(_)
        )
    }
}
