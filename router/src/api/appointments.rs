//! `UpdateAppointment`: checks the whole request at once and hands it to the practice's partition. Its version makes repeats safe.
use super::{Api, Shared, observed, series};
use crate::route::{self, Reply};
use crate::text::{self, TextFault};
use crate::validate::{self, AHEAD_MAX_MS, KEY_BYTES_MAX};
use crate::violations::{Fault, Violations};
use carillon_proto::errors;
use carillon_proto::internal::{NodeChange, NodeUpdateRequest, node_update_response::Result as Updated};
use carillon_proto::public::appointments_server::Appointments;
use carillon_proto::public::{
    CreateSeriesRequest, EndSeriesRequest, ErrorReason, GetSeriesRequest, MessageChange, MessageClass,
    Series, UpdateAppointmentRequest, UpdateAppointmentResponse,
};
use prost_types::Timestamp;
use tonic::{Request, Response, Status};

const CHANGES_MAX: usize = 16;

#[tonic::async_trait]
impl Appointments for Api {
    async fn update_appointment(
        &self,
        request: Request<UpdateAppointmentRequest>,
    ) -> Result<Response<UpdateAppointmentResponse>, Status> {
        observed("UpdateAppointment", update(&self.0, request)).await
    }

    async fn create_series(&self, request: Request<CreateSeriesRequest>) -> Result<Response<Series>, Status> {
        observed("CreateSeries", series::create(&self.0, request)).await
    }

    async fn get_series(&self, request: Request<GetSeriesRequest>) -> Result<Response<Series>, Status> {
        observed("GetSeries", series::get(&self.0, request)).await
    }

    async fn end_series(&self, request: Request<EndSeriesRequest>) -> Result<Response<Series>, Status> {
        observed("EndSeries", series::end(&self.0, request)).await
    }
}

async fn update(
    shared: &Shared,
    request: Request<UpdateAppointmentRequest>,
) -> Result<UpdateAppointmentResponse, Status> {
    let caller = shared.authorize(&request)?;
    let deadline = caller.required_deadline()?;
    let request = request.into_inner();
    shared.own_practice(caller.tenant(), &request.practice, deadline).await?;
    let changes = check(&request, super::now_ms())?;
    let map = shared.map.load();
    let practice =
        map.practice(caller.tenant(), &request.practice).ok_or_else(validate::practice_not_found)?;
    let asked = NodeUpdateRequest {
        tenant: caller.tenant().to_owned(),
        partition: practice.partition,
        practice_no: practice.number,
        external_reference: request.external_reference,
        version: request.version,
        changes,
        validate_only: request.validate_only,
    };
    route::on_leader(&shared.map, asked.partition, "Update", deadline, |mut client| {
        let asked = asked.clone();
        async move {
            match client.update(route::timed(asked, deadline)).await?.into_inner().result {
                Some(Updated::Updated(answer)) => Ok(Reply::Done(answer)),
                Some(Updated::NotLeader(hint)) => Ok(Reply::NotLeader(hint)),
                Some(Updated::Error(error)) => Err(errors::from_rpc(&error)),
                None => Err(errors::status(ErrorReason::Internal, "a node answered nothing")),
            }
        }
    })
    .await
}

fn check(request: &UpdateAppointmentRequest, now_ms: u64) -> Result<Vec<NodeChange>, Status> {
    let mut bad = Violations::default();
    if request.practice.is_empty() {
        bad.add("practice", Fault::EMPTY);
    }
    match request.external_reference.len() {
        0 => bad.add("external_reference", Fault::EMPTY),
        bytes if bytes > KEY_BYTES_MAX => bad.add("external_reference", Fault::TOO_LONG),
        _ => {}
    }
    if request.version == 0 {
        bad.add("version", Fault::EMPTY);
    }
    match request.changes.len() {
        0 => bad.add("changes", Fault::EMPTY),
        count if count > CHANGES_MAX => bad.add("changes", Fault::TOO_MANY),
        _ => {}
    }
    let changes = request.changes.iter().take(CHANGES_MAX).enumerate();
    let changes = changes.map(|(index, change)| checked(change, index, now_ms, &mut bad)).collect();
    bad.into_result().map(|()| changes)
}

fn checked(change: &MessageChange, index: usize, now_ms: u64, bad: &mut Violations) -> NodeChange {
    let mut out =
        NodeChange { classes: change.classes.clone(), cancel: change.cancel, ..NodeChange::default() };
    let field = |name: &str| format!("changes[{index}].{name}");
    if change.classes.iter().any(|class| *class == 0 || MessageClass::try_from(*class).is_err()) {
        bad.add(&field("classes"), Fault::UNKNOWN_CLASS);
    }
    if !change.body.is_empty() {
        match text::check(&change.body) {
            Ok(sms) => {
                out.body = change.body.clone();
                (out.encoding, out.segments) = (sms.encoding as i32, sms.segments);
            }
            Err(fault) => bad.add(&field("body"), of_text(fault)),
        }
    }
    let time = |name: &str, time: &Option<Timestamp>, bad: &mut Violations| match time
        .as_ref()
        .map(validate::millis)
    {
        None => 0,
        Some(Some(ms)) => ms.max(1),
        Some(None) => {
            bad.add(&field(name), Fault::INVALID_TIMESTAMP);
            0
        }
    };
    out.not_before_ms = time("not_before", &change.not_before, bad);
    out.expires_at_ms = time("expires_at", &change.expires_at, bad);
    out.deadline_ms = time("deadline", &change.deadline, bad);
    if out.not_before_ms > now_ms + AHEAD_MAX_MS {
        bad.add(&field("not_before"), Fault::TOO_FAR);
    }
    if out.expires_at_ms > 0 && out.expires_at_ms <= now_ms.max(out.not_before_ms) {
        let passed = out.expires_at_ms <= now_ms;
        bad.add(
            &field("expires_at"),
            if passed { Fault::PAST_EXPIRY } else { Fault::EXPIRY_BEFORE_NOT_BEFORE },
        );
    }
    if out.deadline_ms > 0 && out.deadline_ms <= now_ms {
        bad.add(&field("deadline"), Fault::PAST_DEADLINE);
    } else if out.deadline_ms > 0 && out.deadline_ms < out.not_before_ms {
        bad.add(&field("deadline"), Fault::DEADLINE_BEFORE_NOT_BEFORE);
    }
    let times = out.not_before_ms > 0 || out.expires_at_ms > 0 || out.deadline_ms > 0;
    if let Some(shift) = &change.shift {
        let ms =
            shift.seconds.checked_mul(1_000).and_then(|s| s.checked_add(i64::from(shift.nanos) / 1_000_000));
        match ms.filter(|ms| ms.unsigned_abs() <= AHEAD_MAX_MS) {
            Some(_) if times => bad.add(&field("shift"), Fault::SHIFT_AND_TIMES),
            Some(ms) => out.shift_ms = ms,
            None => bad.add(&field("shift"), Fault::TOO_FAR),
        }
    }
    if change.cancel && (times || !change.body.is_empty() || change.shift.is_some()) {
        bad.add(&field("cancel"), Fault::CANCEL_AND_CHANGE);
    }
    if !change.cancel && !times && change.body.is_empty() && change.shift.is_none() {
        bad.add(&field("cancel"), Fault::EMPTY);
    }
    out
}

fn of_text(fault: TextFault) -> Fault {
    match fault {
        TextFault::Empty => Fault::EMPTY,
        TextFault::TooLong => Fault::TOO_LONG,
        TextFault::TooManySegments => Fault::TOO_MANY_SEGMENTS,
        TextFault::ControlCharacter => Fault::CONTROL_CHARACTER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_793_000_000_000;

    fn at(ms: u64) -> Option<Timestamp> {
        Some(Timestamp { seconds: (ms / 1_000) as i64, nanos: 0 })
    }

    fn request(changes: Vec<MessageChange>) -> UpdateAppointmentRequest {
        UpdateAppointmentRequest {
            practice: "north".into(),
            external_reference: "visit-1".into(),
            version: 1,
            changes,
            validate_only: false,
        }
    }

    fn faults(change: MessageChange) -> Vec<String> {
        use tonic_types::StatusExt as _;
        let Err(status) = check(&request(vec![change]), NOW) else { return Vec::new() };
        let details = status.get_error_details();
        let found = &details.bad_request().expect("fields are named").field_violations;
        found.iter().map(|v| format!("{} {}", v.field.trim_start_matches("changes[0]."), v.reason)).collect()
    }

    #[test]
    fn good_changes_pass_with_their_numbers() {
        let moved =
            MessageChange { not_before: at(NOW + 1_000), deadline: at(NOW + 9_000), ..Default::default() };
        let text = MessageChange { body: "a".repeat(161), classes: vec![2], ..Default::default() };
        let shift = Some(prost_types::Duration { seconds: -3_600, nanos: 0 });
        let shifted = MessageChange { shift, ..Default::default() };
        let changes = check(&request(vec![moved, text, shifted]), NOW).expect("they are good");
        assert_eq!((changes[0].not_before_ms, changes[0].deadline_ms), (NOW + 1_000, NOW + 9_000));
        assert_eq!((changes[1].segments, changes[1].encoding), (2, 1));
        assert_eq!(changes[2].shift_ms, -3_600_000);
    }

    #[test]
    fn everything_that_is_wrong_is_named() {
        let shift = Some(prost_types::Duration { seconds: 1, nanos: 0 });
        let cases = [
            (MessageChange::default(), vec!["cancel EMPTY"]),
            (
                MessageChange { cancel: true, body: "x".into(), ..Default::default() },
                vec!["cancel CANCEL_AND_CHANGE"],
            ),
            (
                MessageChange { classes: vec![0], cancel: true, ..Default::default() },
                vec!["classes UNKNOWN_CLASS"],
            ),
            (MessageChange { body: " ".into(), ..Default::default() }, vec!["body EMPTY"]),
            (MessageChange { deadline: at(NOW - 1), ..Default::default() }, vec!["deadline PAST_DEADLINE"]),
            (
                MessageChange { shift, deadline: at(NOW + 9_000), ..Default::default() },
                vec!["shift SHIFT_AND_TIMES"],
            ),
            (
                MessageChange {
                    not_before: at(NOW + 9_000),
                    expires_at: at(NOW + 8_000),
                    ..Default::default()
                },
                vec!["expires_at EXPIRY_BEFORE_NOT_BEFORE"],
            ),
        ];
        for (change, expected) in cases {
            assert_eq!(faults(change), expected);
        }
        let empty = UpdateAppointmentRequest::default();
        let status = check(&empty, NOW).expect_err("nothing is given");
        assert!(status.message().len() > 10);
    }
}
