//! What operators do with the hours in which recipients may be texted: look, replace, and ask what counts for a recipient.
use super::admin::change;
use crate::clock::now_ms;
use crate::engine::NodeHandle;
use crate::hours::Hours;
use crate::meta::MetaClient;
use carillon_core::classes::default_policy;
use carillon_core::meta::level;
use carillon_delivery::hours::{Answer, Ask, Rulebook, check_practice_hours};
use carillon_proto::admin::{
    CheckHoursRequest, CheckHoursResponse, GetHoursResponse, PutHoursRequest, PutHoursResponse,
};
use carillon_proto::errors::{self, FieldViolation, invalid_fields, violation};
use carillon_proto::internal::{PutHours, PutPractice, RecipientZones, meta_command::Kind};
use carillon_proto::public::{ErrorReason, MessageClass, Priority};
use carillon_proto::region::{self, RegionFault};
use carillon_proto::{local_time, place};
use tonic::Status;

pub struct HoursDesk<'a> {
    pub handle: &'a NodeHandle,
    pub meta: &'a MetaClient,
    pub hours: &'a Hours,
}

impl HoursDesk<'_> {
    pub fn get(&self) -> GetHoursResponse {
        let view = self.handle.meta();
        let book = self.hours.of(&view);
        GetHoursResponse {
            rules: book.text().to_owned(),
            version: view.hours.version,
            changed_at_ms: view.hours.changed_at_ms,
            stamp: book.stamp(),
        }
    }

    pub async fn put(&self, request: PutHoursRequest) -> Result<PutHoursResponse, Status> {
        if !request.rules.is_empty() {
            let read = Rulebook::parse(&request.rules);
            read.map_err(|error| errors::status(ErrorReason::InvalidFields, &error.to_string()))?;
        }
        if !request.trial {
            self.level()?;
            let put = PutHours { rules: request.rules, replaces: request.replaces };
            change(self.meta, Kind::PutHours(put)).await?;
        }
        Ok(PutHoursResponse { version: self.handle.meta().hours.version })
    }

    /// What is wrong with the times of a practice.
    pub fn check_practice(&self, practice: &PutPractice) -> Result<Vec<FieldViolation>, Status> {
        let mut wrong = Vec::new();
        if local_time::zone(&practice.time_zone).is_none() {
            wrong.push(violation("practice.time_zone", "UNKNOWN_TIME_ZONE", "is not an IANA time zone"));
        }
        if let Some(hours) = &practice.hours
            && let Err((field, what)) = check_practice_hours(hours)
        {
            wrong.push(violation(&format!("practice.hours.{field}"), "WRONG_HOURS", &what));
        }
        if practice.hours.is_some() || practice.recipient_zones != 0 {
            self.level()?;
        }
        Ok(wrong)
    }

    /// Older programs would drop what they do not know.
    fn level(&self) -> Result<(), Status> {
        let now = self.handle.meta().level;
        if now >= level::LEVEL_DELIVERY {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this needs feature level {} and the cluster is at {now}; upgrade every node first, `carillonctl node list` shows who is behind",
            level::LEVEL_DELIVERY
        )))
    }

    /// Which rules count for a recipient, and when the hours begin next.
    pub fn check(&self, request: &CheckHoursRequest) -> Result<CheckHoursResponse, Status> {
        let view = self.handle.meta();
        let book = self.hours.of(&view);
        let named = !request.practice.is_empty() || !request.tenant.is_empty();
        let practice = view.practice(&request.tenant, &request.practice);
        if named && practice.is_none() {
            return Err(errors::status(ErrorReason::PracticeNotFound, "no such practice of this tenant"));
        }
        let mut wrong = Vec::new();
        if !request.time_zone.is_empty() && local_time::zone(&request.time_zone).is_none() {
            wrong.push(violation("time_zone", "UNKNOWN_TIME_ZONE", "is not an IANA time zone"));
        }
        let region = match (request.region.as_str(), region::known(&request.region)) {
            ("", _) => "".into(),
            (_, Ok(region)) => region,
            (_, Err(RegionFault::Malformed)) => {
                wrong.push(violation("region", "MALFORMED_REGION", "is not like US-FL or DE"));
                "".into()
            }
            (_, Err(RegionFault::Unknown)) => {
                wrong.push(violation("region", "UNKNOWN_REGION", "is not a region of ISO 3166"));
                "".into()
            }
        };
        let class = MessageClass::try_from(request.class).unwrap_or(MessageClass::Unspecified);
        if class == MessageClass::Unspecified {
            wrong.push(violation("class", "UNKNOWN_CLASS", "is not a message class"));
        }
        let place = place::resolve(place::Known {
            message_zone: &request.time_zone,
            message_region: &region,
            practice_zone: practice.map_or("", |record| &record.time_zone),
            // Without a practice the number is all that there is.
            recipient_zones: practice.map_or(RecipientZones::AreaCode, |record| record.recipient_zones()),
            number: &request.phone_number,
        });
        if wrong.is_empty() && place.time_zones.iter().all(String::is_empty) {
            let what = "give a time zone, a practice, or a number whose area code says where it is";
            wrong.push(violation("time_zone", "EMPTY", what));
        }
        if !wrong.is_empty() {
            return Err(invalid_fields(wrong));
        }
        let priority = match Priority::try_from(request.priority).unwrap_or(Priority::Unspecified) {
            Priority::Unspecified => default_policy(class).priority,
            given => given,
        };
        let at_ms = if request.at_ms == 0 { now_ms() } else { request.at_ms };
        let ask = Ask {
            place: &place,
            class: class as i32,
            priority: priority as i32,
            practice: practice.and_then(|record| record.hours.as_ref()),
            from_ms: at_ms,
        };
        let rules = book.explain(&ask);
        let local_times = Rulebook::wall_clocks(&ask);
        let (opens_ms, open_until_ms, exempt) = match book.ask(&ask) {
            Answer::Exempt(reason) => (at_ms, 0, reason),
            Answer::Window(window) => (window.open_ms, window.until_ms, String::new()),
            Answer::Never(_) => (0, 0, String::new()),
        };
        let open = opens_ms == at_ms;
        let place = Some(place);
        Ok(CheckHoursResponse { place, at_ms, open, opens_ms, open_until_ms, exempt, rules, local_times })
    }
}
