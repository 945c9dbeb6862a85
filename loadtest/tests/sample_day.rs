//! The bundled day is what the generator makes, and is what it claims to be.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hasher as _;

use carillon_loadtest::demo::PROFILE;
use carillon_loadtest::sample_day::YEAR;
use carillon_loadtest::sample_day::generate::{
    LANDLINE_DROPPED, LANDLINE_REFUSED, MESSAGES, SEED, STORM_MS, generate,
};
use carillon_loadtest::sample_day::{
    Day, DayMessage, Line, TENANT, bundled_digest, digest, is_bundled, practices,
};
use carillon_loadtest::smsc::Profile;
use carillon_proto::Slot;
use carillon_proto::public::Encoding;
use carillon_proto::public::message_spec::Recipient;
use carillon_proto::sms;
use siphasher::sip::SipHasher13;

/// Changes only when the day is made anew on purpose.
const DIGEST: &str = "b656595ea9567c7b89a09218d682665f938fd6df47581717bdbe1472c7a3f9a9";

fn day() -> Day {
    Day::bundled().unwrap()
}

#[test]
fn the_bundled_file_is_what_the_generator_makes() {
    let text = generate(SEED).unwrap().to_jsonl().unwrap();
    assert!(
        is_bundled(&text),
        "write it anew with: carillon-loadtest sample-day --write loadtest/data/sample-day.jsonl"
    );
    assert_eq!((digest(&text).as_str(), bundled_digest().as_str()), (DIGEST, DIGEST));
    assert!(text.len() < 4 << 20, "{} octets", text.len());
    assert!(generate(SEED + 1).unwrap() != day());
}

#[test]
fn forty_practices_of_zipf_sizes_in_four_zones_cover_all_partitions() {
    let (day, practices) = (day(), practices().unwrap());
    let mut sizes: HashMap<&str, usize> = HashMap::new();
    day.messages().for_each(|m| *sizes.entry(m.practice.as_str()).or_insert(0) += 1);
    assert_eq!((sizes.len(), practices.len()), (40, 40));
    let size = |rank: usize| sizes[practices[rank - 1].name.as_str()] as f64;
    assert!((1.8..2.2).contains(&(size(1) / size(2))), "{sizes:?}");
    assert!((8.0..12.5).contains(&(size(1) / size(10))), "{sizes:?}");
    assert!(size(40) >= 30.0, "{sizes:?}");
    let zones: BTreeSet<_> = practices.iter().map(|p| p.time_zone.as_str()).collect();
    let four = ["America/Chicago", "America/Denver", "America/Los_Angeles", "America/New_York"];
    assert_eq!(zones.into_iter().collect::<Vec<_>>(), four);
    let partitions: BTreeSet<_> =
        practices.iter().map(|p| Slot::of_practice(TENANT, &p.name).partition(16)).collect();
    assert_eq!(partitions.len(), 16);
    assert!(practices.iter().all(|p| carillon_proto::identity::is_name(&p.name)));
}

#[test]
fn ten_thousand_messages_over_eleven_classes_each_with_its_own_key_and_text() {
    let day = day();
    let (mut classes, mut keys, mut content) = (BTreeMap::new(), HashSet::new(), HashSet::new());
    for message in day.messages() {
        *classes.entry(message.class.as_str()).or_insert(0u32) += 1;
        assert!(keys.insert(message.key.as_str()));
        assert!(content.insert((message.to.as_str(), message.text.as_str())));
    }
    assert_eq!((keys.len(), classes.len()), (MESSAGES, 11));
    assert!(classes.values().all(|count| *count >= 100), "{classes:?}");
}

#[test]
fn numbers_are_fictitious_and_valid() {
    let numbers: BTreeSet<String> = day().messages().map(|m| m.to.clone()).collect();
    assert!(numbers.len() > 2_000);
    for number in &numbers {
        assert!(number.len() == 12 && &number[5..10] == "55501", "{number}");
        let parsed: rlibphonenumber::PhoneNumber = number.parse().unwrap();
        assert!(parsed.is_valid(), "{number}");
    }
}

#[test]
fn texts_are_of_all_kinds_and_within_the_limits() {
    let (mut wide, mut accented, mut long, mut segments) = (0, 0, 0, 0);
    for message in day().messages() {
        let sms = sms::analyze(&message.text);
        wide += u32::from(sms.encoding == Encoding::Ucs2);
        accented += u32::from(sms.encoding == Encoding::Gsm7 && !message.text.is_ascii());
        long += u32::from(sms.segments >= 3);
        segments += sms.segments;
        assert!(sms.segments <= 10 && message.text.chars().count() <= 1_600);
        assert!(!message.text.contains(['{', '}']), "a gap was not filled");
    }
    assert!((400..2_000).contains(&wide), "{wide} in UCS-2");
    assert!(accented >= 500, "{accented} accented");
    assert!(long >= 50, "{long} long");
    assert!((11_000..17_000).contains(&segments), "{segments} segments");
}

/// The words after each `before` in a text.
fn words_after<'a>(text: &'a str, before: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    text.match_indices(before).map(move |(at, _)| {
        let rest = &text[at + before.len()..];
        rest.split([' ', ',', '.', ':']).filter(|word| !word.is_empty()).take(3).collect()
    })
}

#[test]
fn weekdays_and_dates_in_the_texts_fit_together() {
    const EN: [&str; 7] = ["Mon, ", "Tue, ", "Wed, ", "Thu, ", "Fri, ", "Sat, ", "Sun, "];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const ES: [(&str, i8); 4] = [("lunes ", 0), ("martes ", 1), ("jueves ", 3), ("viernes ", 4)];
    const MONTHS_ES: [&str; 12] = [
        "enero",
        "febrero",
        "marzo",
        "abril",
        "mayo",
        "junio",
        "julio",
        "agosto",
        "septiembre",
        "octubre",
        "noviembre",
        "diciembre",
    ];
    let weekday = |month: usize, day: &str| {
        let date = jiff::civil::Date::new(YEAR, month as i8 + 1, day.parse().unwrap()).unwrap();
        date.weekday().to_monday_zero_offset()
    };
    let (mut english, mut spanish) = (0, 0);
    for message in day().messages() {
        for (expected, name) in (0..).zip(EN) {
            for words in words_after(&message.text, name) {
                let month = MONTHS.iter().position(|m| *m == words[0]).expect("a month");
                assert_eq!(weekday(month, words[1]), expected, "{}", message.text);
                english += 1;
            }
        }
        for (name, expected) in ES {
            for words in words_after(&message.text, name) {
                assert_eq!(words[1], "de", "{}", message.text);
                let month = MONTHS_ES.iter().position(|m| *m == words[2]).expect("a month");
                assert_eq!(weekday(month, words[0]), expected, "{}", message.text);
                spanish += 1;
            }
        }
    }
    assert!(english > 5_000 && spanish > 300, "{english} {spanish}");
}

#[test]
fn the_plot_has_cancels_repetitions_refusals_and_offers_that_run_out() {
    let day = day();
    let by_key: HashMap<&str, &DayMessage> = day.messages().map(|m| (m.key.as_str(), m)).collect();
    let (mut early, mut late, mut by_reference, mut again) = (0, 0, 0, 0);
    for line in &day.lines {
        match line {
            Line::CancelKeys(cancel) => {
                for key in &cancel.cancel_keys {
                    match by_key[key.as_str()].not_before_ms {
                        Some(not_before_ms) if not_before_ms > cancel.at_ms + 3_000 => early += 1,
                        None => late += 1,
                        Some(_) => panic!("a cancel that could go either way"),
                    }
                }
            }
            Line::CancelReferences(_) => by_reference += 1,
            Line::Again(_) => again += 1,
            Line::Message(_) => {}
        }
    }
    assert_eq!((early, late, by_reference, again), (150, 60, 40, 60));
    let refused = day.lines.iter().filter(|l| matches!(l, Line::Message(m) if m.refuse.is_some())).count();
    assert_eq!(refused, 12);
    let in_storm =
        |m: &&DayMessage| m.expires_ms.is_some_and(|at| at < STORM_MS.end as i64) && m.class == "waitlist";
    let offers: Vec<_> = day.messages().filter(in_storm).collect();
    assert_eq!(offers.len(), 60);
    assert!(offers.iter().all(|m| m.not_before_ms.is_some_and(|at| at >= STORM_MS.start)));
    assert!(day.messages().filter(|m| m.deadline_ms.is_some()).count() > 5_000);
    let shared =
        day.messages().filter_map(|m| m.reference.as_deref()).fold(HashMap::new(), |mut counts, r| {
            *counts.entry(r).or_insert(0u32) += 1;
            counts
        });
    assert!(shared.values().any(|count| *count >= 3));
    assert!(day.length_ms() <= 60_000);
}

#[test]
fn a_line_becomes_the_message_of_the_api() {
    let message = DayMessage {
        key: "m1".to_owned(),
        to: "+13125550142".to_owned(),
        national: true,
        class: "follow_up".to_owned(),
        not_before_ms: Some(1_500),
        reference: Some("visit-1".to_owned()),
        priority: Some("high".to_owned()),
        ..Default::default()
    };
    let spec = message.to_spec(1_000_000, "run");
    let Some(Recipient::NationalNumber(number)) = &spec.recipient else { panic!("a national number") };
    assert_eq!((number.number.as_str(), number.region.as_str()), ("(312) 555-0142", "US"));
    assert_eq!((spec.idempotency_key.as_str(), spec.external_reference.as_str()), ("run-m1", "run-visit-1"));
    let not_before = spec.not_before.unwrap();
    assert_eq!((not_before.seconds, not_before.nanos), (1_001, 500_000_000));
    assert_eq!((spec.class, spec.priority), (4, 2));
}

#[test]
fn broken_days_are_refused_without_quoting_them() {
    let good = r#"{"at_ms":5,"key":"a","class":"reminder","text":"Ada","to":"+12125550123"}"#;
    let bad = [
        (format!("{good}\n{}", good.replace("\"a\"", "1")), "line 2"),
        (format!("{good}\n{good}"), "used before"),
        (format!("{good}\n{}", r#"{"at_ms":4,"again":"a"}"#), "earlier"),
        (format!("{good}\n{}", r#"{"at_ms":6,"again":"b"}"#), "no earlier line"),
        (good.replace("reminder", "remainder"), "unknown class"),
        (good.replace("\"key\"", "\"kee\""), "line 1"),
    ];
    for (text, why) in bad {
        let error = Day::parse(&text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains("Ada"), "{error}");
    }
    assert_eq!(Day::parse(good).unwrap().to_jsonl().unwrap().lines().count(), 1);
}

/// The simulator's draw for a submit that came `before` times: a hash of seed, number, octets and that, stretched by
/// SplitMix64.
fn first_draw(seed: u64, message: &DayMessage, octets: &[u8], before: u16) -> f64 {
    let mut hasher = SipHasher13::new_with_keys(seed, 0);
    hasher.write(&message.to.as_bytes()[1..]);
    hasher.write_u8(0);
    hasher.write(octets);
    hasher.write_u16(before);
    let mut z = hasher.finish().wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// A lost answer must happen on the day, but not to a class that is sent again after it: the copy would be right, and
/// still be a duplicate in the ledger.
#[test]
fn the_carrier_has_its_storm_and_its_landlines_and_loses_a_few_answers() {
    let profile = Profile::from_toml(PROFILE).unwrap();
    assert_eq!(profile.receipts.never, 0.0, "a message without a receipt would never be final");
    let storm = (profile.storms.first().unwrap().from_ms, profile.storms.last().unwrap().to_ms);
    assert_eq!(storm, (STORM_MS.start, STORM_MS.end));
    let (mut refused, mut dropped, mut lost) = (0, 0, BTreeMap::new());
    let f = &profile.faults;
    let before = f.throttled + f.queue_full + f.temporary;
    let reach = before + f.lost_accepted + f.lost_refused + f.drop_after_accept + f.drop_before_read;
    for message in day().messages() {
        let digits = &message.to.as_bytes()[1..];
        let rule = profile.refuse.iter().find(|rule| rule.matches(digits));
        refused += u32::from(rule.is_some_and(|rule| rule.status.is_some()));
        dropped += u32::from(rule.is_some_and(|rule| rule.status.is_none()));
        assert_eq!(
            message.to.ends_with(LANDLINE_REFUSED),
            rule.is_some_and(|r| r.suffix == LANDLINE_REFUSED)
        );
        assert_eq!(
            message.to.ends_with(LANDLINE_DROPPED),
            rule.is_some_and(|r| r.suffix == LANDLINE_DROPPED)
        );
        for part in sms::split(&message.text) {
            // Classes that are sent again early are looked at through some tries in the storm too.
            let sent_again = matches!(message.class.as_str(), "staff" | "public_health");
            let mut tries = 0..if sent_again { 5 } else { 1 };
            if tries.any(|before_now| (before..reach).contains(&first_draw(1, message, &part, before_now))) {
                *lost.entry(message.class.clone()).or_insert(0u32) += 1;
            }
        }
    }
    assert!((50..200).contains(&refused) && (50..200).contains(&dropped), "{refused} {dropped}");
    assert!((4..30).contains(&lost.values().sum::<u32>()), "{lost:?}");
    assert!(!lost.contains_key("staff") && !lost.contains_key("public_health"), "{lost:?}");
}
