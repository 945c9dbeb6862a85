//! Breakers, routes and failover with a second simulated carrier.
use crate::appointments::explain;
use carillon_ctl::lab::CARRIER;
use carillon_loadtest::carrier::Carrier;
use carillon_proto::admin::GetForecastRequest;
use carillon_proto::internal::{BreakerMode, CarrierRecord, RouteRecord, RouteTarget};
use carillon_proto::public::{MessageClass, MessageSpec, MessageState, MessageView, WaitingReason};
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, program, until};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Segments per second of each carrier.
pub const LIMIT: u32 = 60;
const SOON: Duration = Duration::from_secs(60);
const SPARE: &str = "spare";

/// A second carrier, registered under the name `spare`; it ends with the value.
pub struct Spare {
    child: Child,
    pub carrier: Carrier,
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.stop();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn record(rig: &Rig, name: &str) -> CarrierRecord {
    let status = rig.status(1).await.unwrap();
    let found = status.carriers.into_iter().filter_map(|c| c.carrier).find(|c| c.name == name);
    found.unwrap_or_else(|| panic!("no carrier {name}"))
}

impl Spare {
    pub async fn start(rig: &Rig) -> Self {
        let (port, http) = (free_port(), free_port());
        let main = record(rig, CARRIER).await;
        let smpp = main.smpp.clone().unwrap();
        let secret =
            std::fs::read_to_string(rig.lab.dir().join("secrets").join(&smpp.password_secret)).unwrap();
        let child = Command::new(program("carillon-loadtest"))
            .arg("smsc")
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--http-port={http}"))
            .arg(format!("--account={}:{}", smpp.system_id, secret.trim()))
            .arg(format!("--limit={LIMIT}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let carrier = Carrier::new(rig.http.clone(), &format!("127.0.0.1:{http}"));
        let spare = Self { child, carrier };
        until("the second carrier answers", SOON, async || {
            spare.carrier.stats().await.map_err(|e| e.to_string())
        })
        .await;
        let smpp = carillon_proto::internal::SmppSettings { address: format!("127.0.0.1:{port}"), ..smpp };
        let record = CarrierRecord { carrier_no: 0, name: SPARE.to_owned(), smpp: Some(smpp), ..main };
        rig.lab.admin(1).unwrap().put_carrier(record).await.unwrap();
        until("every node is bound to it", SOON, async || {
            for node in rig.lab.node_ids() {
                let status = rig.status(node).await?;
                let found =
                    status.carriers.iter().find(|c| c.carrier.as_ref().is_some_and(|r| r.name == SPARE));
                if found.is_none_or(|c| c.binds_up == 0) {
                    return Err(format!("node {node} is not"));
                }
            }
            Ok(())
        })
        .await;
        spare
    }

    pub fn stop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

pub async fn route(rig: &Rig, name: &str, class: i32, targets: &[(&str, u32)]) {
    let target = |(carrier, weight): &(&str, u32)| {
        let (carrier, sender) = carrier.split_once(' ').unwrap_or((carrier, ""));
        RouteTarget { carrier: carrier.to_owned(), weight: *weight, sender: sender.to_owned() }
    };
    let classes = if class == 0 { Vec::new() } else { vec![class] };
    let targets = targets.iter().map(target).collect();
    let record =
        RouteRecord { name: name.to_owned(), rank: class as u32, classes, targets, ..Default::default() };
    // The level of the cluster rises a little after its start.
    until("the route is put", SOON, async || {
        rig.lab.admin(1).unwrap().put_route(record.clone()).await.map_err(|e| e.to_string())
    })
    .await;
    let mut latest = 0;
    for node in rig.lab.node_ids() {
        until("every node knows the route", SOON, async || {
            let routes = rig.lab.admin(node).unwrap().routes().await.map_err(|e| e.to_string())?;
            routes
                .iter()
                .find(|r| r.name == name)
                .map(|r| latest = r.route_no)
                .ok_or_else(|| "not yet".to_owned())
        })
        .await;
    }
    assert!(latest > 0);
}

async fn set_breaker(rig: &Rig, carrier: &str, mode: BreakerMode, state: &str) {
    rig.lab.admin(1).unwrap().set_breaker(carrier, mode).await.unwrap();
    for node in rig.lab.node_ids() {
        until("the breaker is as the operator wants", SOON, async || {
            let breakers = rig.lab.admin(node).unwrap().breakers().await.map_err(|e| e.to_string())?;
            let found = breakers.iter().find(|b| b.carrier == carrier).ok_or("no breaker")?;
            if found.state == state && found.mode() == mode { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
}

/// Messages of one practice, due now.
fn messages(rig: &Rig, name: &str, count: usize) -> Vec<MessageSpec> {
    (0..count).map(|at| spec(&rig.practices[1], &format!("{name}-{at}"), at)).collect()
}

pub async fn opened(rig: &Rig) {
    set_breaker(rig, CARRIER, BreakerMode::Open, "open").await;
    let held = rig.submit(messages(rig, "opened", 20)).await;
    let last = &held.last().unwrap().message_id;
    let told = explain(rig, last).await;
    assert_eq!(told.holds[0].reason(), WaitingReason::BreakerOpen);
    assert_eq!(told.message.unwrap().waiting_reason(), WaitingReason::BreakerOpen);
    let read = rig.get(last, MessageView::Basic).await.unwrap();
    assert_eq!(read.waiting_reason(), WaitingReason::BreakerOpen);
    assert_eq!(told.binding_limit, format!("carrier {CARRIER}: opened by an operator"));
    assert_eq!((told.estimated_send_time, told.will_expire), (None, false), "nobody can tell");
    let leader = rig.leader_of(&rig.practices[1]).await;
    let admin = rig.lab.admin(leader).unwrap();
    let ask = async |limit: u32| {
        let request = GetForecastRequest {
            carrier: CARRIER.to_owned(),
            segments_per_second: limit,
            late_limit: 5,
            page_token: String::new(),
        };
        admin.forecast(request).await.unwrap().lanes.remove(0)
    };
    let now = ask(0).await;
    assert_eq!((now.due_messages, now.backlog_ends_ms, now.late_messages), (20, 0, 20), "{now:?}");
    assert_eq!((now.late.len(), now.next_page_token.as_str()), (5, "5"));
    set_breaker(rig, CARRIER, BreakerMode::Auto, "closed").await;
    for message in &held {
        rig.until_state(&message.message_id, MessageState::Delivered, SOON).await;
    }
    let after = ask(0).await;
    assert_eq!((after.due_messages, after.late_messages), (0, 0));
    assert!(after.segments_per_second > 0 && after.backlog_ends_ms > 0, "{after:?}");
    assert!(ask(4 * LIMIT).await.segments_per_second > after.segments_per_second, "what if");
}

pub async fn failover(rig: &Rig, spare: &Spare) {
    spare.carrier.set_profile("base = \"perfect\"\n").await.unwrap();
    route(rig, "everything", 0, &[(CARRIER, 1), (SPARE, 0)]).await;
    // One whose answer is lost: the carrier may have it.
    rig.carrier.set_profile("base = \"perfect\"\n[faults]\nlost_refused = 1.0\n").await.unwrap();
    let unknown = rig.submit(messages(rig, "lost", 1)).await.remove(0).message_id;
    rig.until_state(&unknown, MessageState::Unknown, SOON).await;
    // Now it answers to nothing but with failures.
    rig.carrier.set_profile("base = \"perfect\"\n[faults]\ntemporary = 1.0\n").await.unwrap();
    // Of a class that is tried again soon: probes of the breaker may meet one message several times.
    let mut batch = messages(rig, "failover", 40);
    batch.iter_mut().for_each(|message| message.class = MessageClass::Confirmation as i32);
    let ids = rig.submit(batch).await;
    let mut by_spare = 0;
    for message in &ids {
        let id = &message.message_id;
        rig.until_state(id, MessageState::Delivered, Duration::from_secs(120)).await;
        let message = rig.get(id, MessageView::Basic).await.unwrap();
        let last = message.attempts.last().unwrap();
        assert_eq!(last.carrier, SPARE, "the first carrier delivers nothing");
        by_spare += usize::from(message.attempts.len() == 1);
    }
    assert!(by_spare > 0, "some never met the carrier that fails");
    let held = rig.get(&unknown, MessageView::Basic).await.unwrap();
    assert_eq!((held.state(), held.attempts.len()), (MessageState::Unknown, 1));
    assert_eq!(held.attempts[0].carrier, CARRIER, "what a carrier may have stays with it");
    let told = explain(rig, &unknown).await;
    assert!(told.summary.starts_with("held:") && told.holds.is_empty(), "{}", told.summary);
    // It works again: probes close the breaker, and new messages come back.
    rig.carrier.set_profile("base = \"perfect\"\n").await.unwrap();
    let mut at = 0;
    until("the first carrier is used again", Duration::from_secs(120), async || {
        at += 1;
        let id = rig.submit(messages(rig, &format!("back-{at}"), 1)).await.remove(0).message_id;
        rig.until_state(&id, MessageState::Delivered, SOON).await;
        let message = rig.get(&id, MessageView::Basic).await.map_err(|e| e.to_string())?;
        let carrier = &message.attempts.last().ok_or("no attempt")?.carrier;
        if carrier == CARRIER { Ok(()) } else { Err(format!("by {carrier}")) }
    })
    .await;
}
