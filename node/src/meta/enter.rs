//! How a node comes into the cluster: with the directory that it has, as a founding member, or with a token.
//!
//! A founding member without data asks the others first, and answers them while it waits (`lobby`): who is known with another directory has lost its disk, and with it its
//! votes, and must not take part again (reference: never start a wiped node under its old id).
use super::{Lobby, Membership};
use crate::config::Config;
use crate::engine::identity::Identity;
use crate::engine::peers::PeerChannels;
use anyhow::Context as _;
use carillon_core::meta::level;
use carillon_proto::internal::steward_client::StewardClient;
use carillon_proto::internal::{JoinRequest, JoinResponse};
use carillon_proto::tls;
use rustls::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::{Code, Request};

const JOIN_TIMEOUT: Duration = Duration::from_secs(10);
const JOIN_PAUSE: Duration = Duration::from_millis(500);

/// What this node is a member of. Records it in a new directory.
pub async fn enter(
    config: &Config,
    own: &Arc<Identity>,
    tls: &Arc<ClientConfig>,
    peer_listener: &TcpListener,
) -> anyhow::Result<Membership> {
    if let Some(known) = Membership::load(&config.data_dir)? {
        anyhow::ensure!(
            known.cluster_id == config.cluster_id && known.node_id == config.node_id,
            "{} belongs to node {} of cluster {}, the configuration says node {} of {}",
            config.data_dir.display(),
            known.node_id,
            known.cluster_id,
            config.node_id,
            config.cluster_id
        );
        return Ok(known);
    }
    let membership = match &config.join {
        Some(_) => join(config, own.store_id(), tls).await?,
        None => {
            let members: Vec<(u64, String)> =
                config.members.iter().map(|m| (m.node_id, m.peer_address.clone())).collect();
            let others = PeerChannels::new(config.node_id, &members, Arc::clone(tls))?;
            let server = tls::server_config(&config.peer_tls)?;
            let lobby = Lobby::open(peer_listener, server, &config.cluster_id, Arc::clone(own))?;
            own.ask_before_creating(&others).await?;
            lobby.close().await;
            Membership {
                cluster_id: config.cluster_id.clone(),
                node_id: config.node_id,
                partitions: config.partitions,
                founders: config.member_ids(),
                nodes: members.into_iter().collect(),
            }
        }
    };
    membership.save(&config.data_dir)?;
    Ok(membership)
}

/// Asks the given members in turn until one of them lets us in or says no.
async fn join(config: &Config, store_id: u64, tls: &Arc<ClientConfig>) -> anyhow::Result<Membership> {
    let join = config.join.as_ref().context("no join configured")?;
    let secret = join.secret(config.node_id)?;
    loop {
        for address in &join.peers {
            let request = JoinRequest {
                node_id: config.node_id,
                secret: secret.clone(),
                store_id,
                peer_address: config.advertised(),
                feature_level: config.feature_level(),
            };
            match try_join(address, tls, request).await {
                Ok(answer) if answer.refusal.is_empty() => return membership_of(config, answer),
                Ok(answer) => {
                    anyhow::bail!("the cluster refuses node {}: {}", config.node_id, answer.refusal)
                }
                Err(status) if is_final(status.code()) => {
                    anyhow::bail!("{address} refuses this node: {}", status.message());
                }
                Err(status) => tracing::warn!(address, reason = status.message(), "cannot join yet"),
            }
        }
        tokio::time::sleep(JOIN_PAUSE).await;
    }
}

fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::Unimplemented
    )
}

async fn try_join(
    address: &str,
    tls: &Arc<ClientConfig>,
    request: JoinRequest,
) -> Result<JoinResponse, tonic::Status> {
    // Any node of the cluster will do, so its id is not checked; its certificate is.
    let channel = tls::channel(address, Arc::clone(tls), None)
        .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
    let mut request = Request::new(request);
    request.set_timeout(JOIN_TIMEOUT);
    Ok(StewardClient::new(channel).join(request).await?.into_inner())
}

fn membership_of(config: &Config, answer: JoinResponse) -> anyhow::Result<Membership> {
    anyhow::ensure!(
        answer.cluster_id == config.cluster_id,
        "the cluster there is {}, the configuration says {}",
        answer.cluster_id,
        config.cluster_id
    );
    tracing::info!(
        node = config.node_id,
        members = answer.nodes.len(),
        level = level::LEVEL,
        "joined the cluster"
    );
    Ok(Membership {
        cluster_id: answer.cluster_id,
        node_id: config.node_id,
        partitions: answer.partitions,
        founders: Vec::new(),
        nodes: answer.nodes.into_iter().map(|n| (n.node_id, n.peer_address)).collect(),
    })
}
