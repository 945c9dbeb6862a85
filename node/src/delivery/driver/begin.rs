//! Beginning attempts: what the scheduler chose is proposed, and what comes back as permits is sent.
use super::*;
use crate::delivery::sending::Times;
use carillon_core::Permit;
use carillon_core::meta::senders;
use carillon_delivery::PRIORITIES;

impl Driver {
    pub(super) fn begin(&mut self, partition: u32, term: u64, list: Vec<BeginDecision>, now_ms: u64) {
        let list = match agreement::split(&self.handle, &self.lanes, partition, list, now_ms) {
            agreement::Split::All(list) => list,
            agreement::Split::Some { list, held } => {
                self.hold_back(partition, term, held);
                list
            }
        };
        if list.is_empty() {
            return;
        }
        let lanes = self.lanes.clone();
        let start_by_ms = |decided: &BeginDecision| {
            let left = lanes.held(decided.carrier_no).after(decided.segments.into());
            now_ms + SEND_WITHIN_MS + left.saturating_sub(self.clock.now()).as_millis() as u64
        };
        let starts: Vec<u64> = list.iter().map(start_by_ms).collect();
        let in_parts = |decided: &BeginDecision| {
            decided.segments > 1
                && lanes.get(decided.carrier_no).is_some_and(|lane| lane.record.smpp.is_some())
        };
        let named = self.handle.meta().level >= LEVEL_DELIVERY;
        let view = self.handle.meta();
        let sender_of = |decided: &BeginDecision| match named {
            true => senders::address(&view, decided.carrier_no, decided.sender_no).to_owned(),
            false => String::new(),
        };
        let node_id = self.handle.node_id();
        let practices = &mut self.practices;
        let commands = list
            .iter()
            .zip(&starts)
            .map(|(decided, start_by_ms)| {
                let begin = BeginAttempt {
                    message_id: decided.message_id.to_bytes(),
                    attempt_no: decided.attempt_no,
                    carrier_no: decided.carrier_no,
                    term,
                    send_by_ms: send_by_ms(*start_by_ms, in_parts(decided), decided.expires_at_ms),
                    node_id,
                    frequency: practices.rule(&view, decided, now_ms),
                    sender: sender_of(decided),
                    sender_no: decided.sender_no,
                };
                Command { kind: Some(Kind::BeginAttempt(begin)) }.encode_to_vec().into()
            })
            .collect();
        let (handle, sender, meta) = (self.handle.clone(), self.sender.clone(), self.meta.clone());
        self.sender.attempts.spawn(async move {
            failpoints::hit("send::before_intent");
            let answers = handle.propose(partition, commands).await.unwrap_or_default();
            let Begun { results, permits, bursts } = Begun::sort(list, starts, answers);
            if !permits.is_empty() {
                failpoints::hit("send::after_intent");
            }
            drop(sender.local.send(Local::Begun { partition, term, results }).await);
            let now_ms = clock_ms();
            for (permit, urgent, start_by_ms) in permits {
                let lane = lanes.get(permit.carrier_no);
                let times = Times { now_ms, start_by_ms };
                sender.attempts.spawn(sender.clone().run((partition, term), permit, urgent, lane, times));
            }
            if !bursts.is_empty() {
                stop_bursts(&meta, bursts).await;
            }
        });
    }
}

/// What became of a proposal.
#[derive(Default)]
struct Begun {
    results: Vec<(MessageId, BeginResult)>,
    /// With whether it is urgent and until when it may begin to leave.
    permits: Vec<(Permit, bool, u64)>,
    /// Practices and carriers at which the fuse for bursts blew.
    bursts: BTreeSet<(u32, u32)>,
}

impl Begun {
    fn sort(list: Vec<BeginDecision>, starts: Vec<u64>, answers: Vec<CommandResult>) -> Self {
        let mut begun = Self::default();
        let mut answers = answers.into_iter();
        for (decided, start_by_ms) in list.into_iter().zip(starts) {
            // Without an answer (leadership lost) nothing is sent: if it did commit, the next leader finds it.
            let result = match answers.next() {
                Some(CommandResult::Begun(permit)) => {
                    if permit.was_held {
                        metrics::counter!("carillon_hours_opened_total").increment(1);
                    }
                    begun.permits.push((*permit, decided.priority == PRIORITIES[0], start_by_ms));
                    BeginResult::Ok
                }
                Some(CommandResult::Refused(Refusal::Burst)) => {
                    begun.bursts.insert((decided.practice_no, decided.carrier_no));
                    BeginResult::Refused
                }
                _ => BeginResult::Refused,
            };
            begun.results.push((decided.message_id, result));
        }
        begun
    }
}

/// Until when the last part of a message may leave. Parts after the first wait for pauses of the lane, though not beyond the
/// expiry: a reminder of which the end comes late is worth nothing. Apply cuts it at the end of the hours.
fn send_by_ms(start_by_ms: u64, in_parts: bool, expires_at_ms: u64) -> u64 {
    let rest_ms = if in_parts { REST_WITHIN_MS } else { 0 };
    start_by_ms.max((start_by_ms + rest_ms).min(expires_at_ms))
}

/// The fuse for bursts: says it, and has the practices paused. If that fails the next refusal tries again.
async fn stop_bursts(meta: &MetaClient, bursts: BTreeSet<(u32, u32)>) {
    for (practice_no, carrier_no) in &bursts {
        metrics::counter!("carillon_fuse_trips_total", "fuse" => "burst").increment(1);
        tracing::warn!(
            practice_no,
            carrier_no,
            "one recipient gets too many messages; the practice is paused"
        );
    }
    let commands =
        bursts.into_iter().map(|(practice_no, carrier_no)| practices::pause(practice_no, carrier_no));
    match meta.propose(commands.collect()).await {
        Ok(refusals) if refusals.iter().all(String::is_empty) => {}
        answer => tracing::error!(?answer, "the practice could not be paused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_in_parts_get_more_time_and_none_beyond_their_expiry() {
        assert_eq!(send_by_ms(2_000, false, 900_000), 2_000);
        assert_eq!(send_by_ms(2_000, true, 900_000), 2_000 + REST_WITHIN_MS);
        assert_eq!(send_by_ms(2_000, true, 5_000), 5_000);
        assert_eq!(send_by_ms(2_000, true, 1_000), 2_000, "apply refuses what has expired");
    }
}
