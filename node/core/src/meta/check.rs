//! Which meta commands make sense on their own, without looking at the tables.
use super::level::LEVEL_DELIVERY;
use super::place::NODE_ID_MAX;
use super::{MetaRefusal, NODES_MAX, TOKEN_LIFE_S_MAX, senders};
use carillon_proto::internal::meta_command::Kind;
use carillon_proto::internal::{
    Baa, Bootstrap, BreakerMode, CarrierRecord, CreateToken, LimitRecord, LimitScope, PauseCause,
    PracticeHours, PutDataKey, PutPolicy, PutPractice, ReceiptIdFormat, RecipientZones, RouteRecord,
    SenderRecord, SmppSettings, TwilioSettings,
};
use carillon_proto::public::MessageClass;
use std::collections::BTreeSet;

type Check = Result<(), MetaRefusal>;

/// Bytes of a host:port, at most (253 of a DNS name, colon, port).
const ADDRESS_BYTES_MAX: usize = 259;
const PEM_BYTES_MAX: usize = 64 * 1024;
/// Targets of a route.
const TARGETS_MAX: usize = 16;
/// Segments per second of any limit.
const RATE_MAX: u32 = 1_000_000;
/// Rules of hours.
const HOURS_BYTES_MAX: usize = 256 * 1024;
/// Days on which a practice sends nothing.
const CLOSED_DATES_MAX: usize = 100;
const WRAPPED_KEY_BYTES_MAX: usize = 4096;
const WEIGHT_MAX: u32 = 1_000;
const WINDOW_S_MAX: u32 = 604_800;
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
        Kind::PutHours(c) => require(c.rules.len() <= HOURS_BYTES_MAX, "rules", "must be at most 256 KiB"),
        Kind::PutCarrier(c) => c.carrier.as_ref().map_or(Ok(()), |record| carrier(record, level)),
        Kind::PutDataKey(c) => data_key(c),
        Kind::PutPolicy(c) => policy(c),
        Kind::PausePractice(c) => {
            let cause = PauseCause::try_from(c.cause).is_ok_and(|cause| cause != PauseCause::Unspecified);
            require(cause, "cause", "must be known")
        }
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
        Kind::DropRoute(c) => require(word(&c.name, 63, b"-"), "name", "must be 1 to 63 of a-z, 0-9 and '-'"),
        Kind::PutRoute(c) => c.route.as_ref().map_or(Ok(()), route),
        Kind::PutSender(c) => c.sender.as_ref().map_or(Ok(()), sender),
        Kind::DropSender(c) => {
            require(senders::is_address(&c.address), "address", "must be the address of a sender")
        }
        Kind::SetBreaker(c) => require(BreakerMode::try_from(c.mode).is_ok(), "mode", "is unknown"),
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
    require(zone(&command.time_zone), "time_zone", "must be the name of an IANA time zone")?;
    let zones = RecipientZones::try_from(command.recipient_zones);
    require(zones.is_ok(), "recipient_zones", "is unknown")?;
    require(command.weight <= WEIGHT_MAX, "weight", "must be at most 1000")?;
    command.hours.as_ref().map_or(Ok(()), practice_hours)
}

fn policy(command: &PutPolicy) -> Check {
    require(outside_name(&command.tenant), "tenant", "must be 1 to 128 bytes without control characters")?;
    let practice = &command.practice;
    require(
        practice.is_empty() || outside_name(practice),
        "practice",
        "must be empty, or 1 to 128 bytes without control characters",
    )?;
    let Some(policy) = &command.policy else { return Ok(()) };
    let known = |class: &i32| MessageClass::try_from(*class).is_ok_and(|c| c != MessageClass::Unspecified);
    let classes = policy.exempt_classes.len() <= 16 && policy.exempt_classes.iter().all(known);
    require(classes, "exempt_classes", "must be classes of messages, at most 16")?;
    let duplicates = policy.duplicate_window_s <= WINDOW_S_MAX;
    require(duplicates, "duplicate_window_s", "must be at most 604800 (7 days)")?;
    let burst = policy.burst == 0 || (60..=86_400).contains(&policy.burst_window_s);
    require(burst, "burst_window_s", "must be 60 to 86400 (a day)")
}

/// What the texts mean is checked by the node that proposes them; here only that they are bounded.
fn practice_hours(hours: &PracticeHours) -> Check {
    let short = |text: &String| text.len() <= 16;
    let days = [&hours.mon_fri, &hours.sat, &hours.sun].into_iter().all(short);
    require(days, "hours", "must be like 09:00-18:00")?;
    require(hours.closed_dates.len() <= CLOSED_DATES_MAX, "hours.closed_dates", "must be at most 100")?;
    require(hours.closed_dates.iter().all(short), "hours.closed_dates", "must be dates")
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
    require(Baa::try_from(record.baa).is_ok(), "baa", "is unknown")?;
    let contract = record.contract.is_empty() || word(&record.contract, 32, b"-_");
    require(contract, "contract", "must be 1 to 32 of a-z, 0-9, '-' and '_'")?;
    match (&record.smpp, &record.twilio) {
        (Some(smpp), None) => smpp_settings(smpp),
        (None, Some(twilio)) => twilio_settings(twilio),
        (None, None) => require(false, "smpp", "is required, or twilio"),
        (Some(_), Some(_)) => require(false, "twilio", "cannot be there beside smpp"),
    }
}

/// A file name inside the secrets directory; never a way out of it.
fn secret_name(text: &str) -> bool {
    let set = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    text.len() <= 128 && !text.starts_with('.') && text.bytes().all(set)
}

/// Two letters and 32 hex digits.
fn sid(text: &str, letters: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.strip_prefix(letters).is_some_and(|rest| rest.len() == 32 && rest.bytes().all(hex))
}

/// Where it leads is for the connector to judge.
fn url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let possible = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    possible && text.len() <= 1_024 && text.bytes().all(|b| b.is_ascii_graphic()) && !text.contains('#')
}

fn twilio_settings(twilio: &TwilioSettings) -> Check {
    require(url(&twilio.base_url), "twilio.base_url", "must be https://host or https://host:port")?;
    require(sid(&twilio.account_sid, "AC"), "twilio.account_sid", "must be AC and 32 hex digits")?;
    let token = &twilio.auth_token_secret;
    let token_possible = !token.is_empty() && secret_name(token);
    require(token_possible, "twilio.auth_token_secret", "must be letters, digits, '.', '_' or '-'")?;
    let (key, key_secret) = (&twilio.api_key_sid, &twilio.api_key_secret);
    require(key.is_empty() || sid(key, "SK"), "twilio.api_key_sid", "must be SK and 32 hex digits")?;
    let both = key.is_empty() == key_secret.is_empty() && secret_name(key_secret);
    require(both, "twilio.api_key_secret", "must be letters, digits, '.', '_' or '-', with api_key_sid")?;
    let (from, service) = (&twilio.from, &twilio.messaging_service_sid);
    let from_possible =
        from.len() <= 20 && from.bytes().all(|b| b.is_ascii_alphanumeric() || b"+ ".contains(&b));
    require(from_possible, "twilio.from", "must be up to 20 letters, digits, '+' and spaces")?;
    let service_possible = service.is_empty() || sid(service, "MG");
    require(service_possible, "twilio.messaging_service_sid", "must be MG and 32 hex digits")?;
    require(from.is_empty() != service.is_empty(), "twilio.from", "or messaging_service_sid, one of them")?;
    let callback = twilio.callback_url.is_empty() || url(&twilio.callback_url);
    require(callback, "twilio.callback_url", "must be a url without fragment")?;
    let connections = (1..=1_000).contains(&twilio.connections_per_node);
    require(connections, "twilio.connections_per_node", "must be 1 to 1000")?;
    let timeout = (10..=3_600_000).contains(&twilio.response_timeout_ms);
    require(timeout, "twilio.response_timeout_ms", "must be 10 to 3600000")?;
    let pause = (10..=3_600_000).contains(&twilio.throttle_pause_ms);
    require(pause, "twilio.throttle_pause_ms", "must be 10 to 3600000")?;
    require(twilio.tls_ca_pem.len() <= PEM_BYTES_MAX, "twilio.tls_ca_pem", "must be at most 64 KiB")
}

fn smpp_settings(smpp: &SmppSettings) -> Check {
    require(address(&smpp.address), "smpp.address", "must be host:port")?;
    require(smpp.tls_ca_pem.len() <= PEM_BYTES_MAX, "smpp.tls_ca_pem", "must be at most 64 KiB")?;
    require(smpp.tls_server_name.len() <= 253, "smpp.tls_server_name", "must be at most 253 bytes")?;
    let printable = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
    let system_id = (1..=15).contains(&smpp.system_id.len()) && printable(&smpp.system_id);
    require(system_id, "smpp.system_id", "must be 1 to 15 printable characters")?;
    require(
        secret_name(&smpp.password_secret),
        "smpp.password_secret",
        "must be letters, digits, '.', '_' or '-'",
    )?;
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

fn sender(record: &SenderRecord) -> Check {
    let rule = "must be +E.164, a short code of 3 to 6 digits, or a name of up to 11 characters";
    require(senders::is_address(&record.address), "address", rule)?;
    require(record.weight <= 1_000_000, "weight", "must be at most 1000000")
}

fn route(record: &RouteRecord) -> Check {
    require(word(&record.name, 63, b"-"), "name", "must be 1 to 63 of a-z, 0-9 and '-'")?;
    require(
        record.practice.is_empty() || !record.tenant.is_empty(),
        "tenant",
        "is required with a practice",
    )?;
    let targets = (1..=TARGETS_MAX).contains(&record.targets.len());
    require(targets, "targets", "must be 1 to 16")?;
    let names: BTreeSet<(&str, &str)> =
        record.targets.iter().map(|t| (t.carrier.as_str(), t.sender.as_str())).collect();
    require(names.len() == record.targets.len(), "targets.carrier", "must be distinct, or their senders")?;
    let senders = record.targets.iter().all(|t| t.sender.is_empty() || senders::is_address(&t.sender));
    require(senders, "targets.sender", "must be the address of a sender of the carrier, or empty")?;
    let weights = record.targets.iter().all(|t| t.weight <= 1_000_000);
    require(weights, "targets.weight", "must be at most 1000000")?;
    let class = |c: &i32| *c != 0 && MessageClass::try_from(*c).is_ok();
    require(
        record.classes.len() <= 16 && record.classes.iter().all(class),
        "classes",
        "must be message classes",
    )?;
    let prefix = |p: &String| {
        p.strip_prefix('+')
            .is_some_and(|d| (1..=15).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_digit()))
    };
    let prefixes = &record.number_prefixes;
    let possible = prefixes.len() <= 256 && prefixes.iter().all(prefix);
    require(possible, "number_prefixes", "must be at most 256 beginnings of E.164 numbers, for example +1")
}

fn data_key(command: &PutDataKey) -> Check {
    let key_possible = (1..=WRAPPED_KEY_BYTES_MAX).contains(&command.wrapped_key.len());
    require(key_possible, "wrapped_key", "must be 1 to 4096 bytes")?;
    require(command.provider_key_id.len() <= 256, "provider_key_id", "must be at most 256 bytes")
}
