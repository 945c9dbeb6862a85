//! What a failed call to a node means for its content: was it refused, was it provably not processed, or is that unknown.
use carillon_proto::errors;
use carillon_proto::google::rpc::Status as RpcStatus;
use carillon_proto::public::ErrorReason;
use tonic::{Code, Status};

#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// A final answer.
    Refused(RpcStatus),
    /// Nothing of it took effect; the word is the cause, for metrics.
    NotProcessed(&'static str),
    /// It may have taken effect.
    Uncertain,
    /// The call broke off after the node may have seen it: it may have taken effect, and it may be what broke the node.
    Broken,
}

/// A call failed with `status`. `sent` = the node can have seen the request.
pub fn of_status(status: &Status, sent: bool) -> Verdict {
    match errors::reason_of(status) {
        Some(ErrorReason::NotLeader) => return Verdict::NotProcessed("not_leader"),
        Some(ErrorReason::PartitionUnavailable) => return Verdict::Uncertain,
        Some(_) => return Verdict::Refused(errors::to_rpc(status)),
        None => {}
    }
    if !sent {
        return Verdict::NotProcessed("unsent");
    }
    match status.code() {
        // The transport or the service refused the call before any handler saw it: ours to repair, not the caller's.
        Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::InvalidArgument
        | Code::OutOfRange => {
            tracing::error!(code = ?status.code(), "a node refuses this router");
            Verdict::Refused(errors::to_rpc(&refused_router()))
        }
        _ => Verdict::Broken,
    }
}

/// A call was given up without an answer.
pub fn of_silence(sent: bool) -> Verdict {
    if sent { Verdict::Uncertain } else { Verdict::NotProcessed("unsent") }
}

/// What the error of a single item means for it.
pub fn of_item(error: RpcStatus) -> Verdict {
    if error.code != Code::Unavailable as i32 && error.code != Code::NotFound as i32 {
        return Verdict::Refused(error);
    }
    match errors::reason_of(&errors::from_rpc(&error)) {
        Some(ErrorReason::NotLeader) => Verdict::NotProcessed("not_leader"),
        // The map has the practice, so the meta group has committed it and this node is about to learn of it.
        Some(ErrorReason::PracticeNotFound) => Verdict::NotProcessed("practice_unknown"),
        // Nothing in it proves that the item had no effect.
        Some(ErrorReason::PartitionUnavailable) => Verdict::Uncertain,
        _ => Verdict::Refused(error),
    }
}

/// A node answered something that is no answer.
pub fn refused_router() -> Status {
    errors::status(ErrorReason::Internal, "a node refused the router")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_have_taken_effect_is_called_not_processed() {
        let broken = Status::unavailable("broken pipe");
        assert_eq!(of_status(&broken, true), Verdict::Broken);
        assert_eq!(of_status(&broken, false), Verdict::NotProcessed("unsent"));
        assert_eq!(of_status(&Status::cancelled("timeout expired"), true), Verdict::Broken);
        assert_eq!(of_status(&Status::unknown("h2"), true), Verdict::Broken);
        let not_leader = errors::status(ErrorReason::NotLeader, "");
        assert_eq!(of_status(&not_leader, true), Verdict::NotProcessed("not_leader"));
        let lost = errors::status(ErrorReason::PartitionUnavailable, "");
        assert_eq!(of_status(&lost, true), Verdict::Uncertain);
        assert_eq!(
            (of_silence(true), of_silence(false)),
            (Verdict::Uncertain, Verdict::NotProcessed("unsent"))
        );
    }

    #[test]
    fn items_are_repeated_only_when_they_had_no_effect() {
        let of = |reason| of_item(errors::to_rpc(&errors::status(reason, "")));
        assert_eq!(of(ErrorReason::NotLeader), Verdict::NotProcessed("not_leader"));
        assert_eq!(of(ErrorReason::PracticeNotFound), Verdict::NotProcessed("practice_unknown"));
        assert_eq!(of(ErrorReason::PartitionUnavailable), Verdict::Uncertain);
        for reason in
            [ErrorReason::MessageNotFound, ErrorReason::Overloaded, ErrorReason::IdempotencyKeyReused]
        {
            assert!(matches!(of(reason), Verdict::Refused(_)), "{reason:?}");
        }
    }

    #[test]
    fn refusals_pass_and_foreign_ones_become_internal() {
        let full = errors::status(ErrorReason::StorageFull, "");
        assert_eq!(of_status(&full, true), Verdict::Refused(errors::to_rpc(&full)));
        let Verdict::Refused(refusal) = of_status(&Status::permission_denied("no"), true) else {
            panic!("it is final")
        };
        assert_eq!(errors::reason_of(&errors::from_rpc(&refusal)), Some(ErrorReason::Internal));
    }
}
