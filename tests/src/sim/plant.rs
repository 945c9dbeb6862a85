//! Bugs that can be planted, to prove that the simulator finds them. Reachable from tests and from the `sim` binary's
//! `--plant` only; production code knows nothing of them (except for `GroupConfig::planted_batch_append`, which names
//! raft's own switch).

/// One planted bug. Most live in the simulator's copy of the glue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// Votes and acknowledgements leave before they are durable.
    AckBeforePersist,
    /// A failed sync is taken for a good one.
    IgnoreSyncError,
    /// A waiter is answered by whatever commits at its index, of any term.
    SkipTermCheck,
    /// Hard state and entries of one ready are two writes.
    HardStateApart,
    /// The vote is never written.
    VoteNotPersisted,
    /// The applied index becomes durable before the rows.
    AppliedAheadOfFlush,
    /// An attempt whose answer was lost is reported as not sent.
    ResendOnUnknown,
    /// Appends are glued together (raft's `batch_append`).
    BatchAppend,
    /// Every node takes a lane's whole limit.
    WholeShare,
    /// A share is given to its new holder before the old one gave it up: that one said so and goes on.
    ShareTwice,
    /// The grantor of leases forgets what it gave to the others.
    LeaseTwice,
    /// Opt-outs are looked up when an attempt is proposed, not when it is applied.
    StopOutsideApply,
    /// Opt-outs are proposed whatever the feature level.
    LevelIgnored,
    /// A node with an empty disk is taken for the one that it was.
    WipedComesBack,
    /// A change of the membership is put into force and never written to the log.
    MembersNotPersisted,
    /// The permission to send is used before it is committed.
    SendBeforeCommit,
    /// Repeated submits are given a new idempotency key on their way.
    KeyForgotten,
    /// The log is cut below what is durable in the state.
    CutAheadOfFlush,
    /// Idempotency keys do not travel with snapshots.
    KeyForgottenBySnapshot,
    /// A new leader keeps waiters of entries that its log has lost (a real bug, found by the simulator).
    WaitersOfOldTerms,
    /// Messages of a series have keys that do not follow from it.
    SeriesKeyForgotten,
    /// A change of an appointment is acknowledged before it is committed.
    UpdateAssumed,
    /// The end of the recipient's hours is looked at when a message is accepted, not again before it is begun.
    HoursOnlyAtAccept,
    /// Hours are computed with the offset that the zone has now, as if clocks were never changed.
    HoursByFixedOffset,
    /// Preferred leaders have a priority in elections (a real bug, found by the simulator).
    Priorities,
    /// A node believes its own wall clock, whatever its peers say.
    ClockUnbounded,
    /// Final messages are dropped at once.
    RetiredEarly,
    /// Keys go with their message, however young they are.
    KeyRetiredEarly,
    /// Keys go when their time has come, although their message is there.
    KeyBeforeMessage,
    /// A node goes on taking messages while its disk is nearly full.
    SpaceIgnored,
    /// A node that was nearly full once refuses for ever.
    FullForEver,
    /// A backup copies what any replica has, without asking the leader.
    BackupUnconfirmed,
    /// A restore forgets that the old cluster may have sent since the backup.
    GuardForgotten,
    /// "No such message" ends a receipt while the cluster is being restored (a real bug, found by the simulator).
    ReceiptsLostInRestore,
    /// A damaged entry of the log is read as if nothing was wrong.
    LogRotIgnored,
    /// The grantor forgets what it gave of stacked limits to the others.
    StackLeaseTwice,
    /// Segments need a permit of the account only.
    StackIgnored,
    /// Segments need a permit of the account's own sender, whatever sender they leave under.
    SenderIgnored,
    /// Nodes ask for a limit by what waits for its carrier, whoever needs it (a real bug, found by reading).
    DemandOfCarrier,
    /// What is taken of a daily cap is known to the leader and not to the log.
    CapForgotten,
    /// Caps of recipients are looked at when an attempt is proposed, not when it is applied.
    CapOutsideApply,
    /// All messages are of one practice, as far as the scheduler knows.
    FairnessIgnored,
    /// Every practice weighs the same.
    WeightsIgnored,
    /// Messages that should go one after the other are like all others.
    OrderIgnored,
    /// The fuse for bursts is never blown.
    BurstIgnored,
    /// A pause of a practice is not told to the scheduler.
    PauseIgnored,
    /// Contents that were accepted do not travel with snapshots.
    ContentForgottenBySnapshot,
    /// While its breaker is open a carrier that did not answer is taken for one that has nothing.
    FailoverOfUnknown,
    /// A message that leaves in one piece takes one permit, however long it is.
    PiecesApart,
    /// Limits have changed, and who waits at a gate goes by those that it once needed.
    StackKept,
}

impl Plant {
    pub const ALL: [Self; 50] = [
        Self::AckBeforePersist,
        Self::IgnoreSyncError,
        Self::SkipTermCheck,
        Self::HardStateApart,
        Self::VoteNotPersisted,
        Self::AppliedAheadOfFlush,
        Self::ResendOnUnknown,
        Self::BatchAppend,
        Self::WholeShare,
        Self::ShareTwice,
        Self::LeaseTwice,
        Self::StopOutsideApply,
        Self::LevelIgnored,
        Self::WipedComesBack,
        Self::MembersNotPersisted,
        Self::SendBeforeCommit,
        Self::KeyForgotten,
        Self::CutAheadOfFlush,
        Self::KeyForgottenBySnapshot,
        Self::WaitersOfOldTerms,
        Self::UpdateAssumed,
        Self::SeriesKeyForgotten,
        Self::HoursOnlyAtAccept,
        Self::HoursByFixedOffset,
        Self::Priorities,
        Self::ClockUnbounded,
        Self::RetiredEarly,
        Self::KeyRetiredEarly,
        Self::KeyBeforeMessage,
        Self::SpaceIgnored,
        Self::FullForEver,
        Self::BackupUnconfirmed,
        Self::GuardForgotten,
        Self::ReceiptsLostInRestore,
        Self::LogRotIgnored,
        Self::StackLeaseTwice,
        Self::StackIgnored,
        Self::SenderIgnored,
        Self::DemandOfCarrier,
        Self::CapForgotten,
        Self::CapOutsideApply,
        Self::FairnessIgnored,
        Self::WeightsIgnored,
        Self::OrderIgnored,
        Self::BurstIgnored,
        Self::PauseIgnored,
        Self::ContentForgottenBySnapshot,
        Self::FailoverOfUnknown,
        Self::PiecesApart,
        Self::StackKept,
    ];

    /// As given on a command line.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| format!("{plant:?}") == text)
    }
}
