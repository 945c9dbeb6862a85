//! What the API shows of messages, and redaction.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::create::Reply;
use super::{Rest, error_code, id_of, sid};
use crate::smsc::center::Center;

/// Messages on one page at most.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 50;

fn date(wall_us: u64) -> String {
    let at = Timestamp::from_second((wall_us / 1_000_000) as i64).unwrap_or(Timestamp::UNIX_EPOCH);
    rfc2822::to_string(&at.to_zoned(TimeZone::UTC)).unwrap_or_default()
}

/// The first moment of a day in UTC, in microseconds.
fn day_us(day: &str) -> Option<u64> {
    let date: jiff::civil::Date = day.parse().ok()?;
    let at = date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_microsecond();
    u64::try_from(at).ok()
}

fn answer(status: u16, body: &Value) -> Reply {
    let body = body.to_string();
    Reply::Answer { status, retry_after_s: None, body, after: std::time::Duration::ZERO }
}

impl Rest {
    /// A message as JSON.
    pub fn show(&self, id: u64, wall_us: u64) -> Option<Value> {
        let message = self.messages.get(&id)?;
        let is_final = wall_us >= message.final_at_us;
        let code = error_code(message.state, message.err).filter(|_| is_final);
        Some(json!({
            "sid": sid(id), "account_sid": self.config.account_sid, "to": message.to, "from": message.from,
            "body": message.body, "status": message.status(wall_us), "num_segments": message.segments.to_string(),
            "error_code": code, "direction": "outbound-api", "date_created": date(message.created_us),
            "date_sent": date(message.created_us),
        }))
    }
}

impl Center {
    /// `GET Messages.json`: newest first.
    pub fn list(&mut self, path: &str, query: &HashMap<String, String>, now_us: u64) -> Reply {
        let wall_us = self.wall_us(now_us);
        let Some(rest) = &mut self.rest else { return Reply::HangUp };
        rest.stats.lists += 1;
        let size =
            query.get("PageSize").and_then(|size| size.parse().ok()).unwrap_or(PAGE).clamp(1, PAGE_MAX);
        let at: usize = query.get("Page").and_then(|page| page.parse().ok()).unwrap_or(0);
        let (to, since) = (query.get("To"), query.get("DateSent>").map(|day| day_us(day)));
        if since == Some(None) {
            return Reply::problem(400, 20_001, 0);
        }
        let since_us = since.flatten().unwrap_or(0);
        let mut ids: Vec<u64> = match to {
            Some(to) => rest.by_number.get(to).cloned().unwrap_or_default(),
            None => rest.messages.keys().copied().collect(),
        };
        ids.retain(|id| rest.messages.get(id).is_some_and(|message| message.created_us >= since_us));
        ids.sort_unstable_by(|a, b| b.cmp(a));
        let shown: Vec<Value> =
            ids.iter().skip(at * size).take(size).filter_map(|id| rest.show(*id, wall_us)).collect();
        let next = ((at + 1) * size < ids.len()).then(|| {
            let mut next = form_urlencoded::Serializer::new(String::new());
            for name in ["To", "DateSent>"] {
                if let Some(value) = query.get(name) {
                    next.append_pair(name, value);
                }
            }
            let next = next
                .append_pair("PageSize", &size.to_string())
                .append_pair("Page", &(at + 1).to_string())
                .finish();
            format!("{path}?{next}")
        });
        answer(200, &json!({ "messages": shown, "page": at, "page_size": size, "next_page_uri": next }))
    }

    /// `GET Messages/{sid}.json`.
    pub fn read(&mut self, sid: &str, now_us: u64) -> Reply {
        let wall_us = self.wall_us(now_us);
        let Some(rest) = &mut self.rest else { return Reply::HangUp };
        rest.stats.reads += 1;
        match id_of(sid).and_then(|id| rest.show(id, wall_us)) {
            Some(message) => answer(200, &message),
            None => Reply::problem(404, 20_404, 0),
        }
    }

    /// `POST Messages/{sid}.json` with an empty `Body`: the text goes, once the state is final.
    pub fn redact(&mut self, sid: &str, form: &HashMap<String, String>, now_us: u64) -> Reply {
        let wall_us = self.wall_us(now_us);
        let Some(rest) = &mut self.rest else { return Reply::HangUp };
        let Some(id) = id_of(sid).filter(|id| rest.messages.contains_key(id)) else {
            return Reply::problem(404, 20_404, 0);
        };
        if form.get("Body").is_none_or(|body| !body.is_empty()) {
            return Reply::problem(400, 20_001, 0);
        }
        match rest.messages.get_mut(&id) {
            Some(message) if wall_us >= message.final_at_us => {
                message.body.clear();
                rest.stats.redacted += 1;
            }
            _ => return Reply::problem(400, 20_009, 0),
        }
        rest.show(id, wall_us).map_or(Reply::HangUp, |message| answer(200, &message))
    }
}
