//! How many submit_sm one connector moves: its runtime is one thread, the SMSC has another.
//!
//! `cargo run --release -p carillon-carriers --example throughput -- [messages] [tls]`
use carillon_carriers::contract::{ContractHandle, SMPP_GENERIC};
use carillon_carriers::smpp::{SmppConfig, SmppConnector, SmppTuning};
use carillon_carriers::{Clear, Connector as _, InboundSink, OpenGate, ReceiptReport, SendRequest};
use carillon_proto::internal::SmppSettings;
use carillon_proto::public::Outcome;
use carillon_proto::{MessageId, Slot, sms};
use futures::{FutureExt as _, SinkExt, StreamExt as _, stream};
use rusmpp::pdus::{BindTransceiverResp, SubmitSmResp};
use rusmpp::tokio_codec::CommandCodec;
use rusmpp::types::COctetString;
use rusmpp::{Command, CommandStatus, Pdu};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_util::codec::Framed;

const CONCURRENT_SENDS: usize = 256;

struct NoSink;

impl InboundSink for NoSink {
    fn receipt(&self, report: ReceiptReport) {
        report.ack.commit();
    }
}

/// Answers everything at once, many answers in one write.
async fn serve(io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut framed = Framed::new(io, CommandCodec::new());
    let mut ids = 0u64;
    while let Some(Ok(first)) = framed.next().await {
        let mut next = Some(first);
        while let Some(command) = next {
            let pdu = match command.pdu() {
                Some(Pdu::BindTransceiver(_)) => BindTransceiverResp::default().into(),
                Some(Pdu::SubmitSm(_)) => {
                    ids += 1;
                    let id = COctetString::from_string(format!("{ids:x}")).expect("ascii and short");
                    SubmitSmResp::builder().message_id(id).build().into()
                }
                Some(Pdu::EnquireLink) => Pdu::EnquireLinkResp,
                Some(Pdu::Unbind) => Pdu::UnbindResp,
                _ => return,
            };
            if framed
                .feed(Command::new(CommandStatus::EsmeRok, command.sequence_number(), pdu))
                .await
                .is_err()
            {
                return;
            }
            next = framed.next().now_or_never().flatten().and_then(Result::ok);
        }
        if SinkExt::<Command>::flush(&mut framed).await.is_err() {
            return;
        }
    }
}

async fn listen(listener: std::net::TcpListener, tls: Option<TlsAcceptor>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        match &tls {
            Some(tls) => drop(tokio::spawn(serve(tls.accept(tcp).await?))),
            None => drop(tokio::spawn(serve(tcp))),
        }
    }
}

/// Nanoseconds that this thread was on a CPU.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let messages: u64 = args.next().map_or(Ok(200_000), |n| n.parse())?;
    let with_tls = args.next().is_some_and(|word| word == "tls");

    let key = rcgen::generate_simple_self_signed(["smsc.example".to_owned()])?;
    let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], key.signing_key.serialize_der().try_into()?)?;
    let acceptor = with_tls.then(|| TlsAcceptor::from(Arc::new(server)));
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map(|runtime| runtime.block_on(listen(listener, acceptor)))
    });

    let settings = SmppSettings {
        address,
        tls: with_tls,
        tls_ca_pem: key.cert.pem(),
        tls_server_name: "smsc.example".into(),
        system_id: "bench".into(),
        binds_per_node: 2,
        window: 64,
        enquire_link_ms: 30_000,
        response_timeout_ms: 10_000,
        source_address: "12025550100".into(),
        throttle_pause_ms: 1_000,
        ..SmppSettings::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(settings, messages, with_tls))
}

async fn measure(settings: SmppSettings, messages: u64, with_tls: bool) -> Result<(), Box<dyn Error>> {
    let config = SmppConfig {
        carrier: "bench".into(),
        settings,
        password: Clear::new("secret08".into()),
        contract: ContractHandle::built_in(SMPP_GENERIC).ok_or("no contract")?,
        default_ca_pem: None,
        tuning: SmppTuning::default(),
    };
    let connector = SmppConnector::start(config, Arc::new(NoSink))?;
    connector.bound(2).await;
    let body =
        "Reminder: your appointment at North Clinic is on Tuesday at 9:30. Reply C to confirm. ".repeat(2);
    let body = &body[..140];
    let counted = sms::analyze(body);
    let slot = Slot::new(1).ok_or("slot")?;
    let (started, cpu_started) = (Instant::now(), cpu_ns());
    let accepted = stream::iter(0..messages)
        .map(|n| {
            connector.send(
                SendRequest {
                    message_id: MessageId::new(1_793_000_000_000, slot, n),
                    attempt_no: 1,
                    recipient: Clear::new("+12125550123".into()),
                    body: Clear::new(body.into()),
                    sender: None,
                    encoding: counted.encoding,
                    segments: counted.segments,
                    validity: Some(Duration::from_secs(3600)),
                    valid_until_ms: 0,
                    send_by: tokio::time::Instant::now() + Duration::from_secs(10),
                    start_by: tokio::time::Instant::now() + Duration::from_secs(10),
                    urgent: false,
                },
                &OpenGate,
            )
        })
        .buffer_unordered(CONCURRENT_SENDS)
        .filter(|outcome| std::future::ready(outcome.outcome == Outcome::Accepted))
        .count()
        .await;
    let (wall, cpu) = (started.elapsed().as_secs_f64(), (cpu_ns() - cpu_started) as f64 / 1e9);
    connector.drain().await;
    println!(
        "{accepted} of {messages} accepted, 2 binds x window 64, tls {with_tls}: {:.0}/s, {:.0} for each second of \
         CPU of the connector's thread ({:.1} us each)",
        accepted as f64 / wall,
        accepted as f64 / cpu,
        cpu * 1e6 / accepted as f64
    );
    if accepted as u64 == messages { Ok(()) } else { Err("not all were accepted".into()) }
}
