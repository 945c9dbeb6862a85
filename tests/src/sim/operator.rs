//! The operator: creates the cluster, its carriers and practices through the meta group, one command after the other,
//! and repeats what got no answer.
use super::client::{PRACTICES, TENANT, practice_name};
use super::node::Waiter;
use super::plan::Plan;
use super::world::{Event, World};
use carillon_proto::internal::{
    Bootstrap, CarrierRecord, MetaCommand, MetaNode, PutCarrier, PutPractice, SmppSettings,
    meta_command::Kind,
};
use prost::Message as _;

const EVERY_MS: u64 = 150;
const PATIENCE_MS: u64 = 2_000;

/// See the module documentation.
pub struct Operator {
    steps: Vec<MetaCommand>,
    step: usize,
    asked_ms: Option<u64>,
}

impl Operator {
    pub fn new(plan: &Plan) -> Self {
        let node = |id: u64| MetaNode {
            node_id: id,
            peer_address: format!("node-{id}:7000"),
            ..MetaNode::default()
        };
        let bootstrap = Bootstrap {
            cluster_id: "sim".to_owned(),
            partitions: plan.partitions,
            nodes: (1..=plan.nodes as u64).map(node).collect(),
        };
        let mut kinds = vec![Kind::Bootstrap(bootstrap)];
        for (number, limit) in plan.limits.iter().enumerate() {
            kinds.push(Kind::PutCarrier(PutCarrier { carrier: Some(carrier(number, *limit)) }));
        }
        for practice in 0..PRACTICES {
            kinds.push(Kind::PutPractice(PutPractice {
                tenant: TENANT.to_owned(),
                practice: practice_name(practice),
                time_zone: "Europe/Berlin".to_owned(),
                carrier: carrier_name(practice as usize % plan.limits.len()),
            }));
        }
        let steps = kinds.into_iter().map(|kind| MetaCommand { kind: Some(kind) }).collect();
        Self { steps, step: 0, asked_ms: None }
    }

    pub fn is_done(&self) -> bool {
        self.step == self.steps.len()
    }

    pub fn answered(&mut self, step: usize, done: bool) {
        if step == self.step {
            self.asked_ms = None;
            self.step += usize::from(done);
        }
    }
}

fn carrier_name(number: usize) -> String {
    format!("carrier-{number}")
}

fn carrier(number: usize, limit: u32) -> CarrierRecord {
    CarrierRecord {
        carrier_no: 0,
        name: carrier_name(number),
        smpp: Some(SmppSettings {
            address: "carrier:2775".to_owned(),
            system_id: "carillon".to_owned(),
            password_secret: "password".to_owned(),
            binds_per_node: 2,
            window: 10,
            response_timeout_ms: 1_500,
            source_address: "12345".to_owned(),
            ..Default::default()
        }),
        segments_per_second: limit,
    }
}

impl World {
    pub fn operate(&mut self) {
        if self.operator.is_done() {
            return;
        }
        self.at(EVERY_MS, Event::Operator);
        if self.operator.asked_ms.is_some_and(|asked| self.now_ms < asked + PATIENCE_MS) {
            return;
        }
        let Some(node) = (0..self.plan.nodes).find(|n| self.nodes[*n].up && self.nodes[*n].leads(0)) else {
            return;
        };
        let step = self.operator.step;
        self.operator.asked_ms = Some(self.now_ms);
        let command = self.operator.steps[step].encode_to_vec();
        self.propose_encoded(node, 0, vec![command.into()], Waiter::Operator { step });
    }
}
