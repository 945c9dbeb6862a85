//! The carrier's side of HTTP, played by the test: requests come out one by one, answers are written by hand.
use crate::support::{Io, within};
use carillon_proto::{MessageId, Slot};
use std::collections::HashMap;
use std::str::FromStr as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

/// What becomes of a request.
enum Reply {
    Octets(Vec<u8>),
    HangUp,
}

/// One request that was read to its end.
pub struct Exchange {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub form: HashMap<String, String>,
    reply: oneshot::Sender<Reply>,
}

impl Exchange {
    /// Answers with a status and a JSON body.
    pub fn answer(self, status: u16, body: &str) {
        self.answer_with(status, "", body);
    }

    /// `headers`: whole lines.
    pub fn answer_with(self, status: u16, headers: &str, body: &str) {
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        self.raw(format!("{head}{body}").into_bytes());
    }

    /// Octets as they are.
    pub fn raw(self, octets: Vec<u8>) {
        drop(self.reply.send(Reply::Octets(octets)));
    }

    pub fn hang_up(self) {
        drop(self.reply.send(Reply::HangUp));
    }

    /// The message that the callback URL names.
    pub fn message_id(&self) -> MessageId {
        let (_, rest) = self.form["StatusCallback"].split_once("m=").expect("our reference");
        MessageId::from_str(&rest[..rest.find('&').unwrap()]).unwrap()
    }
}

/// A listener whose requests come out of a channel.
pub struct Api {
    pub url: String,
    requests: mpsc::Receiver<Exchange>,
}

impl Api {
    pub async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, sender) = (tls.clone(), sender.clone());
                tokio::spawn(async move {
                    let io: Box<dyn Io> = match tls {
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => Box::new(stream),
                            Err(_) => return,
                        },
                        None => Box::new(tcp),
                    };
                    serve(io, sender).await;
                });
            }
        });
        let host = if scheme == "https" { "localhost" } else { "127.0.0.1" };
        Self { url: format!("{scheme}://{host}:{port}"), requests }
    }

    /// The next request.
    pub async fn next(&mut self) -> Exchange {
        within(self.requests.recv()).await.expect("a request")
    }

    pub fn is_silent(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }
}

async fn serve(mut io: Box<dyn Io>, sender: mpsc::Sender<Exchange>) {
    let mut buffer = Vec::new();
    while let Some((head, body)) = read(&mut io, &mut buffer).await {
        let (reply, replied) = oneshot::channel();
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap().split(' ');
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let exchange = Exchange {
            method: words.next().unwrap().to_owned(),
            path: words.next().unwrap().to_owned(),
            headers: lines.filter(|line| !line.is_empty()).map(header).collect(),
            form: form_urlencoded::parse(&body).into_owned().collect(),
            reply,
        };
        if sender.send(exchange).await.is_err() {
            return;
        }
        match replied.await {
            Ok(Reply::Octets(octets)) => {
                if io.write_all(&octets).await.is_err() || io.flush().await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

/// The head and the body of the next request; `None` at the end of the connection.
async fn read(io: &mut Box<dyn Io>, buffer: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if io.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let rest = buffer.split_off(head_end + 4);
    let head = String::from_utf8(std::mem::replace(buffer, rest)).unwrap();
    let length = head.to_ascii_lowercase().split("\r\n").find_map(|line| {
        let length = line.strip_prefix("content-length: ")?;
        length.parse::<usize>().ok()
    });
    while buffer.len() < length.unwrap_or(0) {
        if io.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let rest = buffer.split_off(length.unwrap_or(0));
    Some((head, std::mem::replace(buffer, rest)))
}

/// A message id for tests of references.
pub fn some_id(n: u64) -> MessageId {
    MessageId::new(1_793_000_000_000, Slot::new(7).unwrap(), n)
}
