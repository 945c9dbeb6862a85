//! Waiting for a process to say over plain HTTP that it is ready, and saying why it is not.
use super::process::Processes;
use super::{LabError, ProcessState};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const POLL: Duration = Duration::from_millis(100);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer of a health page is a line.
const ANSWER_BYTES_MAX: u64 = 4096;
const LOG_LINES: usize = 15;
/// The end of the log that is searched for these lines.
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// Polls until the process is ready, has ended, or the time is up.
pub(super) async fn wait(
    processes: &Processes,
    name: &str,
    address: &str,
    path: &str,
    limit: Duration,
) -> Result<(), LabError> {
    let until = Instant::now() + limit;
    loop {
        let reason = match probe(address, path).await {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        };
        let log = || last_lines(&processes.log_path(name));
        if processes.state(name) != ProcessState::Running {
            return Err(LabError::Ended { name: name.to_owned(), log: log() });
        }
        if Instant::now() >= until {
            let (name, after_s) = (name.to_owned(), limit.as_secs());
            return Err(LabError::NotReady { name, after_s, reason, log: log() });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// One question; the reason in the answer, if it is not "200".
pub(super) async fn probe(address: &str, path: &str) -> Result<(), String> {
    match tokio::time::timeout(PROBE_TIMEOUT, get(address, path)).await {
        Ok(Ok(answer)) => {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            match head.split_ascii_whitespace().nth(1) {
                Some("200") => Ok(()),
                Some(code) => Err(format!("{code} {}", body.trim())),
                None => Err("an answer that is not HTTP".to_owned()),
            }
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", PROBE_TIMEOUT.as_secs())),
    }
}

async fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The end of a log, for an error text.
fn last_lines(path: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = fs_err::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match tail() {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES);
            let shown: Vec<String> = lines[from..].iter().map(|line| format!("  | {line}")).collect();
            format!("last lines of {}:\n{}", path.display(), shown.join("\n"))
        }
        Err(error) => format!("no log: {error}"),
    }
}
