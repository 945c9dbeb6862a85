//! Feature levels (D16): what every program in the cluster understands.
//!
//! The cluster's level is replicated and only rises, and only to what every present node has registered. A command of
//! a higher level is refused before it takes effect, so a node of an older version never meets one it cannot apply.
use carillon_proto::internal::CarrierRecord;
use carillon_proto::internal::meta_command::Kind;

/// Highest level that this program understands.
pub const LEVEL: u32 = LEVEL_DELIVERY;
/// What a cluster starts with.
pub const LEVEL_BASE: u32 = 1;
/// Nodes join and leave, replicas move, shares of lanes change.
pub const LEVEL_MEMBERSHIP: u32 = 2;
/// Restore of backups, quarantine.
pub const LEVEL_RESTORE: u32 = 3;
/// Partitions know opt-outs (`OptOut`, `Accept.indexed_by_recipient`). Partitions do not know the level themselves: whoever
/// proposes looks at the meta group, which may be behind and never ahead of the truth.
pub const LEVEL_OPT_OUT: u32 = 4;
/// The delivery engine: leases and stacked limits, time rules, changes by external reference, routing, fuses. One level for
/// all of it, because no program was ever released with a part of it.
pub const LEVEL_DELIVERY: u32 = 5;

/// An account that older programs would store without the half of it.
fn beyond_smpp(record: &CarrierRecord) -> bool {
    record.twilio.is_some() || !record.contract.is_empty() || record.baa != 0
}

/// The level that a command needs.
pub fn needed(kind: &Kind) -> u32 {
    match kind {
        Kind::CreateToken(_)
        | Kind::JoinNode(_)
        | Kind::SetNodeStatus(_)
        | Kind::ChangeReplicas(_)
        | Kind::SetShares(_)
        | Kind::SettleShares(_) => LEVEL_MEMBERSHIP,
        Kind::PutLimit(_) | Kind::DropLimit(_) | Kind::SetLane(_) | Kind::EaseLane(_) | Kind::TakeCap(_) => {
            LEVEL_DELIVERY
        }
        Kind::RestoreMeta(command)
            if command.rows.iter().flat_map(|rows| &rows.carriers).any(beyond_smpp) =>
        {
            LEVEL_DELIVERY
        }
        Kind::PutHours(_) => LEVEL_DELIVERY,
        Kind::PutPolicy(_) | Kind::PausePractice(_) => LEVEL_DELIVERY,
        Kind::PutPractice(c) if c.weight > 0 => LEVEL_DELIVERY,
        Kind::BeginRestore(_) | Kind::RestoreMeta(_) | Kind::PartitionRestored(_) => LEVEL_RESTORE,
        Kind::SetBreaker(_) | Kind::PutRoute(_) | Kind::DropRoute(_) => LEVEL_DELIVERY,
        Kind::PutSender(_) | Kind::DropSender(_) => LEVEL_DELIVERY,
        Kind::PutCarrier(command) if command.carrier.as_ref().is_some_and(beyond_smpp) => LEVEL_DELIVERY,
        Kind::Bootstrap(_)
        | Kind::PutPractice(_)
        | Kind::PutCarrier(_)
        | Kind::PutDataKey(_)
        | Kind::RegisterNode(_)
        | Kind::RaiseLevel(_) => LEVEL_BASE,
    }
}
