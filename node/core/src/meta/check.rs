//! Which meta commands make sense on their own, without looking at the tables.
use super::level::LEVEL_DELIVERY;
use super::place::NODE_ID_MAX;
use super::{MetaRefusal, NODES_MAX, TOKEN_LIFE_S_MAX};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{
    Bootstrap, CarrierRecord, CreateToken, LimitRecord, LimitScope, PutDataKey, PutPractice, ReceiptIdFormat,
    SmppSettings,
};
use std::collections::BTreeSet;

type Check = Result<(), MetaRefusal>;

/// Bytes of a host:port, at most (253 of a DNS name, colon, port).
const ADDRESS_BYTES_MAX: usize = 259;
const PEM_BYTES_MAX: usize = 64 * 1024;
/// Segments per second of any limit.
const RATE_MAX: u32 = 1_000_000;
const WRAPPED_KEY_BYTES_MAX: usize = 4096;
const SLOTS: u32 = carillon_proto::slot::SLOTS as u32;

fn require(condition: bool, field: &'static str, rule: &'static str) -> Check {
    if condition { Ok(()) } else { Err(MetaRefusal::Invalid { field, rule }) }
}

/// 1 to `max` characters of the set.
fn word(text: &str, max: usize, extra: &[u8]) -> bool {
    (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.contains(&b))
}

/// Names of tenants and practices come from outside: any printable text, but bounded, and without control characters.
fn outside_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    text.len() <= ADDRESS_BYTES_MAX
        && !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_graphic())
        && port.parse::<u16>().is_ok_and(|p| p > 0)
}

/// `level`: what all programs of the cluster understand; all of them must come to the same.
pub(super) fn kind(kind: &Kind, level: u32) -> Check {
    match kind {
        Kind::Bootstrap(c) => bootstrap(c),
        Kind::PutPractice(c) => practice(c, level),
        Kind::PutCarrier(c) => c.carrier.as_ref().map_or(Ok(()), |record| carrier(record, level)),
        Kind::PutDataKey(c) => data_key(c),
        Kind::CreateToken(c) => token(c),
        Kind::JoinNode(c) => member(c.node_id, c.store_id, &c.peer_address, c.feature_level),
        Kind::RegisterNode(c) => member(c.node_id, c.store_id, &c.peer_address, c.feature_level),
        Kind::PutLimit(c) => c.limit.as_ref().map_or(Ok(()), limit),
        Kind::TakeCap(c) => require(c.segments > 0, "segments", "must be at least 1"),
        Kind::DropLimit(_)
        | Kind::SetLane(_)
        | Kind::EaseLane(_)
        | Kind::SetNodeStatus(_)
        | Kind::ChangeReplicas(_)
        | Kind::SetShares(_)
        | Kind::SettleShares(_)
        | Kind::RaiseLevel(_)
        | Kind::PartitionRestored(_) => Ok(()),
        Kind::BeginRestore(c) => require(c.backup_id.len() == 16, "backup_id", "must be 16 bytes"),
        Kind::RestoreMeta(c) => {
            c.rows.iter().flat_map(|rows| &rows.carriers).try_for_each(|c| carrier(c, level))
        }
    }
}

fn token(command: &CreateToken) -> Check {
    require(command.secret_hash.len() == 32, "secret_hash", "must be 32 bytes")?;
    let life = (1..=TOKEN_LIFE_S_MAX).contains(&command.life_s);
    require(life, "life_s", "must be 1 second to 7 days")
}

fn member(node_id: u64, store_id: u64, peer_address: &str, feature_level: u32) -> Check {
    require((1..=NODE_ID_MAX).contains(&node_id), "node_id", "must be 1 to 4294967295")?;
    require(store_id != 0, "store_id", "must not be 0")?;
    require(address(peer_address), "peer_address", "must be host:port")?;
    require(feature_level > 0, "feature_level", "must not be 0")
}

fn bootstrap(command: &Bootstrap) -> Check {
    let id_set = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let id = &command.cluster_id;
    let id_possible = (1..=63).contains(&id.len()) && id.bytes().all(id_set);
    require(id_possible, "cluster_id", "must be 1 to 63 letters, digits, '.', '_' or '-'")?;
    require((1..=SLOTS).contains(&command.partitions), "partitions", "must be 1 to 4096")?;
    require((1..=NODES_MAX).contains(&command.nodes.len()), "nodes", "must be 1 to 64")?;
    let ids: BTreeSet<u64> = command.nodes.iter().map(|n| n.node_id).collect();
    let addresses: BTreeSet<&str> = command.nodes.iter().map(|n| n.peer_address.as_str()).collect();
    require(
        ids.iter().all(|id| (1..=NODE_ID_MAX).contains(id)) && ids.len() == command.nodes.len(),
        "nodes.node_id",
        "must be distinct, 1 to 4294967295",
    )?;
    require(addresses.len() == command.nodes.len(), "nodes.peer_address", "must be distinct")?;
    require(addresses.iter().all(|a| address(a)), "nodes.peer_address", "must be host:port")
}

fn practice(command: &PutPractice, level: u32) -> Check {
    if level >= LEVEL_DELIVERY {
        label(&command.campaign, "campaign")?;
        label(&command.brand, "brand")?;
    }
    require(outside_name(&command.tenant), "tenant", "must be 1 to 128 bytes without control characters")?;
    require(
        outside_name(&command.practice),
        "practice",
        "must be 1 to 128 bytes without control characters",
    )?;
    require(zone(&command.time_zone), "time_zone", "must be the name of an IANA time zone")
}

/// A name of the carrier's world; may be missing.
fn label(text: &str, field: &'static str) -> Check {
    let possible = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_graphic());
    require(possible, field, "must be at most 64 printable characters")
}

fn zone(text: &str) -> bool {
    let set = |b: u8| b.is_ascii_alphanumeric() || b"/_+-".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(set)
}

fn limit(record: &LimitRecord) -> Check {
    let scope = record.scope();
    let goes_with = |is: bool, there: bool, field, rule| require(is == there, field, rule);
    require(scope != LimitScope::Unspecified, "scope", "is required")?;
    require((1..=RATE_MAX * 100).contains(&record.amount), "amount", "must be 1 to 100000000")?;
    require(record.window_s <= 3_600, "window_s", "must be 1 to 3600, or 0 for a calendar day")?;
    let day = record.window_s == 0;
    goes_with(day, !record.time_zone.is_empty(), "time_zone", "goes with a calendar day, and only with it")?;
    require(!day || zone(&record.time_zone), "time_zone", "must be the name of an IANA time zone")?;
    label(&record.key, "key")?;
    label(&record.network, "network")?;
    let networked = matches!(scope, LimitScope::Campaign | LimitScope::Brand);
    let keyed = networked || scope == LimitScope::Sender;
    goes_with(
        keyed,
        !record.key.is_empty(),
        "key",
        "goes with a sender, campaign or brand, and only with them",
    )?;
    require(networked || record.network.is_empty(), "network", "goes with a campaign or brand only")?;
    let of_practice = scope == LimitScope::Practice;
    goes_with(of_practice, record.practice_no > 0, "practice", "goes with the scope of a practice only")
}

fn carrier(record: &CarrierRecord, level: u32) -> Check {
    let leases = level >= LEVEL_DELIVERY;
    require(word(&record.name, 63, b"-"), "name", "must be 1 to 63 of a-z, 0-9 and '-'")?;
    require(leases || record.segments_per_second > 0, "segments_per_second", "must be at least 1")?;
    if leases {
        let possible = record.segments_per_second <= RATE_MAX;
        require(possible, "segments_per_second", "must be at most 1000000")?;
        label(&record.campaign, "campaign")?;
        label(&record.brand, "brand")?;
    }
    let Some(smpp) = &record.smpp else {
        return require(false, "smpp", "is required");
    };
    smpp_settings(smpp)
}

fn smpp_settings(smpp: &SmppSettings) -> Check {
    require(address(&smpp.address), "smpp.address", "must be host:port")?;
    require(smpp.tls_ca_pem.len() <= PEM_BYTES_MAX, "smpp.tls_ca_pem", "must be at most 64 KiB")?;
    require(smpp.tls_server_name.len() <= 253, "smpp.tls_server_name", "must be at most 253 bytes")?;
    let printable = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
    let system_id = (1..=15).contains(&smpp.system_id.len()) && printable(&smpp.system_id);
    require(system_id, "smpp.system_id", "must be 1 to 15 printable characters")?;
    // A file name inside the secrets directory; never a way out of it.
    let secret = &smpp.password_secret;
    let secret_set = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let secret_possible = secret.len() <= 128 && !secret.starts_with('.') && secret.bytes().all(secret_set);
    require(secret_possible, "smpp.password_secret", "must be letters, digits, '.', '_' or '-'")?;
    require((1..=64).contains(&smpp.binds_per_node), "smpp.binds_per_node", "must be 1 to 64")?;
    require((1..=10_000).contains(&smpp.window), "smpp.window", "must be 1 to 10000")?;
    require(smpp.response_timeout_ms > 0, "smpp.response_timeout_ms", "must be at least 1")?;
    let source = &smpp.source_address;
    let digits = source.len() <= 20 && source.bytes().all(|b| b.is_ascii_digit());
    let alphanumeric = source.len() <= 11 && source.bytes().all(|b| b.is_ascii_alphanumeric() || b == b' ');
    let source_possible = !source.is_empty() && (digits || alphanumeric);
    require(source_possible, "smpp.source_address", "must be up to 20 digits or up to 11 characters")?;
    let format = ReceiptIdFormat::try_from(smpp.receipt_id_format);
    require(format.is_ok(), "smpp.receipt_id_format", "is unknown")
}

fn data_key(command: &PutDataKey) -> Check {
    let key_possible = (1..=WRAPPED_KEY_BYTES_MAX).contains(&command.wrapped_key.len());
    require(key_possible, "wrapped_key", "must be 1 to 4096 bytes")?;
    require(command.provider_key_id.len() <= 256, "provider_key_id", "must be at most 256 bytes")
}
