//! Puts the router together, runs it, and ends it in order: health says NOT_SERVING, long-lived streams end with a hint to go
//! elsewhere, calls in flight finish, the rest is cut off.
use crate::api::{Api, Shared};
use crate::config::{Config, Tuning};
use crate::map::{MapCache, watch};
use crate::metrics;
use crate::nodes::Dialer;
use crate::phone;
use crate::undecoded::{self, REQUEST_BYTES_MAX};
use carillon_proto::local_time;
use carillon_proto::public::appointments_server::AppointmentsServer;
use carillon_proto::public::messages_server::MessagesServer;
use carillon_proto::telemetry::ReadyCheck;
use carillon_proto::tls::{self, TlsError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

const SERVICE: &str = "carillon.v1.Messages";
const APPOINTMENTS: &str = "carillon.v1.Appointments";
const HEALTH: &str = "grpc.health.v1.Health";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
}

/// A running router.
pub struct Running {
    address: SocketAddr,
    map: Arc<MapCache>,
    /// Ends accepting and the long-lived streams.
    stopping: CancellationToken,
    /// Ends what looks after the map.
    map_stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    health: HealthReporter,
    drain_timeout: Duration,
}

/// Checks that the certificates of a configuration can be used.
pub fn check(config: &Config) -> Result<(), StartError> {
    config.public_tls.check()?;
    config.node_tls.check()?;
    Ok(())
}

/// Starts serving on `listener`.
pub async fn start(config: &Config, listener: TcpListener) -> Result<Running, StartError> {
    metrics::start_at_zero();
    phone::warm_up();
    local_time::warm_up();
    let address = listener.local_addr()?;
    let public_tls = tls::server_config(&config.public_tls)?;
    let node_tls = tls::client_config(&config.node_tls)?;
    let map =
        MapCache::new(config.cluster_id.clone(), Dialer::new(node_tls, config.tuning.connections_per_node));
    let (stopping, map_stop) = (CancellationToken::new(), CancellationToken::new());
    tokio::spawn(watch::run(Arc::clone(&map), config.nodes.clone(), map_stop.clone()));
    let shared = Shared::new(
        config.cluster_id.clone(),
        Arc::clone(&map),
        config.tuning.buffer_bytes_max,
        stopping.clone(),
        config.lab,
    );
    let (health, health_service) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(Arc::clone(&map), health.clone(), stopping.clone()));
    let (reflection, reflection_v1alpha) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let api = Api(Arc::new(shared));
    let appointments = AppointmentsServer::new(api.clone()).max_decoding_message_size(REQUEST_BYTES_MAX);
    let messages = MessagesServer::new(api).max_decoding_message_size(REQUEST_BYTES_MAX);
    let router = builder(&config.tuning)
        .layer(tower::util::MapResponseLayer::new(undecoded::explain_response))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_v1alpha)
        .add_service(appointments)
        .add_service(messages);
    let signal = stopping.clone().cancelled_owned();
    let incoming = tls::incoming(listener, public_tls);
    let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, signal));
    tracing::info!(%address, name = config.name, "serving");
    let drain_timeout = Duration::from_millis(config.tuning.drain_timeout_ms);
    Ok(Running { address, map, stopping, map_stop, server, health, drain_timeout })
}

/// What reflection shows: our services and health, and the messages of error details, so that any client can print them. Many
/// tools still ask by v1alpha first.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(carillon_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(SERVICE)
        .with_service_name(APPOINTMENTS)
        .with_service_name(HEALTH)
}

fn builder(tuning: &Tuning) -> Server {
    Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(256 << 10)
        .max_concurrent_streams(tuning.streams_per_connection_max)
        .concurrency_limit_per_connection(tuning.streams_per_connection_max as usize)
        .http2_max_header_list_size(16 << 10)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
}

/// Health follows readiness.
async fn report_health(map: Arc<MapCache>, health: HealthReporter, stopping: CancellationToken) {
    let mut changed = map.subscribe();
    loop {
        let status = if map.ready().is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        set_health(&health, status).await;
        tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            result = changed.changed() => if result.is_err() { break },
        }
    }
    set_health(&health, ServingStatus::NotServing).await;
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", SERVICE, APPOINTMENTS] {
        health.set_service_status(service, status).await;
    }
}

impl Running {
    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For `/readyz`.
    pub fn ready_check(&self) -> ReadyCheck {
        let (map, stopping) = (Arc::clone(&self.map), self.stopping.clone());
        Arc::new(move || if stopping.is_cancelled() { Err("stopping".to_owned()) } else { map.ready() })
    }

    /// Returns once the map is known and some partition has a leader.
    pub async fn until_ready(&self) {
        let mut changed = self.map.subscribe();
        while self.map.ready().is_err() && changed.changed().await.is_ok() {}
    }

    /// Returns when the server ended although nobody asked it to.
    pub async fn ended(&mut self) -> String {
        match (&mut self.server).await {
            Ok(Ok(())) => "the server ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the server panicked".to_owned(),
        }
    }

    /// Ends in order. True when everything in flight could finish.
    pub async fn stop(mut self) -> bool {
        set_health(&self.health, ServingStatus::NotServing).await;
        self.stopping.cancel();
        let drained = tokio::time::timeout(self.drain_timeout, &mut self.server).await.is_ok();
        if !drained {
            self.server.abort();
        }
        self.map_stop.cancel();
        drained
    }
}
