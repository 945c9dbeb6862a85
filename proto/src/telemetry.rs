//! Logs, metrics and the small HTTP side port that every process has: `/metrics`, `/livez`, `/readyz`.
//!
//! Logs are JSON lines on standard error. The panic hook prints where, never what: a payload could hold plaintext.
use crate::metric_names::{CATALOGUE, Kind};
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use tracing_log::LogTracer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Latency buckets in seconds: 100 us to 60 s.
const SECONDS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
/// Buckets for sizes and counts.
const SIZES: [f64; 12] =
    [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0];

/// Handles to what was installed.
#[derive(Clone)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    prometheus: PrometheusHandle,
}

/// Answers "can this process serve now?", with the reason when it cannot.
pub type ReadyCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Installs logger, metric recorder and panic hook. Call once. `filter` uses the syntax of `RUST_LOG`.
pub fn install(service: &'static str, filter: &str) -> anyhow::Result<Telemetry> {
    let (layer, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let subscriber = tracing_subscriber::registry().with(layer).with(
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(std::io::stderr),
    );
    tracing::subscriber::set_global_default(subscriber)?;
    log::set_boxed_logger(Box::new(WithoutPaths(LogTracer::new())))?;
    log::set_max_level(log::LevelFilter::Trace);
    let prometheus = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &SIZES)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), &SIZES)?
        .add_global_label("service", service)
        .install_recorder()?;
    describe();
    metrics::gauge!("carillon_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    install_panic_hook();
    Ok(Telemetry { filter: handle, prometheus })
}

/// Why a program ends, to standard error: a sentence for people at a terminal, otherwise a line as all the others of a log, whatever
/// the filter is and also before anything was installed.
pub fn last_word(program: &str, reason: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("{program}: {reason}");
    } else {
        last_line(std::io::stderr, program, reason);
    }
}

fn last_line(
    writer: impl for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
    program: &str,
    reason: &str,
) {
    let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(writer);
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || tracing::error!(program, reason, "the program ends"));
}

/// Lines of dependencies that log through `log`, as events. Their files are paths of the machine that built the program, which
/// are nobody's business; the module says enough.
struct WithoutPaths(LogTracer);

impl log::Log for WithoutPaths {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        let bare = log::Record::builder()
            .metadata(record.metadata().clone())
            .args(*record.args())
            .module_path(record.module_path())
            .build();
        self.0.log(&bare);
    }

    fn flush(&self) {}
}

/// A place in the sources without the path of the machine that built the program: what is from a registry begins with its crate.
fn place_of(file: &str) -> &str {
    let in_registry = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    in_registry.map_or(file, |(_, rest)| rest)
}

fn describe() {
    for metric in CATALOGUE {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let place =
            info.location().map(|at| format!("{}:{}", place_of(at.file()), at.line())).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        metrics::counter!("carillon_panics_total").increment(1);
        tracing::error!(place, thread, "panic; the message is withheld because it may hold plaintext");
    }));
}

impl Telemetry {
    /// Changes the log filter.
    pub fn set_filter(&self, filter: &str) -> anyhow::Result<()> {
        self.filter.reload(EnvFilter::try_new(filter)?)?;
        Ok(())
    }

    /// The metrics page.
    pub fn render(&self) -> String {
        self.prometheus.render()
    }

    /// Keeps the recorder small for as long as the runtime lives; once for each process that serves its metrics.
    pub fn keep_up(&self) {
        let prometheus = self.prometheus.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(std::time::Duration::from_secs(5));
            loop {
                every.tick().await;
                prometheus.run_upkeep();
            }
        });
    }

    /// Serves the side port until the process ends. `live` and `ready` answer 200 or 503 with the reason.
    pub async fn serve_http(
        &self,
        listener: tokio::net::TcpListener,
        ready: ReadyCheck,
    ) -> std::io::Result<()> {
        self.keep_up();
        let prometheus = self.prometheus.clone();
        let app = axum::Router::new()
            .route("/metrics", get(move || async move { prometheus.render() }))
            .route("/livez", get(|| async { "ok\n" }))
            .route(
                "/readyz",
                get(move || async move {
                    match ready() {
                        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
                        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
                    }
                }),
            );
        axum::serve(listener, app).await
    }
}

/// Binds an address, naming it in the error. With SO_REUSEADDR: connections that an ended process left behind do not
/// hold it, only another listener does.
pub async fn bind(what: &str, address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    let bound = tokio::net::TcpListener::bind(address).await;
    bound.map_err(|e| anyhow::anyhow!("cannot listen on {address} for {what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    /// What a layer wrote.
    #[derive(Clone, Default)]
    struct Written(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_and_panics_of_dependencies_do_not_show_where_they_were_built() {
        use log::Log as _;
        let written = Written::default();
        let writer = written.clone();
        let layer =
            tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(layer);
        let record = log::Record::builder()
            .args(format_args!("purged"))
            .level(log::Level::Info)
            .target("raft_engine::engine")
            .module_path(Some("raft_engine::engine"))
            .file(Some("/home/builder/registry/src/index-1/raft-engine-0.4.2/src/engine.rs"))
            .line(Some(7))
            .build();
        tracing::subscriber::with_default(subscriber, || WithoutPaths(LogTracer::new()).log(&record));
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("purged") && text.contains("raft_engine::engine"), "{text}");
        assert!(!text.contains("builder") && !text.contains(".rs"), "{text}");

        assert_eq!(place_of(record.file().unwrap()), "raft-engine-0.4.2/src/engine.rs");
        assert_eq!(place_of("node/src/main.rs"), "node/src/main.rs");
    }

    #[test]
    fn the_reason_why_a_program_ends_is_a_line_of_its_log() {
        let written = Written::default();
        let writer = written.clone();
        last_line(move || writer.clone(), "carillon-node", "line 3 of \"node.toml\":\n  nonsense");
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("{\"timestamp\":\"") && text.contains("\"level\":\"ERROR\""), "{text}");
        assert!(text.contains(r#""reason":"line 3 of \"node.toml\":\n  nonsense""#), "{text}");
    }

    #[tokio::test]
    async fn an_address_is_free_again_at_once_and_a_listener_on_it_is_told() {
        let first = bind("tests", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind("tests", address).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {address} for tests: ")), "{error}");
        // The side that closes first leaves its port in TIME_WAIT.
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let (served, _) = first.accept().await.unwrap();
        drop((served, first));
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        drop(client);
        bind("tests", address).await.unwrap();
    }
}
