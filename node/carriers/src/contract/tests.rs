//! Contracts as files: what is built in, what is refused, what a reload does.
use super::*;

const SMPP: &str = include_str!("../../contracts/smpp-generic.toml");
const TWILIO_TEXT: &str = include_str!("../../contracts/twilio.toml");

fn parse(text: &str) -> Result<Contract, ContractError> {
    Contract::parse("x.toml", text)
}

fn built_in(name: &str) -> std::sync::Arc<Contract> {
    ContractHandle::built_in(name).unwrap().get()
}

#[test]
fn every_smpp_status_has_the_documented_outcome() {
    let contract = built_in(SMPP_GENERIC);
    let meaning = |status: u32| contract.meaning(&crate::smpp::status::code(status));
    let outcome = |status| meaning(status).outcome;
    assert_eq!(outcome(0x00), Outcome::Accepted);
    for status in [0x58, 0x14] {
        assert_eq!(outcome(status), Outcome::Throttled);
    }
    assert!(meaning(0x14).pauses > meaning(0x58).pauses);
    for status in [0x08, 0x45, 0x64, 0xfe, 0xff, 0x400, 0x4ff, 0xdead_beef] {
        assert_eq!(outcome(status), Outcome::Transient, "{status:#x}");
    }
    for status in [0x0a, 0x48, 0x49, 0x0d, 0x0e, 0x0f, 0x61, 0x62, 0xc0, 0xc4, 0x50, 0x51] {
        assert_eq!(outcome(status), Outcome::LaneBroken, "{status:#x}");
    }
    for status in [0x01, 0x43, 0x65, 0x66, 0x104] {
        assert_eq!(outcome(status), Outcome::RejectedContent, "{status:#x}");
    }
    assert_eq!(outcome(0x0b), Outcome::RejectedNumber);
    assert!(meaning(0x04).rebind && meaning(0x05).rebind && !meaning(0x08).rebind);
}

#[test]
fn every_twilio_code_has_the_documented_outcome() {
    let contract = built_in(TWILIO);
    let cases: [(Outcome, &[&str]); 9] = [
        (Outcome::Throttled, &["20429", "http_429", "21611", "30001", "30022", "63017"]),
        (Outcome::LaneBroken, &["20003", "http_401", "21606", "30024", "30034", "30002"]),
        (Outcome::RejectedNumber, &["21211", "21614", "21635", "21268", "21408", "21612", "30005", "30006"]),
        (Outcome::OptedOut, &["21610", "30004"]),
        (Outcome::RejectedContent, &["21617", "30007", "30010"]),
        (Outcome::CapReached, &["63038"]),
        (Outcome::Transient, &["30003", "30008", "30500", "60005", "99999"]),
        (Outcome::Accepted, &[]),
        (Outcome::NotSent, &[]),
    ];
    for (outcome, codes) in cases {
        for code in codes {
            assert_eq!(contract.meaning(code).outcome, outcome, "{code}");
        }
        if codes.is_empty() {
            assert!(contract.codes().all(|(_, meaning)| meaning.outcome != outcome));
        }
    }
    let state = |word, code| contract.receipt_state(word, code);
    assert_eq!(state("delivered", None), Some(ReceiptState::Delivered));
    assert_eq!(state("delivered", Some("30007")), Some(ReceiptState::Delivered));
    assert_eq!(state("undelivered", Some("30003")), Some(ReceiptState::Undelivered));
    assert_eq!(state("failed", Some("21610")), Some(ReceiptState::Rejected));
    assert_eq!(state("sent", None), Some(ReceiptState::Enroute));
    assert_eq!(state("teleported", None), None);
}

#[test]
fn validity_is_kept_within_what_the_carrier_takes() {
    let contract = built_in(TWILIO);
    let of = |s| contract.validity(Duration::from_secs(s)).as_secs();
    assert_eq!((of(0), of(77), of(1 << 30)), (5, 77, 36_000));
}

#[test]
fn each_fault_of_a_file_is_named() {
    assert!(parse(SMPP).is_ok() && parse(TWILIO_TEXT).is_ok());
    for (text, from, to, expected) in [
        (SMPP, "schema = 1", "schema = 2", "schema must be 1 to 1"),
        (SMPP, "version = 1", "version = 0", "version must be 1"),
        (SMPP, "name = \"smpp-generic\"", "name = \"Smpp!\"", "name must be"),
        (SMPP, "\"0x00\" = \"accepted\"", "", "codes.0x00 must be accepted"),
        (SMPP, "default = \"transient\"", "", "codes.default is missing"),
        (SMPP, "default = \"transient\"", "default = \"accepted\"", "codes.default must not"),
        (SMPP, "\"0x08\" = \"transient\"", "\"0x08\" = \"not_sent\"", "codes.0x08 names no outcome"),
        (SMPP, "\"0x08\" = \"transient\"", "\"0x08\" = { pauses = 1 }", "codes.0x08 is neither"),
        (SMPP, "\"0x08\" = \"transient\"", "\"0x000b\" = \"transient\"", "codes.0x0b is there twice"),
        (SMPP, "\"0x08\" = \"transient\"", "\"21610\" = \"transient\"", "codes.21610 is not a code"),
        (SMPP, "[receipts]", "[receipts]\nstates = { sent = \"enroute\" }", "receipts.states"),
        (SMPP, "[limits]", "[limits]\nsegments = 4", "unknown field"),
        (SMPP, "validity_s_min = 60", "validity_s_min = 300000", "send.validity_s_min must be"),
        (TWILIO_TEXT, "baa = \"offered\"", "baa = \"maybe\"", "maybe"),
        (TWILIO_TEXT, "\"http_401\"", "\"http_503\"", "codes.http_503 is not a code"),
        (TWILIO_TEXT, "quota_per_minute = 60", "quota_per_minute = 0", "look_up.quota_per_minute must be"),
        (TWILIO_TEXT, "rc=5&rp=all", "rc=5#x", "receipts.url_fragment"),
        (TWILIO_TEXT, "delivered = \"delivered\"", "delivered = \"arrived\"", "arrived"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = parse(&text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.starts_with("contract x.toml: ") && error.contains(expected), "{to}: {error}");
    }
}

fn own(version: u32, body_chars_max: u32) -> String {
    TWILIO_TEXT.replacen("version = 1", &format!("version = {version}"), 1).replacen(
        "body_chars_max = 1600",
        &format!("body_chars_max = {body_chars_max}"),
        1,
    )
}

#[test]
fn a_file_takes_the_place_of_a_built_in_contract_while_connectors_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let contracts = Contracts::load(Some(dir.path())).unwrap();
    let handle = contracts.get(TWILIO).unwrap();
    let path = dir.path().join("ours.toml");
    let put = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let Reload { changed, errors } = contracts.reload();
        (changed, errors)
    };
    let now = || (handle.get().version, handle.get().body_chars_max);
    assert_eq!(put(&own(2, 300)), (vec![("twilio".to_owned(), 2)], vec![]));
    assert_eq!(now(), (2, Some(300)));
    assert_eq!(put(&own(2, 300)), (vec![], vec![]));
    // Nothing of a file that is wrong counts, and it is told each time.
    for _ in 0..2 {
        let (changed, errors) = put(&own(2, 400));
        assert_eq!(
            (changed.len(), errors),
            (0, vec![ContractError::SameVersion { name: "twilio".into(), version: 2 }])
        );
    }
    assert!(matches!(put(&own(1, 400)).1[..], [ContractError::OlderVersion { version: 1, loaded: 2, .. }]));
    assert!(matches!(put("schema = ").1[..], [ContractError::Syntax { .. }]));
    assert_eq!(now(), (2, Some(300)));
    assert_eq!(put(&own(3, 400)).0, [("twilio".to_owned(), 3)]);
    assert_eq!(now(), (3, Some(400)));
    let listed = Listed { name: "twilio".into(), version: 3, from_file: true };
    assert!(contracts.list().contains(&listed));
    // Without its file the built-in one is back.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(contracts.reload().changed, [("twilio".to_owned(), 1)]);
    assert_eq!(now(), (1, Some(1600)));
}

#[test]
fn a_node_does_not_start_on_a_bad_file_or_two_of_one_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), own(2, 300)).unwrap();
    std::fs::write(dir.path().join("notes.txt"), "not a contract").unwrap();
    assert!(Contracts::load(Some(dir.path())).is_ok());
    std::fs::write(dir.path().join("b.toml"), own(3, 300)).unwrap();
    let error = Contracts::load(Some(dir.path())).err().unwrap().to_string();
    assert_eq!(error, "contract b.toml: name is that of another file");
    assert!(matches!(
        Contracts::load(Some(std::path::Path::new("/nowhere"))).err(),
        Some(ContractError::Directory { .. })
    ));
    assert_eq!(Contracts::load(None).map(|c| c.list().len()).ok(), Some(2));
}

#[test]
fn breakers_and_classes_without_phi_are_terms_of_the_contract() {
    let contract = built_in(TWILIO);
    assert_eq!(contract.phi_free, None, "as the program has it");
    assert_eq!((contract.breaker.failures_min, contract.breaker.probes), (5, 1));
    let with = |more: &str| {
        let text = TWILIO_TEXT.replace("baa = \"offered\"", &format!("baa = \"offered\"\n{more}"));
        assert_ne!(text, TWILIO_TEXT);
        parse(&text)
    };
    let changed = with("phi_free_classes = [\"public_health\", \"survey\"]").unwrap();
    assert_eq!(changed.phi_free, Some(vec![MessageClass::PublicHealth, MessageClass::Survey]));
    assert_eq!(with("phi_free_classes = []").unwrap().phi_free, Some(Vec::new()));
    for word in ["Survey", "unspecified", "everything"] {
        let error = with(&format!("phi_free_classes = [\"{word}\"]")).unwrap_err().to_string();
        assert!(error.contains("phi_free_classes names something that is not a class"), "{error}");
    }
    let breaker = |line: &str| parse(&format!("{TWILIO_TEXT}\n[breaker]\n{line}\n"));
    let terms = breaker("failures_min = 2\nopen_s_first = 1\nopen_s_max = 7").unwrap().breaker;
    assert_eq!((terms.failures_min, terms.open_max), (2, Duration::from_secs(7)));
    assert_eq!(terms.window, contract.breaker.window, "what is left out stays as it is");
    for (line, rule) in [
        ("window_s = 0", "breaker.window_s must be 1 to 3600"),
        ("failures_min = 0", "breaker.failures_min must be 1 to 256"),
        ("failures_min = 257", "breaker.failures_min must be 1 to 256"),
        ("failures_permille = 1001", "breaker.failures_permille must be 1 to 1000"),
        ("open_s_first = 9\nopen_s_max = 8", "breaker.open_s_first must be 1 to 8"),
        ("open_s_max = 86401", "breaker.open_s_max must be 1 to 86400"),
        ("probes = 0", "breaker.probes must be 1 to 100"),
        ("probes_to_close = 0", "breaker.probes_to_close must be 1 to 1000"),
        ("down_after_s = 0", "breaker.down_after_s must be 1 to 3600"),
        ("patience_s = 4", "unknown field `patience_s`"),
    ] {
        let error = breaker(line).unwrap_err().to_string();
        assert!(error.contains(rule), "{line}: {error}");
    }
}
