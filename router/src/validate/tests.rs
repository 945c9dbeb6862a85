//! Every rule of a message, with the exact field and word, and hostile input.
use super::*;
use carillon_proto::internal::RecipientZones;
use carillon_proto::public::NationalNumber;
use proptest::prelude::*;
use std::sync::Arc;
use tonic::Code;
use tonic_types::StatusExt as _;

const NOW_MS: u64 = 1_800_000_000_000;

fn practice() -> Practice {
    Practice {
        number: 7,
        time_zone: Arc::from("America/Chicago"),
        recipient_zones: RecipientZones::Practice,
        partition: 3,
    }
}

fn good() -> MessageSpec {
    MessageSpec {
        practice: "north".into(),
        recipient: Some(Recipient::PhoneNumber("+12125550123".into())),
        body: "See you on Tuesday at 9:30.".into(),
        class: MessageClass::Reminder as i32,
        idempotency_key: "visit-7/reminder".into(),
        ..MessageSpec::default()
    }
}

fn at(offset_ms: i64) -> Option<Timestamp> {
    let ms = NOW_MS as i64 + offset_ms;
    Some(Timestamp { seconds: ms.div_euclid(1000), nanos: (ms.rem_euclid(1000) * 1_000_000) as i32 })
}

fn check_good(spec: MessageSpec) -> Result<Checked, Status> {
    check(spec, Some(&practice()), NOW_MS)
}

/// Field and word of every violation.
fn violations(status: &Status) -> Vec<(String, String)> {
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(errors::reason_of(status), Some(ErrorReason::InvalidFields));
    let details = status.get_error_details();
    let list = &details.bad_request().expect("BadRequest is there").field_violations;
    list.iter().map(|v| (v.field.clone(), v.reason.clone())).collect()
}

#[test]
fn a_wall_clock_time_is_read_where_the_recipient_is() {
    let local = |zone: &str, number: &str, zones| {
        let practice = Practice { recipient_zones: zones, ..practice() };
        let spec = MessageSpec {
            time_zone: zone.into(),
            recipient: Some(Recipient::PhoneNumber(number.into())),
            not_before_local: "2026-12-03T09:00".into(),
            ..good()
        };
        check(spec, Some(&practice), NOW_MS).unwrap().message.not_before_ms
    };
    use RecipientZones::{AreaCode, Practice as OfPractice};
    const NINE_UTC_MS: u64 = 1_796_288_400_000;
    let hours = |ms: u64| (ms - NINE_UTC_MS) / 3_600_000;
    assert_eq!(hours(local("", "+12125550123", OfPractice)), 6);
    assert_eq!(hours(local("Pacific/Honolulu", "+12125550123", OfPractice)), 10);
    assert_eq!(hours(local("", "+12125550123", AreaCode)), 5);
    // The panhandle of Florida has two zones: the later one counts.
    assert_eq!(hours(local("", "+18505550123", AreaCode)), 6);
}

#[test]
fn a_good_message_passes_and_keeps_everything() {
    let spec = MessageSpec {
        not_before: at(1_000),
        expires_at: at(9_000),
        deadline: at(10_000),
        priority: 2,
        external_reference: "visit-7".into(),
        labels: HashMap::from([("site".to_owned(), "b".to_owned())]),
        ..good()
    };
    let checked = check_good(spec).unwrap();
    let message = checked.message;
    assert_eq!((message.practice_no, message.class, message.priority), (7, 2, 2));
    assert_eq!((message.recipient.as_str(), message.time_zone.as_str()), ("+12125550123", "America/Chicago"));
    assert_eq!(
        (message.not_before_ms, message.expires_at_ms, message.deadline_ms),
        (NOW_MS + 1_000, NOW_MS + 9_000, NOW_MS + 10_000)
    );
    let place = message.place.map(|place| carillon_proto::place::describe(&place));
    assert_eq!((message.encoding, message.segments), (1, 1));
    assert_eq!(place.as_deref(), Some("America/Chicago (practice)"));
    assert_eq!((message.external_reference.as_str(), message.labels.len()), ("visit-7", 1));
    // The class decides what is not given, on the node.
    let plain = check_good(good()).unwrap().message;
    assert_eq!((plain.priority, plain.expires_at_ms, plain.not_before_ms, plain.deadline_ms), (0, 0, 0, 0));
}

#[test]
fn each_fault_has_its_field_and_word() {
    let day_ms = 24 * 3_600_000;
    type Change = Box<dyn Fn(&mut MessageSpec)>;
    let national = |number: &str, region: &str| {
        Some(Recipient::NationalNumber(NationalNumber { number: number.into(), region: region.into() }))
    };
    let nowhere = national("2125550123", "XX");
    let (unparsable, no_region, empty) =
        (national("call me", "US"), national("2125550123", "QQ"), national("", "US"));
    let cases: Vec<(Change, &str, &str)> = vec![
        (Box::new(|s| s.practice.clear()), "practice", "EMPTY"),
        (Box::new(|s| s.recipient = None), "phone_number", "EMPTY"),
        (phone("2125550123"), "phone_number", "UNPARSABLE_NUMBER"),
        (phone("+15551234567"), "phone_number", "INVALID_NUMBER"),
        (Box::new(move |s| s.recipient = unparsable.clone()), "national_number.number", "UNPARSABLE_NUMBER"),
        (Box::new(move |s| s.recipient = no_region.clone()), "national_number.region", "UNKNOWN_REGION"),
        (Box::new(move |s| s.recipient = empty.clone()), "national_number.number", "EMPTY"),
        (Box::new(|s| s.body.clear()), "body", "EMPTY"),
        (Box::new(|s| s.body = "x".repeat(1601)), "body", "TOO_LONG"),
        (Box::new(|s| s.body = "x".repeat(1531)), "body", "TOO_MANY_SEGMENTS"),
        (Box::new(|s| s.body = "bell \u{7}".into()), "body", "CONTROL_CHARACTER"),
        (Box::new(|s| s.class = 0), "class", "UNKNOWN_CLASS"),
        (Box::new(|s| s.class = 12), "class", "UNKNOWN_CLASS"),
        (Box::new(|s| s.priority = 5), "priority", "UNKNOWN_PRIORITY"),
        (Box::new(move |s| s.not_before = at(400 * day_ms + 1)), "not_before", "TOO_FAR"),
        (
            Box::new(|s| s.not_before = Some(Timestamp { seconds: -1, nanos: 0 })),
            "not_before",
            "INVALID_TIMESTAMP",
        ),
        (
            Box::new(|s| s.deadline = Some(Timestamp { seconds: 1, nanos: -1 })),
            "deadline",
            "INVALID_TIMESTAMP",
        ),
        (Box::new(|s| s.expires_at = at(0)), "expires_at", "PAST_EXPIRY"),
        (
            Box::new(|s| (s.not_before, s.expires_at) = (at(2_000), at(2_000))),
            "expires_at",
            "EXPIRY_BEFORE_NOT_BEFORE",
        ),
        (Box::new(|s| s.deadline = at(-1)), "deadline", "PAST_DEADLINE"),
        (
            Box::new(|s| (s.not_before, s.deadline) = (at(2_000), at(1_999))),
            "deadline",
            "DEADLINE_BEFORE_NOT_BEFORE",
        ),
        (Box::new(|s| s.time_zone = "America/Springfield".into()), "time_zone", "UNKNOWN_TIME_ZONE"),
        (Box::new(|s| s.region = "Florida".into()), "region", "MALFORMED_REGION"),
        (Box::new(|s| s.region = "XX".into()), "region", "UNKNOWN_REGION"),
        (Box::new(|s| s.region = "us-xx".into()), "region", "UNKNOWN_REGION"),
        (Box::new(move |s| s.recipient = nowhere.clone()), "national_number.region", "UNKNOWN_REGION"),
        (Box::new(|s| s.not_before_local = "tomorrow".into()), "not_before_local", "NOT_A_LOCAL_TIME"),
        (Box::new(|s| s.not_before_local = "2030-12-03T09:00".into()), "not_before_local", "TOO_FAR"),
        (
            Box::new(|s| {
                s.not_before = at(1_000);
                s.not_before_local = "2026-12-03T09:00".into();
            }),
            "not_before_local",
            "BOTH_GIVEN",
        ),
        (Box::new(|s| s.idempotency_key = "k".repeat(129)), "idempotency_key", "TOO_LONG"),
        (Box::new(|s| s.external_reference = "k".repeat(129)), "external_reference", "TOO_LONG"),
        (
            Box::new(|s| s.labels = (0..17).map(|i| (i.to_string(), String::new())).collect()),
            "labels",
            "TOO_MANY",
        ),
        (Box::new(|s| s.labels = HashMap::from([("a".repeat(65), String::new())])), "labels", "TOO_LONG"),
        (Box::new(|s| s.labels = HashMap::from([("a".into(), "b".repeat(65))])), "labels", "TOO_LONG"),
        (Box::new(|s| s.labels = HashMap::from([(String::new(), "b".into())])), "labels", "EMPTY"),
    ];
    for (change, field, word) in cases {
        let mut spec = good();
        change(&mut spec);
        let status = check_good(spec).err().unwrap_or_else(|| panic!("{field} {word} passed"));
        assert_eq!(violations(&status), [(field.to_owned(), word.to_owned())]);
    }
}

#[test]
fn a_region_in_lower_case_is_the_same_region() {
    for (given, region) in [("us-fl", "US-FL"), ("De", "DE"), ("US-FL", "US-FL")] {
        let spec = MessageSpec { region: given.into(), ..good() };
        let place = check_good(spec).unwrap().message.place.unwrap_or_default();
        assert_eq!(place.regions, [region]);
    }
    let number = NationalNumber { number: "212-555-0123".into(), region: "us".into() };
    let spec = MessageSpec { recipient: Some(Recipient::NationalNumber(number)), ..good() };
    assert_eq!(check_good(spec).unwrap().message.recipient, "+12125550123");
}

fn phone(number: &str) -> Box<dyn Fn(&mut MessageSpec)> {
    let number = number.to_owned();
    Box::new(move |s| s.recipient = Some(Recipient::PhoneNumber(number.clone())))
}

#[test]
fn limits_themselves_are_allowed() {
    let spec = MessageSpec {
        body: "x".repeat(1530),
        not_before: at(400 * 24 * 3_600_000),
        deadline: at(400 * 24 * 3_600_000),
        idempotency_key: "k".repeat(128),
        external_reference: "r".repeat(128),
        labels: (0..16).map(|i| (format!("{i:064}"), "v".repeat(64))).collect(),
        time_zone: "Pacific/Honolulu".into(),
        ..good()
    };
    let checked = check_good(spec).unwrap();
    let place = checked.message.place.unwrap_or_default();
    assert_eq!(carillon_proto::place::describe(&place), "Pacific/Honolulu (message)");
    assert_eq!(checked.message.time_zone, "Pacific/Honolulu");
}

#[test]
fn all_faults_are_told_at_once() {
    let spec = MessageSpec {
        body: String::new(),
        class: 99,
        expires_at: at(-5),
        time_zone: "Mars/Olympus".into(),
        ..good()
    };
    let expected = [
        ("body", "EMPTY"),
        ("class", "UNKNOWN_CLASS"),
        ("expires_at", "PAST_EXPIRY"),
        ("time_zone", "UNKNOWN_TIME_ZONE"),
    ];
    let told = violations(&check_good(spec).err().unwrap());
    assert_eq!(told, expected.map(|(field, word)| (field.to_owned(), word.to_owned())));
}

#[test]
fn a_foreign_practice_is_not_found() {
    // Whatever else is wrong.
    let all_wrong = MessageSpec { body: String::new(), class: 99, region: "XX".into(), ..good() };
    for spec in [good(), all_wrong] {
        let status = check(spec, None, NOW_MS).err().unwrap();
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(errors::reason_of(&status), Some(ErrorReason::PracticeNotFound));
    }
}

#[test]
fn item_counts() {
    assert!(count(1, 1000).is_ok() && count(1000, 1000).is_ok());
    assert_eq!(errors::reason_of(&count(0, 1000).unwrap_err()), Some(ErrorReason::NoItems));
    assert_eq!(errors::reason_of(&count(1001, 1000).unwrap_err()), Some(ErrorReason::TooManyItems));
}

fn any_time() -> impl Strategy<Value = Option<Timestamp>> {
    proptest::option::of(
        (any::<i64>(), any::<i32>()).prop_map(|(seconds, nanos)| Timestamp { seconds, nanos }),
    )
}

/// Text with a mark that no error may repeat.
fn marked() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| format!("\u{1}SECRET{text}"))
}

fn any_spec() -> impl Strategy<Value = MessageSpec> {
    let recipient = prop_oneof![
        marked().prop_map(Recipient::PhoneNumber),
        (marked(), marked())
            .prop_map(|(number, region)| { Recipient::NationalNumber(NationalNumber { number, region }) }),
    ];
    let texts = (marked(), marked(), marked(), marked(), marked(), marked(), marked());
    let numbers = (any::<i32>(), any::<i32>());
    let times = (any_time(), any_time(), any_time());
    let labels = proptest::collection::hash_map(marked(), marked(), 0..20);
    (texts, proptest::option::of(recipient), numbers, times, labels).prop_map(
        |(texts, recipient, (class, priority), (not_before, expires_at, deadline), labels)| MessageSpec {
            practice: texts.0,
            recipient,
            body: texts.1,
            class,
            priority,
            not_before,
            expires_at,
            deadline,
            time_zone: texts.2,
            idempotency_key: texts.3.repeat(9),
            external_reference: texts.4,
            labels,
            not_before_local: texts.5,
            region: texts.6,
            ..MessageSpec::default()
        },
    )
}

proptest! {
    #[test]
    fn hostile_messages_never_panic_and_are_never_repeated(spec in any_spec(), now_ms in 0u64..=253_402_300_799_000) {
        for practice in [None, Some(&practice())] {
            let Err(status) = check(spec.clone(), practice, now_ms) else { continue };
            let shown = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
            prop_assert!(!shown.contains("SECRET"), "{shown}");
        }
    }
}

/// The budget of the router is a few microseconds a message; this catches a rule that costs ten times that.
#[test]
fn checking_a_plain_message_is_cheap() {
    let specs: Vec<_> = (0..20_000)
        .map(|i| MessageSpec {
            recipient: Some(Recipient::PhoneNumber(format!("+1212555{:04}", i % 10_000))),
            body: "Your appointment is on Tuesday at 9:30. ".repeat(8),
            time_zone: "America/New_York".into(),
            expires_at: at(60_000),
            ..good()
        })
        .collect();
    carillon_proto::local_time::warm_up();
    let began = std::time::Instant::now();
    let passed = specs.into_iter().filter_map(|spec| check_good(spec).ok()).count();
    let each = began.elapsed() / 20_000;
    println!("validation of one plain message: {each:?}");
    assert_eq!(passed, 20_000);
    assert!(each < std::time::Duration::from_micros(20), "{each:?}");
}
