//! Asks the carrier about one message: by its id, else by listing what went to its number and comparing the texts.
//!
//! A message is found only if exactly one of the listed ones fits in number, text and time: with two nobody can tell which
//! one it is. Texts of the list are wiped with the answer's structure; hyper's buffers are not.
//!
//! Bounds: the contract's quota a minute, pages and page size.
use super::Shared;
use super::answer::{Answer, Resource, is_message_sid};
use super::send::ask;
use crate::connector::{LookUp, LookUpAnswer};
use crate::contract::LookUpTerms;
use crate::smpp::international_digits;
use carillon_proto::internal::ReceiptState;
use http::{Method, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use parking_lot::Mutex;
use serde::Deserialize;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use zeroize::{Zeroize as _, Zeroizing};

const MINUTE: Duration = Duration::from_secs(60);

/// Calls of the running minute.
#[derive(Default)]
pub(crate) struct Quota(Mutex<Option<(Instant, u32)>>);

impl Quota {
    /// Takes one call, or says when the next one is allowed.
    pub fn take(&self, per_minute: u32) -> Result<(), Duration> {
        self.take_at(per_minute, Instant::now())
    }

    fn take_at(&self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let mut used = self.0.lock();
        match used.as_mut().filter(|(since, _)| now < *since + MINUTE) {
            Some((since, count)) if *count >= per_minute => Err(*since + MINUTE - now),
            Some((_, count)) => {
                *count += 1;
                Ok(())
            }
            None => {
                *used = Some((now, 1));
                Ok(())
            }
        }
    }
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<Listed>,
    next_page_uri: Option<String>,
}

/// A number or a text, wiped on drop.
#[derive(Deserialize)]
#[serde(transparent)]
struct Wiped(String);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    to: Option<Wiped>,
    #[serde(default)]
    body: Option<Wiped>,
    #[serde(default)]
    direction: String,
    #[serde(default)]
    date_created: String,
    #[serde(flatten)]
    resource: Resource,
}

/// Looks a message up.
pub(crate) async fn look_up(shared: &Shared, question: LookUp) -> LookUpAnswer {
    let Some(terms) = shared.account().contract.get().look_up else { return LookUpAnswer::Unsupported };
    let answer = match &question.carrier_ref {
        Some(sid) if is_message_sid(sid) => by_id(shared, terms, sid).await,
        _ => by_list(shared, terms, &question).await,
    };
    shared.pool.meters.look_up(match &answer {
        LookUpAnswer::Found { .. } => "found",
        LookUpAnswer::Absent { .. } => "absent",
        LookUpAnswer::Several => "several",
        LookUpAnswer::NotNow { .. } => "not_now",
        LookUpAnswer::Unsupported => "unsupported",
    });
    if let LookUpAnswer::Found { carrier_ref, state, .. } = &answer
        && *state != ReceiptState::Enroute
    {
        super::redact::ask_for(shared, carrier_ref.clone());
    }
    answer
}

/// One call, if the quota allows it. `Err`: not now.
async fn get(shared: &Shared, terms: LookUpTerms, path: &str) -> Result<Answer, LookUpAnswer> {
    let not_now = |retry_after| LookUpAnswer::NotNow { retry_after };
    shared.quota.take(terms.quota_per_minute).map_err(not_now)?;
    let answer = ask(shared, Method::GET, path, Vec::new()).await.ok_or(not_now(MINUTE))?;
    match answer.status {
        status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(answer),
        _ => Err(not_now(answer.retry_after.unwrap_or(MINUTE))),
    }
}

async fn by_id(shared: &Shared, terms: LookUpTerms, sid: &str) -> LookUpAnswer {
    let path = format!("{}/{sid}.json", shared.account().messages_path());
    let answer = match get(shared, terms, &path).await {
        Ok(answer) => answer,
        Err(not_now) => return not_now,
    };
    if answer.status == StatusCode::NOT_FOUND {
        // It gave out the id, so it had the message: it was deleted since.
        return LookUpAnswer::Absent { proven: false };
    }
    match serde_json::from_slice::<Resource>(&answer.body) {
        Ok(resource) => found(shared, &resource),
        Err(_) => LookUpAnswer::NotNow { retry_after: MINUTE },
    }
}

fn found(shared: &Shared, resource: &Resource) -> LookUpAnswer {
    let code = resource.error_code.map(|code| code.to_string());
    let contract = shared.account().contract.get();
    // It has it: with an unknown word at least that is known.
    let state = contract.receipt_state(&resource.status, code.as_deref()).unwrap_or(ReceiptState::Enroute);
    let word: String = resource.status.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    LookUpAnswer::Found { carrier_ref: resource.sid.clone(), state, code: code.unwrap_or(word) }
}

async fn by_list(shared: &Shared, terms: LookUpTerms, question: &LookUp) -> LookUpAnswer {
    let Some(digits) = international_digits(question.recipient.expose()) else {
        return LookUpAnswer::Absent { proven: true };
    };
    let (Some(from), Some(to)) = (
        timestamp(question.sent_after, -signed(terms.clock_skew)),
        timestamp(question.sent_before, signed(terms.clock_skew)),
    ) else {
        return LookUpAnswer::Unsupported;
    };
    // The list is by day, in UTC.
    let day = from.strftime("%Y-%m-%d");
    let base = shared.account().messages_path();
    let mut path =
        Zeroizing::new(format!("{base}.json?To=%2B{digits}&DateSent%3E={day}&PageSize={}", terms.page_size));
    let mut fitting: Option<LookUpAnswer> = None;
    for _ in 0..terms.pages_max {
        let answer = match get(shared, terms, &path).await {
            Ok(answer) => answer,
            Err(not_now) => return not_now,
        };
        let Ok(page) = serde_json::from_slice::<Page>(&answer.body) else {
            return LookUpAnswer::NotNow { retry_after: MINUTE };
        };
        for listed in page.messages.iter().filter(|listed| fits(listed, digits, question, from, to)) {
            if fitting.replace(found(shared, &listed.resource)).is_some() {
                return LookUpAnswer::Several;
            }
        }
        // Only a page of the same list: an answer must not send us anywhere else.
        match page.next_page_uri.filter(|next| next.starts_with(&format!("{base}.json?"))) {
            Some(next) => path = Zeroizing::new(next),
            None => return fitting.unwrap_or_else(|| absent(terms, question)),
        }
    }
    // There is more than may be read: what fits may not be the only one.
    LookUpAnswer::Several
}

fn signed(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn timestamp(time: SystemTime, shift_s: i64) -> Option<Timestamp> {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Timestamp::from_second(i64::try_from(seconds).ok()?.checked_add(shift_s)?).ok()
}

fn fits(listed: &Listed, digits: &str, question: &LookUp, from: Timestamp, to: Timestamp) -> bool {
    let same_number = listed.to.as_ref().is_some_and(|Wiped(to)| to.trim_start_matches('+') == digits);
    let same_text = listed.body.as_ref().is_some_and(|Wiped(body)| body == question.body.expose());
    let outbound = listed.direction.is_empty() || listed.direction.starts_with("outbound");
    let created = rfc2822::parse(&listed.date_created).ok().map(|at| at.timestamp());
    let in_time = created.is_some_and(|at| (from..=to).contains(&at));
    same_number && same_text && outbound && in_time && is_message_sid(&listed.resource.sid)
}

fn absent(terms: LookUpTerms, question: &LookUp) -> LookUpAnswer {
    let age = SystemTime::now().duration_since(question.sent_before).unwrap_or_default();
    LookUpAnswer::Absent { proven: terms.absence_is_proof_after.is_some_and(|after| age >= after) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_holds_for_each_minute() {
        let (quota, start) = (Quota::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        for _ in 0..3 {
            assert_eq!(quota.take_at(3, start), Ok(()));
        }
        assert_eq!(quota.take_at(3, start), Err(MINUTE));
        assert_eq!(quota.take_at(3, at(59)), Err(Duration::from_secs(1)));
        assert_eq!(quota.take_at(3, at(60)), Ok(()));
    }
}
