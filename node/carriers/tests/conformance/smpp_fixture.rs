//! SMPP under the suite.
use crate::fixture::*;
use crate::support::*;
use carillon_carriers::smpp::SmppConnector;
use carillon_proto::internal::ReceiptState;
use carillon_proto::public::Outcome;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// What the carrier's task is asked to do.
enum Order {
    Accept {
        sequence: u32,
        id: String,
    },
    Refuse {
        sequence: u32,
        status: u32,
    },
    HangUp,
    Receipt {
        text: String,
        told: oneshot::Sender<Told>,
    },
    Raw {
        octets: Vec<u8>,
        sequence: u32,
        told: oneshot::Sender<Told>,
    },
    /// Probes until the connector had every chance to write.
    Silence(oneshot::Sender<()>),
}

pub struct Smpp {
    connector: Arc<SmppConnector>,
    inbox: Inbox,
    orders: mpsc::Sender<Order>,
    submits: mpsc::Receiver<(u32, String, String)>,
}

/// Plays the carrier on its own task, so that answers can be waited for without reading by hand.
async fn play(
    smsc: Smsc,
    first: Peer,
    mut orders: mpsc::Receiver<Order>,
    submits: mpsc::Sender<(u32, String, String)>,
) {
    let mut peer = first;
    let mut told: std::collections::HashMap<u32, oneshot::Sender<Told>> = Default::default();
    loop {
        tokio::select! {
            seen = peer.seen() => match seen {
                Some(Seen::Submit(sequence, submit)) => {
                    let to = submit.destination_addr.as_str().to_owned();
                    if submits.send((sequence, text_of(&submit), to)).await.is_err() {
                        return;
                    }
                }
                Some(Seen::Delivered(sequence, status)) => {
                    let answer = match status {
                        0 => Told::Taken,
                        0x64 => Told::Again,
                        _ => Told::Refused,
                    };
                    if let Some(told) = told.remove(&sequence) {
                        let _ = told.send(answer);
                    }
                }
                Some(Seen::Nacked(sequence)) => {
                    if let Some(told) = told.remove(&sequence) {
                        let _ = told.send(Told::Refused);
                    }
                }
                None => return,
            },
            order = orders.recv() => match order {
                None => return,
                Some(Order::Accept { sequence, id }) => peer.accept(sequence, &id).await,
                Some(Order::Refuse { sequence, status }) => peer.refuse(sequence, status).await,
                Some(Order::HangUp) => {
                    drop(peer);
                    peer = smsc.bound().await;
                }
                Some(Order::Receipt { text, told: answer }) => {
                    let sequence = peer.deliver_receipt(&text).await;
                    told.insert(sequence, answer);
                }
                Some(Order::Raw { octets, sequence, told: answer }) => {
                    told.insert(sequence, answer);
                    peer.raw(&octets).await;
                }
                Some(Order::Silence(done)) => {
                    peer.assert_silent().await;
                    let _ = done.send(());
                }
            },
        }
    }
}

impl Smpp {
    async fn order(&self, order: Order) {
        self.orders.send(order).await.expect("the carrier plays");
    }

    async fn told(&self, order: impl FnOnce(oneshot::Sender<Told>) -> Order) -> Told1 {
        let (told, answer) = oneshot::channel();
        self.order(order(told)).await;
        tokio::spawn(async move { answer.await.expect("an answer to the receipt") })
    }
}

impl CarrierUnderTest for Smpp {
    type Token = u32;
    type Connector = SmppConnector;

    const REFUSALS: &'static [(&'static str, Outcome, &'static str)] = &[
        ("0b", Outcome::RejectedNumber, "0x0000000b"),
        ("01", Outcome::RejectedContent, "0x00000001"),
        ("08", Outcome::Transient, "0x00000008"),
        ("0a", Outcome::LaneBroken, "0x0000000a"),
        ("45", Outcome::Transient, "0x00000045"),
        ("58", Outcome::Throttled, "0x00000058"),
        ("14", Outcome::Throttled, "0x00000014"),
        ("0411", Outcome::Transient, "0x00000411"),
    ];
    const THROTTLE: &'static str = "58";
    const WRONGS: &'static [Wrong] = &[Wrong::Malformed];

    async fn start(terms: Terms) -> Self {
        let smsc = Smsc::new().await;
        let mut setup = Setup::new(&smsc);
        setup.settings.response_timeout_ms = terms.response_timeout_ms;
        setup.settings.throttle_pause_ms = terms.throttle_pause_ms;
        setup.settings.window = terms.window;
        setup.tuning.receipt_ack_timeout = Some(terms.receipt_ack_timeout);
        setup.tuning.goodbye_timeout = Duration::from_millis(50);
        let ((orders, to_do), (submits, arrived)) = (mpsc::channel(64), mpsc::channel(64));
        if terms.absent {
            // A port that nobody listens on.
            setup.settings.address =
                TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
            let (connector, inbox) = setup.start();
            return Self { connector, inbox, orders, submits: arrived };
        }
        let (connector, inbox, mut peers) = setup.bound(&smsc).await;
        tokio::spawn(play(smsc, peers.remove(0), to_do, submits));
        Self { connector, inbox, orders, submits: arrived }
    }

    fn connector(&self) -> Arc<SmppConnector> {
        self.connector.clone()
    }

    fn inbox(&mut self) -> &mut Inbox {
        &mut self.inbox
    }

    async fn arrived(&mut self) -> Arrived<u32> {
        let (token, text, recipient) = within(self.submits.recv()).await.expect("a submit_sm");
        Arrived { token, text, recipient }
    }

    async fn assert_silent(&mut self) {
        let (done, silent) = oneshot::channel();
        self.order(Order::Silence(done)).await;
        within(silent).await.expect("silence");
        assert!(self.submits.try_recv().is_err());
    }

    async fn accept(&mut self, token: u32, n: u32) -> String {
        self.order(Order::Accept { sequence: token, id: format!("000{n}") }).await;
        n.to_string()
    }

    async fn refuse(&mut self, token: u32, word: &str) {
        self.order(Order::Refuse { sequence: token, status: u32::from_str_radix(word, 16).unwrap() }).await;
    }

    async fn hang_up(&mut self, _: u32) {
        self.order(Order::HangUp).await;
    }

    async fn report(&mut self, n: u32, state: ReceiptState) -> Told1 {
        let word = match state {
            ReceiptState::Delivered => "DELIVRD",
            ReceiptState::Undelivered => "UNDELIV",
            _ => "ENROUTE",
        };
        self.told(|told| Order::Receipt { text: format!("id:{n} stat:{word}"), told }).await
    }

    async fn report_wrong(&mut self, wrong: Wrong) -> Told1 {
        assert_eq!(wrong, Wrong::Malformed, "smpp has no signatures, and a receipt has no room for more");
        // A deliver_sm whose body ends too early.
        let octets = vec![0, 0, 0, 18, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 99, 0, 1];
        self.told(|told| Order::Raw { octets, sequence: 99, told }).await
    }
}
