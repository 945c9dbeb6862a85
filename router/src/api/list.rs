//! `ListMessages`: pages through the partitions one after the other (AIP-158).
//!
//! A page ends when it is full, large, has cost enough look-ups, or time is short; so it may be short or even empty, and only an
//! empty token means the end. A failure in the middle of a page ends the page; the next one reports it if it lasts.
use super::Shared;
use crate::deadline::Deadline;
use crate::route::{self, Reply};
use crate::token::{Position, Scope};
use crate::validate::{self, KEY_BYTES_MAX};
use crate::violations::{Fault, Violations};
use carillon_proto::internal::{NodeListRequest, NodeListResponse};
use carillon_proto::public::{
    ListMessagesRequest, ListMessagesResponse, MessageClass, MessageState, MessageView,
};
use std::ops::RangeInclusive;
use tonic::{Request, Status};

const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;
/// Most clients take answers up to 4 MiB; the last look-up may go over this.
const PAGE_BYTES_MAX: usize = 2 << 20;
/// Messages of one look-up.
const LOOKUP_MAX: usize = 100;
/// Rows that a node looks at for one look-up.
const LOOKUP_ROWS_MAX: u32 = 10_000;
/// Look-ups for one page.
const LOOKUPS_MAX: usize = 64;
/// Entries of a repeated filter.
const FILTER_ENTRIES_MAX: usize = 32;

pub(super) async fn list(
    shared: &Shared,
    request: Request<ListMessagesRequest>,
) -> Result<ListMessagesResponse, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let mut filter = request.into_inner();
    let partitions = shared.own_practice(caller.tenant(), &filter.practice, deadline).await?;
    check(&filter)?;
    let range = if filter.practice.is_empty() {
        1..=partitions
    } else {
        let map = shared.map.load();
        let practice = map.practice(caller.tenant(), &filter.practice);
        let partition = practice.ok_or_else(validate::practice_not_found)?.partition;
        partition..=partition
    };
    let scope = Scope::of_list(caller.tenant(), &filter);
    let start = if filter.page_token.is_empty() {
        Position { partition: *range.start(), after: bytes::Bytes::new() }
    } else {
        Position::decode(&filter.page_token, scope)?
    };
    let page_size = match usize::try_from(filter.page_size).unwrap_or(0) {
        0 => PAGE_DEFAULT,
        given => given.min(PAGE_MAX),
    };
    filter.page_token.clear();
    filter.page_size = 0;
    let pager = Pager { shared, tenant: caller.tenant(), filter, deadline, range, page_size };
    let (messages, next) = pager.page(start).await?;
    let next_page_token = next.map_or_else(String::new, |position| position.encode(scope));
    Ok(ListMessagesResponse { messages, next_page_token })
}

fn check(filter: &ListMessagesRequest) -> Result<(), Status> {
    let mut bad = Violations::default();
    if filter.page_size < 0 {
        bad.add("page_size", Fault::NEGATIVE);
    }
    if MessageView::try_from(filter.view).is_err() {
        bad.add("view", Fault::UNKNOWN_VIEW);
    }
    check_entries(
        "states",
        &filter.states,
        |n| MessageState::try_from(n).is_ok(),
        Fault::UNKNOWN_STATE,
        &mut bad,
    );
    check_entries(
        "classes",
        &filter.classes,
        |n| MessageClass::try_from(n).is_ok(),
        Fault::UNKNOWN_CLASS,
        &mut bad,
    );
    if !filter.external_reference.is_empty() && filter.practice.is_empty() {
        bad.add("practice", Fault::EMPTY);
    }
    if filter.external_reference.len() > KEY_BYTES_MAX {
        bad.add("external_reference", Fault::TOO_LONG);
    }
    let mut time = |field, time: &Option<prost_types::Timestamp>| {
        let time = time.as_ref()?;
        let ms = validate::millis(time);
        if ms.is_none() {
            bad.add(field, Fault::INVALID_TIMESTAMP);
        }
        ms
    };
    let after = time("accepted_after", &filter.accepted_after);
    let before = time("accepted_before", &filter.accepted_before);
    if after.zip(before).is_some_and(|(after, before)| before <= after) {
        bad.add("accepted_before", Fault::EMPTY_INTERVAL);
    }
    bad.into_result()
}

fn check_entries(field: &str, entries: &[i32], known: fn(i32) -> bool, fault: Fault, bad: &mut Violations) {
    if entries.len() > FILTER_ENTRIES_MAX {
        return bad.add(field, Fault::TOO_MANY);
    }
    for (index, entry) in entries.iter().enumerate() {
        if *entry == 0 || !known(*entry) {
            bad.add(&format!("{field}[{index}]"), fault);
        }
    }
}

struct Pager<'a> {
    shared: &'a Shared,
    tenant: &'a str,
    filter: ListMessagesRequest,
    deadline: Deadline,
    range: RangeInclusive<u32>,
    page_size: usize,
}

impl Pager<'_> {
    /// One page from `position` on, and where the next one begins.
    async fn page(
        &self,
        mut position: Position,
    ) -> Result<(Vec<carillon_proto::public::Message>, Option<Position>), Status> {
        let (mut messages, mut bytes) = (Vec::new(), 0);
        let half_time = self.deadline.remaining() / 2;
        for _ in 0..LOOKUPS_MAX {
            if !self.range.contains(&position.partition) {
                return Ok((messages, None));
            }
            let limit = (self.page_size - messages.len()).min(LOOKUP_MAX);
            let found = match self.look_up(&position, limit as u32).await {
                Ok(found) => found,
                Err(_) if !messages.is_empty() => break,
                Err(status) => return Err(status),
            };
            bytes += found.messages.iter().map(prost::Message::encoded_len).sum::<usize>();
            messages.extend(found.messages);
            position.after = found.next;
            if position.after.is_empty() {
                position.partition += 1;
            }
            let short_of_time = self.deadline.remaining() < half_time;
            if messages.len() >= self.page_size || bytes >= PAGE_BYTES_MAX || short_of_time {
                break;
            }
        }
        let more = self.range.contains(&position.partition);
        Ok((messages, more.then_some(position)))
    }

    async fn look_up(&self, position: &Position, limit: u32) -> Result<NodeListResponse, Status> {
        route::on_leader(&self.shared.map, position.partition, "List", self.deadline, |mut client| {
            let asked = NodeListRequest {
                tenant: self.tenant.to_owned(),
                partition: position.partition,
                filter: Some(self.filter.clone()),
                after: position.after.clone(),
                limit,
                scan_limit: LOOKUP_ROWS_MAX,
            };
            async move {
                let mut found = client.list(route::timed(asked, self.deadline)).await?.into_inner();
                Ok(match found.not_leader.take() {
                    Some(hint) => Reply::NotLeader(hint),
                    None => Reply::Done(found),
                })
            }
        })
        .await
    }
}
