//! A small HTTP client for the side ports of the lab: metrics pages and the carrier simulator.
//!
//! Plain HTTP on loopback by design: these ports carry no patient data. Bounds: an answer has at most
//! [`BODY_OCTETS_MAX`] octets and [`TIMEOUT`] of time.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

pub const BODY_OCTETS_MAX: usize = 256 << 20;
pub const TIMEOUT: Duration = Duration::from_secs(20);

/// A call to a side port that failed.
#[derive(Debug, thiserror::Error)]
#[error("{method} http://{address}{path}: {why}")]
pub struct HttpError {
    method: Method,
    address: String,
    path: String,
    why: String,
}

/// Keeps its connections.
#[derive(Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Default for Http {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(2).build_http())
    }
}

impl Http {
    pub async fn get(&self, address: &str, path: &str) -> Result<Bytes, HttpError> {
        self.call(Method::GET, address, path, Bytes::new()).await
    }

    /// Any status but 2xx is an error that quotes the answer.
    pub async fn call(
        &self,
        method: Method,
        address: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, HttpError> {
        let fail = |why: String| HttpError {
            method: method.clone(),
            address: address.to_owned(),
            path: path.to_owned(),
            why,
        };
        let request = Request::builder()
            .method(method.clone())
            .uri(format!("http://{address}{path}"))
            .body(Full::new(body))
            .map_err(|e| fail(e.to_string()))?;
        let exchange = async {
            let response = self.0.request(request).await.map_err(|e| fail(e.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_OCTETS_MAX);
            let body = body.collect().await.map_err(|e| fail(e.to_string()))?.to_bytes();
            if status.is_success() {
                return Ok(body);
            }
            let start = String::from_utf8_lossy(&body[..body.len().min(300)]).trim().to_owned();
            Err(fail(format!("{status} {start}")))
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(fail("timed out".to_owned())))
    }
}
