//! What a new cluster must be told before it can send: the carrier and the practices.
use super::plan::{REST_ACCOUNT_SID, SYSTEM_ID, TENANT};
use super::{Lab, LabError, LabOptions};
use crate::admin::{Admin, AdminError, retry};
use carillon_proto::admin::PutHoursRequest;
use carillon_proto::internal::{
    Baa, CarrierRecord, MetaNode, PutPolicy, PutPractice, ReceiptIdFormat, SendingPolicy, SmppSettings,
    TwilioSettings,
};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// Name of the carrier account of a lab.
pub const CARRIER: &str = "sim";
/// Name of the second carrier account, at the simulator that speaks Twilio's API.
pub const HTTP_CARRIER: &str = "sim-http";
/// A name on the certificate of the carrier simulator.
const CARRIER_TLS_NAME: &str = "localhost";
/// Practices registered at a time.
const CONCURRENT: usize = 4;
const POLL: Duration = Duration::from_millis(100);
/// Accounts over HTTP are known from this feature level on.
const LEVEL_OF_HTTP: u32 = 5;
/// From this feature level on a cluster has policies.
const FUSES_LEVEL: u32 = 5;
/// Above this many segments a second the window of a bind would limit, not the lane.
const FAST_LANE: u32 = 5_000;

/// A practice to register. Other keys of the file describe it for the sample day.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Practice {
    pub name: String,
    /// IANA zone.
    pub time_zone: String,
}

impl Practice {
    /// A JSON list of objects.
    pub fn read_list(path: &Path) -> Result<Vec<Self>, LabError> {
        serde_json::from_slice(&fs_err::read(path)?)
            .map_err(|e| LabError::File { path: path.display().to_string(), reason: e.to_string() })
    }
}

/// The account at the simulator.
pub fn carrier_record(address: String, lane_limit: u32) -> CarrierRecord {
    CarrierRecord {
        carrier_no: 0,
        name: CARRIER.to_owned(),
        smpp: Some(SmppSettings {
            address,
            tls: false,
            tls_ca_pem: String::new(),
            tls_server_name: String::new(),
            system_id: SYSTEM_ID.to_owned(),
            password_secret: "sim-password".to_owned(),
            binds_per_node: 2,
            window: if lane_limit > FAST_LANE { 256 } else { 64 },
            enquire_link_ms: 10_000,
            response_timeout_ms: 5_000,
            source_address: "12025550100".to_owned(),
            receipt_id_format: ReceiptIdFormat::Auto.into(),
            throttle_pause_ms: 1_000,
        }),
        segments_per_second: lane_limit,
        ..Default::default()
    }
}

/// The account at the second simulator. Its callbacks go to each node's own listener.
fn http_carrier_record(plan: &super::Plan) -> CarrierRecord {
    CarrierRecord {
        name: HTTP_CARRIER.to_owned(),
        twilio: Some(TwilioSettings {
            base_url: format!("https://localhost:{}", plan.rest_port),
            account_sid: REST_ACCOUNT_SID.to_owned(),
            auth_token_secret: "sim-http-token".to_owned(),
            from: "+12025550100".to_owned(),
            connections_per_node: 32,
            response_timeout_ms: 5_000,
            throttle_pause_ms: 1_000,
            redact: true,
            ..Default::default()
        }),
        segments_per_second: plan.lane_limit,
        baa: Baa::OnFile.into(),
        ..Default::default()
    }
}

/// Waits until the cluster has the level that an HTTP account needs: it rises once every node has said what it understands.
async fn until_level(admin: &Admin, limit: Duration) -> Result<(), LabError> {
    let until = Instant::now() + limit;
    while retry(limit, || admin.status()).await?.feature_level < LEVEL_OF_HTTP {
        if Instant::now() >= until {
            return Err(LabError::Wrong(format!(
                "the cluster did not come to feature level {LEVEL_OF_HTTP}"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn admins(lab: &Lab) -> Result<Vec<Admin>, LabError> {
    lab.node_ids().into_iter().map(|id| lab.admin(id)).collect()
}

/// Rules under which messages go at any hour, except to Antarctica, where quiet hours can be tried.
pub const ALL_DAY: &str = r#"name = "lab: any hour"

[[rule]]
region = "*"
every_day = "all day"
source = "a lab texts nobody"

[[rule]]
region = "AQ"
every_day = "08:00-21:00"
source = "to try quiet hours"
"#;

/// Registers the rules of the hours and the carrier, then the practices; repeating it changes nothing.
pub(super) async fn register(lab: &Lab, options: &LabOptions, limit: Duration) -> Result<(), LabError> {
    let plan = lab.plan();
    let admins = admins(lab)?;
    if let Some(rules) = &options.hours {
        put_hours(&admins[0], rules, limit).await?;
    }
    let practices = &options.practices;
    let mut carrier = carrier_record(plan.smsc(), plan.lane_limit);
    if let Some(smpp) = carrier.smpp.as_mut().filter(|_| plan.carrier_tls) {
        smpp.tls = true;
        smpp.tls_ca_pem = lab.read("pki/carriers-ca.pem")?;
        smpp.tls_server_name = CARRIER_TLS_NAME.to_owned();
    }
    retry(limit, || admins[0].put_carrier(carrier.clone())).await?;
    if plan.with_rest {
        until_level(&admins[0], limit).await?;
        let second = http_carrier_record(&plan);
        retry(limit, || admins[0].put_carrier(second.clone())).await?;
    }
    stream::iter(practices.iter().enumerate())
        .map(|(at, practice)| {
            let admin = &admins[at % admins.len()];
            let command = PutPractice {
                tenant: TENANT.to_owned(),
                practice: practice.name.clone(),
                time_zone: practice.time_zone.clone(),
                carrier: CARRIER.to_owned(),
                ..Default::default()
            };
            async move { retry(limit, || admin.put_practice(command.clone())).await }
        })
        .buffer_unordered(CONCURRENT)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    if practices.is_empty() { Ok(()) } else { no_fuses(&admins[0], limit).await }
}

/// Generated loads send the same texts to few numbers. A cluster below the level of the fuses has none.
async fn no_fuses(admin: &Admin, limit: Duration) -> Result<(), LabError> {
    let policy = Some(SendingPolicy::default());
    let put = PutPolicy { tenant: TENANT.to_owned(), practice: String::new(), policy };
    let until = Instant::now() + limit;
    loop {
        let Err(error) = retry(limit, || admin.put_policy(put.clone())).await else { return Ok(()) };
        let status = retry(limit, || admin.status()).await?;
        let behind = |node: &MetaNode| (1..FUSES_LEVEL).contains(&node.feature_level);
        if status.nodes.iter().any(behind) {
            return Ok(());
        }
        // The level of a new cluster rises when its nodes have registered.
        if Instant::now() >= until {
            return Err(error.into());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A new cluster has to rise to the feature level of hours first: it is asked until it has.
async fn put_hours(admin: &Admin, rules: &str, limit: Duration) -> Result<(), LabError> {
    let until = Instant::now() + limit;
    let put = PutHoursRequest { rules: rules.to_owned(), ..Default::default() };
    loop {
        match retry(limit, || admin.put_hours(put.clone())).await {
            Err(AdminError::Refused(status))
                if status.code() == tonic::Code::FailedPrecondition && Instant::now() < until =>
            {
                tokio::time::sleep(POLL).await;
            }
            result => return Ok(result.map(drop)?),
        }
    }
}

/// Waits until every node is bound to the carrier: before that, what is due waits.
pub(super) async fn until_bound(lab: &Lab, limit: Duration) -> Result<(), LabError> {
    until_bound_to(lab, CARRIER, limit).await?;
    if lab.plan().with_rest {
        until_bound_to(lab, HTTP_CARRIER, limit).await?;
    }
    Ok(())
}

async fn until_bound_to(lab: &Lab, name: &str, limit: Duration) -> Result<(), LabError> {
    let until = Instant::now() + limit;
    for (id, admin) in lab.node_ids().into_iter().zip(admins(lab)?) {
        loop {
            let status = retry(limit, || admin.status()).await?;
            let carrier = |c: &&carillon_proto::admin::CarrierStatus| {
                c.carrier.as_ref().is_some_and(|record| record.name == name)
            };
            if status.carriers.iter().find(carrier).is_some_and(|c| c.binds_up > 0) {
                break;
            }
            if Instant::now() >= until {
                return Err(LabError::NotReady {
                    name: super::node_name(id),
                    after_s: limit.as_secs(),
                    reason: format!("no connection to the carrier {name}"),
                    log: format!("see {}", lab.log_path(&super::node_name(id)).display()),
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}
