//! The control plane: a small HTTP server on loopback.
//!
//! `GET /stats?seconds=60`, `GET /truth?since=0&limit=1000`, `GET /profile`,
//! `POST /profile[?preset=storm]` (else the body is TOML), `POST /reset`,
//! `POST /disconnect` (drops every connection), `POST /flush` (the ground truth
//! file holds everything afterwards), `GET /livez`, `GET /readyz`, `GET /metrics`.
//! Bounds: pages of 10,000 records, bodies of 64 KiB, an hour of seconds.
//! It has no access control: it listens on loopback only.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use super::Server;
use super::profile::{Profile, ProfileError};
use super::stats::SECONDS_MAX;

/// Records in one page at most.
pub const PAGE_MAX: usize = 10_000;

#[derive(Deserialize)]
struct StatsQuery {
    seconds: Option<usize>,
}

#[derive(Deserialize)]
struct TruthQuery {
    since: Option<u64>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
struct ProfileQuery {
    preset: Option<String>,
}

/// The routes of the control plane.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/stats", get(stats))
        .route("/truth", get(truth))
        .route("/profile", get(profile).post(set_profile))
        .route("/reset", post(reset))
        .route("/disconnect", post(disconnect))
        .route("/flush", post(flush))
        .route("/metrics", get(metrics_text))
        .layer(DefaultBodyLimit::max(64 << 10))
        .with_state(server)
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => refusal(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn refusal(status: StatusCode, why: &str) -> Response {
    let body = serde_json::json!({ "error": why }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn readyz(State(server): State<Arc<Server>>) -> Response {
    match server.ready() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn stats(State(server): State<Arc<Server>>, Query(query): Query<StatsQuery>) -> Response {
    json(&server.stats(query.seconds.unwrap_or(60).min(SECONDS_MAX)))
}

async fn truth(State(server): State<Arc<Server>>, Query(query): Query<TruthQuery>) -> Response {
    let limit = query.limit.unwrap_or(1_000).clamp(1, PAGE_MAX);
    json(&server.truth(query.since.unwrap_or(0), limit))
}

async fn profile(State(server): State<Arc<Server>>) -> Response {
    json(&server.center.lock().profile)
}

async fn set_profile(
    State(server): State<Arc<Server>>,
    Query(query): Query<ProfileQuery>,
    body: String,
) -> Response {
    let profile = match query.preset {
        Some(name) => Profile::preset(&name),
        None => Profile::from_toml(&body),
    };
    match profile.and_then(|profile| server.set_profile(profile)) {
        Ok(profile) => json(&profile),
        Err(error @ ProfileError::UnknownPreset(_)) => refusal(StatusCode::NOT_FOUND, &error.to_string()),
        Err(error) => refusal(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

async fn reset(State(server): State<Arc<Server>>) -> Response {
    server.reset();
    json(&server.stats(0))
}

async fn disconnect(State(server): State<Arc<Server>>) -> Response {
    json(&serde_json::json!({ "closed": server.center.lock().close_all(false) }))
}

async fn flush(State(server): State<Arc<Server>>) -> Response {
    match server.flush().await {
        true => json(&serde_json::json!({ "flushed": true })),
        false => refusal(StatusCode::NOT_FOUND, "there is no ground truth file"),
    }
}

async fn metrics_text(State(server): State<Arc<Server>>) -> Response {
    match &server.config.metrics_text {
        Some(render) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], render()).into_response(),
        None => refusal(StatusCode::NOT_FOUND, "no metrics recorder is installed"),
    }
}
