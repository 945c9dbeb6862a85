//! The TOML form of a contract, and the checks that make it one.
use super::{BreakerTerms, Contract, ContractError, LookUpTerms, Meaning, Protocol, SmppVersion};
use crate::smpp::status;
use carillon_proto::internal::ReceiptState;
use carillon_proto::public::{MessageClass, Outcome};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// The only form there is so far.
const SCHEMA: u32 = 1;
const CODES_MAX: usize = 1_000;
const WORD_CHARS_MAX: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: u32,
    name: String,
    version: u32,
    protocol: Protocol,
    baa: Baa,
    phi_free_classes: Option<Vec<String>>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    breaker: Breaker,
    send: Send,
    receipts: Receipts,
    look_up: Option<LookUp>,
    codes: toml::Table,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Baa {
    Offered,
    None,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Limits {
    segments_per_second_max: Option<u32>,
    /// SMPP only.
    bind_segments_per_second_max: Option<u32>,
    body_chars_max: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Send {
    validity_s_min: u32,
    validity_s_max: u32,
    #[serde(default = "hour_s")]
    retry_after_s_max: u32,
    /// SMPP only.
    smpp_version: Option<SmppVersion>,
}

fn hour_s() -> u32 {
    3_600
}

/// What a file leaves out is as here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Breaker {
    window_s: u32,
    failures_min: u32,
    failures_permille: u32,
    open_s_first: u32,
    open_s_max: u32,
    probes: u32,
    probes_to_close: u32,
    down_after_s: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            window_s: 30,
            failures_min: 5,
            failures_permille: 500,
            open_s_first: 5,
            open_s_max: 300,
            probes: 1,
            probes_to_close: 3,
            down_after_s: 3,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Receipts {
    ack_timeout_ms: u32,
    #[serde(default)]
    url_fragment: String,
    #[serde(default)]
    states: BTreeMap<String, State>,
    #[serde(default)]
    codes: BTreeMap<String, State>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum State {
    Enroute,
    Delivered,
    Undelivered,
    Expired,
    Rejected,
}

impl From<State> for ReceiptState {
    fn from(state: State) -> Self {
        match state {
            State::Enroute => Self::Enroute,
            State::Delivered => Self::Delivered,
            State::Undelivered => Self::Undelivered,
            State::Expired => Self::Expired,
            State::Rejected => Self::Rejected,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LookUp {
    quota_per_minute: u32,
    page_size: u32,
    pages_max: u32,
    clock_skew_s: u32,
    unknown_after_s: u32,
    silent_after_s: u32,
    absence_is_proof_after_s: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    outcome: String,
    #[serde(default)]
    pauses: u32,
    #[serde(default)]
    rebind: bool,
}

/// Says in which file a check failed.
struct Checks<'a> {
    file: &'a str,
}

impl Checks<'_> {
    fn fail<T>(&self, field: &str, rule: impl Into<String>) -> Result<T, ContractError> {
        Err(ContractError::Field { file: self.file.to_owned(), field: field.to_owned(), rule: rule.into() })
    }

    fn range(&self, field: &str, value: u32, min: u32, max: u32) -> Result<u32, ContractError> {
        if (min..=max).contains(&value) {
            return Ok(value);
        }
        self.fail(field, format!("must be {min} to {max}"))
    }

    fn word(&self, field: &str, text: &str) -> Result<(), ContractError> {
        let possible = (1..=WORD_CHARS_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
        if possible { Ok(()) } else { self.fail(field, "must be 1 to 32 of a-z, 0-9, - and _") }
    }
}

impl Contract {
    /// Reads and checks the text of a contract; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ContractError> {
        let read: File = toml::from_str(text).map_err(|e| ContractError::Syntax {
            file: file.to_owned(),
            reason: e.to_string().trim_end().to_owned(),
        })?;
        let checks = Checks { file };
        checks.range("schema", read.schema, SCHEMA, SCHEMA)?;
        checks.word("name", &read.name)?;
        checks.range("version", read.version, 1, u32::MAX)?;
        let twilio = read.protocol == Protocol::Twilio;
        let limits = &read.limits;
        if let Some(most) = limits.segments_per_second_max {
            checks.range("limits.segments_per_second_max", most, 1, 1_000_000)?;
        }
        if let Some(most) = limits.bind_segments_per_second_max {
            checks.range("limits.bind_segments_per_second_max", most, 1, 1_000_000)?;
            if twilio {
                return checks.fail("limits.bind_segments_per_second_max", "is for smpp");
            }
        }
        if let Some(most) = limits.body_chars_max {
            checks.range("limits.body_chars_max", most, 1, 100_000)?;
        }
        let week_s = 7 * 86_400;
        let longest = checks.range("send.validity_s_max", read.send.validity_s_max, 1, week_s)?;
        checks.range("send.validity_s_min", read.send.validity_s_min, 1, longest)?;
        checks.range("send.retry_after_s_max", read.send.retry_after_s_max, 1, 86_400)?;
        checks.range("receipts.ack_timeout_ms", read.receipts.ack_timeout_ms, 100, 60_000)?;
        let fragment = &read.receipts.url_fragment;
        if fragment.len() > 64
            || !fragment.bytes().all(|b| b.is_ascii_alphanumeric() || b"&=-_.".contains(&b))
        {
            return checks.fail("receipts.url_fragment", "must be at most 64 of letters, digits and &=-_.");
        }
        if twilio && read.send.smpp_version.is_some() {
            return checks.fail("send.smpp_version", "is for smpp");
        }
        if twilio == read.receipts.states.is_empty() {
            return checks.fail("receipts.states", "are needed for twilio, and known for smpp");
        }
        if twilio != read.look_up.is_some() {
            return checks.fail("look_up", "is needed for twilio, and smpp has none");
        }
        let (codes, default) = codes(&checks, read.protocol, read.codes)?;
        let states = |map: BTreeMap<String, State>| {
            map.into_iter().map(|(word, state)| (word, state.into())).collect::<BTreeMap<_, _>>()
        };
        Ok(Self {
            breaker: breaker(&checks, &read.breaker)?,
            phi_free: read.phi_free_classes.map(|words| classes(&checks, &words)).transpose()?,
            look_up: read.look_up.map(|terms| look_up(&checks, &terms)).transpose()?,
            name: read.name,
            version: read.version,
            protocol: read.protocol,
            smpp_version: read.send.smpp_version.unwrap_or_default(),
            baa_offered: read.baa == Baa::Offered,
            segments_per_second_max: limits.segments_per_second_max,
            bind_segments_per_second_max: limits.bind_segments_per_second_max,
            body_chars_max: limits.body_chars_max.map(|most| most as usize),
            validity_min: seconds(read.send.validity_s_min),
            validity_max: seconds(longest),
            retry_after_max: seconds(read.send.retry_after_s_max),
            receipt_ack_timeout: Duration::from_millis(u64::from(read.receipts.ack_timeout_ms)),
            url_fragment: read.receipts.url_fragment,
            states: states(read.receipts.states),
            receipt_codes: states(read.receipts.codes),
            codes,
            default,
        })
    }
}

fn seconds(s: u32) -> Duration {
    Duration::from_secs(u64::from(s))
}

fn look_up(checks: &Checks<'_>, terms: &LookUp) -> Result<LookUpTerms, ContractError> {
    let proof_s =
        checks.range("look_up.absence_is_proof_after_s", terms.absence_is_proof_after_s, 0, 86_400)?;
    Ok(LookUpTerms {
        quota_per_minute: checks.range("look_up.quota_per_minute", terms.quota_per_minute, 1, 60_000)?,
        page_size: checks.range("look_up.page_size", terms.page_size, 1, 1_000)?,
        pages_max: checks.range("look_up.pages_max", terms.pages_max, 1, 100)?,
        clock_skew: seconds(checks.range("look_up.clock_skew_s", terms.clock_skew_s, 0, 3_600)?),
        unknown_after: seconds(checks.range("look_up.unknown_after_s", terms.unknown_after_s, 1, 86_400)?),
        silent_after: seconds(checks.range("look_up.silent_after_s", terms.silent_after_s, 1, 604_800)?),
        absence_is_proof_after: (proof_s > 0).then(|| seconds(proof_s)),
    })
}

fn breaker(checks: &Checks<'_>, terms: &Breaker) -> Result<BreakerTerms, ContractError> {
    let range = |field: &str, value, min, max| checks.range(&format!("breaker.{field}"), value, min, max);
    let open_max_s = range("open_s_max", terms.open_s_max, 1, 86_400)?;
    Ok(BreakerTerms {
        window: seconds(range("window_s", terms.window_s, 1, 3_600)?),
        // The breaker remembers 256 answers.
        failures_min: range("failures_min", terms.failures_min, 1, 256)? as usize,
        failures_permille: range("failures_permille", terms.failures_permille, 1, 1_000)? as usize,
        open_first: seconds(range("open_s_first", terms.open_s_first, 1, open_max_s)?),
        open_max: seconds(open_max_s),
        probes: range("probes", terms.probes, 1, 100)?,
        probes_to_close: range("probes_to_close", terms.probes_to_close, 1, 1_000)?,
        down_after: seconds(range("down_after_s", terms.down_after_s, 1, 3_600)?),
    })
}

/// Names of classes, as in configurations: `public_health`.
fn classes(checks: &Checks<'_>, words: &[String]) -> Result<Vec<MessageClass>, ContractError> {
    let class = |word: &String| {
        let lower = !word.bytes().any(|b| b.is_ascii_uppercase());
        let name = format!("MESSAGE_CLASS_{}", word.to_ascii_uppercase());
        let known = MessageClass::from_str_name(&name).filter(|class| *class != MessageClass::Unspecified);
        match known.filter(|_| lower) {
            Some(class) => Ok(class),
            None => checks.fail("phi_free_classes", "names something that is not a class"),
        }
    };
    words.iter().map(class).collect()
}

type Codes = (BTreeMap<String, Meaning>, Meaning);

fn codes(checks: &Checks<'_>, protocol: Protocol, table: toml::Table) -> Result<Codes, ContractError> {
    if table.len() > CODES_MAX {
        return checks.fail("codes", format!("must be at most {CODES_MAX}"));
    }
    let (mut codes, mut default) = (BTreeMap::new(), None);
    for (key, value) in table {
        let field = format!("codes.{key}");
        let meaning = meaning(checks, &field, value)?;
        if key == "default" {
            default = Some(meaning);
            continue;
        }
        let Some(code) = canonical(protocol, &key) else {
            return checks.fail(&field, "is not a code of this protocol");
        };
        if codes.insert(code, meaning).is_some() {
            return checks.fail(&field, "is there twice");
        }
    }
    let Some(default) = default else { return checks.fail("codes.default", "is missing") };
    let accepted = |meaning: &Meaning| meaning.outcome == Outcome::Accepted;
    if accepted(&default) {
        return checks.fail("codes.default", "must not be accepted");
    }
    let ok = codes.get(&status::code(status::OK));
    if protocol == Protocol::Smpp && !ok.is_some_and(accepted) {
        return checks.fail("codes.0x00", "must be accepted");
    }
    Ok((codes, default))
}

/// The one way to write a code: `0x0000000b`, `21610`, `http_429`.
fn canonical(protocol: Protocol, key: &str) -> Option<String> {
    match protocol {
        Protocol::Smpp => {
            let digits = key.strip_prefix("0x")?;
            u32::from_str_radix(digits, 16).ok().map(status::code)
        }
        Protocol::Twilio => {
            let digits = key.strip_prefix("http_").unwrap_or(key);
            let number: u32 = digits.parse().ok()?;
            let http = digits.len() < key.len();
            (number.to_string() == digits && (!http || (400..500).contains(&number))).then(|| key.to_owned())
        }
    }
}

fn meaning(checks: &Checks<'_>, field: &str, value: toml::Value) -> Result<Meaning, ContractError> {
    let entry = match value {
        toml::Value::String(outcome) => Entry { outcome, pauses: 0, rebind: false },
        table => match table.try_into::<Entry>() {
            Ok(entry) => entry,
            Err(error) => {
                return checks.fail(field, format!("is neither an outcome nor a table: {}", error.message()));
            }
        },
    };
    checks.range(field, entry.pauses, 0, 10_000)?;
    let outcome = match entry.outcome.as_str() {
        "accepted" => Outcome::Accepted,
        "throttled" => Outcome::Throttled,
        "cap_reached" => Outcome::CapReached,
        "transient" => Outcome::Transient,
        "ambiguous" => Outcome::Ambiguous,
        "rejected_number" => Outcome::RejectedNumber,
        "opted_out" => Outcome::OptedOut,
        "rejected_content" => Outcome::RejectedContent,
        "expired" => Outcome::Expired,
        "lane_broken" => Outcome::LaneBroken,
        _ => return checks.fail(field, "names no outcome that a code can have"),
    };
    Ok(Meaning { outcome, pauses: entry.pauses, rebind: entry.rebind })
}
