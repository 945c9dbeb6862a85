//! Beginning attempts: what the scheduler chose is proposed, and what comes back as permits is sent.
use super::*;
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
        let send_by_ms = |decided: &BeginDecision| {
            let left = lanes.held(decided.carrier_no).after(decided.segments.into());
            now_ms + SEND_WITHIN_MS + left.saturating_sub(self.clock.now()).as_millis() as u64
        };
        let named = self.handle.meta().level >= LEVEL_DELIVERY;
        let sender_of = |decided: &BeginDecision| match lanes.get(decided.carrier_no) {
            Some(lane) if named => lane.sender().to_owned(),
            _ => String::new(),
        };
        let node_id = self.handle.node_id();
        let view = self.handle.meta();
        let practices = &mut self.practices;
        let commands = list
            .iter()
            .map(|decided| {
                let begin = BeginAttempt {
                    message_id: decided.message_id.to_bytes(),
                    attempt_no: decided.attempt_no,
                    carrier_no: decided.carrier_no,
                    term,
                    send_by_ms: send_by_ms(decided),
                    node_id,
                    frequency: practices.rule(&view, decided, now_ms),
                    sender: sender_of(decided),
                };
                Command { kind: Some(Kind::BeginAttempt(begin)) }.encode_to_vec().into()
            })
            .collect();
        let (handle, sender, meta) = (self.handle.clone(), self.sender.clone(), self.meta.clone());
        self.sender.attempts.spawn(async move {
            failpoints::hit("send::before_intent");
            let answers = handle.propose(partition, commands).await.unwrap_or_default();
            let mut answers = answers.into_iter();
            let mut results = Vec::with_capacity(list.len());
            let mut permits = Vec::with_capacity(list.len());
            let mut bursts = BTreeSet::new();
            for decided in list {
                // Without an answer (leadership lost) nothing is sent: if it did commit, the next leader finds it.
                let begun = match answers.next() {
                    Some(CommandResult::Begun(permit)) => {
                        if permit.was_held {
                            metrics::counter!("carillon_hours_opened_total").increment(1);
                        }
                        permits.push((*permit, decided.priority == PRIORITIES[0]));
                        BeginResult::Ok
                    }
                    Some(CommandResult::Refused(Refusal::Burst)) => {
                        bursts.insert((decided.practice_no, decided.carrier_no));
                        BeginResult::Refused
                    }
                    _ => BeginResult::Refused,
                };
                results.push((decided.message_id, begun));
            }
            if !permits.is_empty() {
                failpoints::hit("send::after_intent");
            }
            drop(sender.local.send(Local::Begun { partition, term, results }).await);
            let now_ms = clock_ms();
            for (permit, urgent) in permits {
                let lane = lanes.get(permit.carrier_no);
                sender.attempts.spawn(sender.clone().run((partition, term), permit, urgent, lane, now_ms));
            }
            if !bursts.is_empty() {
                stop_bursts(&meta, bursts).await;
            }
        });
    }
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
