//! `carillonctl` as people use it: what it prints, and its exit codes.
use carillon_ctl::lab::TENANT;
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, program, until};
use serde_json::Value;
use std::process::Output;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Exit code, standard output, standard error.
async fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let ctl = program("carillonctl");
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let run = move || std::process::Command::new(ctl).args(arguments).output().expect("carillonctl runs");
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("it prints text");
    (status.code(), text(stdout), text(stderr))
}

fn lab(rig: &Rig) -> String {
    format!("--lab={}", rig.lab.dir().display())
}

async fn json(arguments: &[&str]) -> (Option<i32>, Value) {
    let (code, out, error) = run(&[arguments, &["-o", "json"]].concat()).await;
    (code, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {error}")))
}

pub async fn messages(rig: &Rig) {
    let (lab, practice) = (lab(rig), rig.practices[14].as_str());
    let send = |more: &[&str]| {
        let first = ["message", "send", &lab, "--practice", practice, "--to", "+12125550142"];
        [&first, more].concat().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let call = async |more: &[&str]| {
        let arguments = send(more);
        json(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let everything = [
        "--body=Hello",
        "--class=form",
        "--priority=high",
        "--not-before=+2h",
        "--expires-at=+6h",
        "--deadline=+5h",
        "--time-zone=America/Denver",
        "--reference=visit-ctl",
        "--label=site=north wing",
        "--idempotency-key=ctl-1",
    ];
    let (code, sent) = call(&everything).await;
    assert_eq!((code, &sent["duplicate"], &sent["segments"]), (Some(0), &false.into(), &1.into()));
    let id = sent["message_id"].as_str().unwrap();
    let (_, shown) = json(&["message", "get", &lab, id, "--full"]).await;
    for (field, value) in [
        ("class", "FORM"),
        ("priority", "HIGH"),
        ("time_zone", "America/Denver"),
        ("reference", "visit-ctl"),
        ("recipient", "+12125550142"),
        ("body", "Hello"),
        ("encoding", "GSM7"),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    assert_eq!(shown["labels"], serde_json::json!(["site=north wing"]));
    // Never after the deadline, which comes before the expiry.
    assert_eq!(shown["expires"], shown["deadline"]);
    assert_eq!(shown["due"], shown["not_before"]);

    // Only checked: what forced UCS-2, and where.
    let (code, checked) = call(&["--validate-only", "--body=It\u{2019}s time"]).await;
    assert_eq!((code, &checked["encoding"], &checked["segments"]), (Some(0), &"UCS2".into(), &1.into()));
    assert_eq!(
        (&checked["ucs2_character"], &checked["ucs2_character_index"]),
        (&"\u{2019}".into(), &2.into())
    );
    assert!(checked["ucs2_because"].as_str().unwrap().contains("character 3 of the text is U+2019"));

    // By reference, with what became of each.
    let cancel = ["message", "cancel", &lab, "--practice", practice, "--reference", "visit-ctl"];
    let (code, canceled) = json(&cancel).await;
    assert_eq!((code, canceled.as_array().map(Vec::len)), (Some(0), Some(1)), "{canceled}");
    assert_eq!((&canceled[0]["message_id"], &canceled[0]["canceled"]), (&id.into(), &true.into()));
    let cancel = ["message", "cancel", &lab, "--practice", practice, "--reference", "nothing"];
    let (code, _, error) = run(&cancel).await;
    assert_eq!(code, Some(4), "{error}");
    assert!(error.contains("has the reference nothing"), "{error}");
}

pub async fn errors(rig: &Rig) {
    let (lab, practice) = (lab(rig), rig.practices[14].as_str());
    let bad = [
        "message",
        "send",
        &lab,
        "--practice",
        practice,
        "--to",
        "call me",
        "--body",
        "",
        "--expires-at=-1h",
        "--time-zone=Mars/Olympus",
    ];
    let (code, _, error) = run(&bad).await;
    assert_eq!(code, Some(4), "{error}");
    assert!(error.starts_with("carillonctl: INVALID_FIELDS: "), "{error}");
    for (field, reason, description) in [
        ("phone_number", "UNPARSABLE_NUMBER", "is not a phone number"),
        ("body", "EMPTY", "is required"),
        ("expires_at", "PAST_EXPIRY", "has passed"),
        ("time_zone", "UNKNOWN_TIME_ZONE", "is not an iana time zone"),
    ] {
        let line = error.lines().find(|line| line.starts_with(&format!("  {field} ")));
        let line = line.unwrap_or_else(|| panic!("no line for {field} in {error}"));
        assert!(line.contains(&format!(" {reason} ")) && line.contains(description), "{line}");
    }
    // The message that has the key is named.
    let first = spec(practice, "ctl-reused", 3);
    let id = rig.submit(vec![first]).await.remove(0).message_id;
    let reused = [
        "message",
        "send",
        &lab,
        "--practice",
        practice,
        "--to",
        "+12125550142",
        "--body=Other",
        "--idempotency-key=ctl-reused",
    ];
    let (code, _, error) = run(&reused).await;
    assert!(code == Some(4) && error.contains("IDEMPOTENCY_KEY_REUSED") && error.contains(&id), "{error}");

    // On the way: nobody listens; the wrong CA; a certificate of another plane.
    let pki = |name: &str| rig.lab.dir().join("pki").join(name).display().to_string();
    let router = rig.lab.router_address();
    let tenant = format!("tenant-{TENANT}");
    let get = async |address: &str, holder: &str, ca: &str| {
        let (cert, key, ca) = (pki(&format!("{holder}.pem")), pki(&format!("{holder}.key")), pki(ca));
        run(&[
            "message",
            "get",
            "01m82366nk3ezhrptz1wxa63gm",
            "--api",
            address,
            "--cert",
            &cert,
            "--key",
            &key,
            "--ca",
            &ca,
        ])
        .await
    };
    for (address, holder, ca, expected) in [
        (
            "127.0.0.1:1",
            tenant.as_str(),
            "clients-ca.pem",
            "connection refused: nothing listens there; start the server",
        ),
        (
            &router,
            tenant.as_str(),
            "operators-ca.pem",
            "not from the CA that was given; give the CA of this server",
        ),
        (&router, "router-r1", "clients-ca.pem", "it does not trust its CA; use a certificate of the CA"),
    ] {
        let (code, _, error) = get(address, holder, ca).await;
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(&format!("cannot look the message up: {address}: ")), "{error}");
        assert!(error.contains(expected), "{expected:?} is not in {error}");
    }
    let (code, _, error) = get(&router, &tenant, "clients-ca.pem").await;
    assert!(code == Some(4) && error.contains("MESSAGE_NOT_FOUND: "), "{error}");
}

/// Node 1 included: whoever is dead, the others are asked.
pub async fn status(rig: &Rig) {
    let lab = lab(rig);
    let healthy = async || {
        let (code, out, error) = run(&["status", &lab]).await;
        if code == Some(0) && out.contains("\nHEALTHY\n") {
            Ok(())
        } else {
            Err(format!("{code:?} {out} {error}"))
        }
    };
    until("the cluster is healthy", LIMIT, healthy).await;
    rig.lab.kill_node(1).unwrap();
    let (code, out, error) = run(&["status", &lab]).await;
    assert_eq!(code, Some(3), "{out} {error}");
    assert!(out.contains("\nDEGRADED\n") && out.contains("  node 1 does not answer: "), "{out}");
    assert!(out.lines().any(|line| line.starts_with("1 ") && line.contains("DOES NOT ANSWER")), "{out}");
    let (code, told) = json(&["status", &lab]).await;
    assert_eq!((code, &told["healthy"]), (Some(3), &false.into()));
    assert_eq!(told["nodes"].as_array().map(Vec::len), Some(3));
    // A node that can be asked hears nothing of it either; commands that any node can do go on.
    let admin = format!("127.0.0.1:{}", rig.lab.plan().nodes[1].admin_port);
    let pki = |name: &str| rig.lab.dir().join("pki").join(name).display().to_string();
    let (cert, key, ca) = (pki("operator-lab.pem"), pki("operator-lab.key"), pki("operators-ca.pem"));
    until("node 2 misses node 1", LIMIT, async || {
        let one = ["status", "--admin", &admin, "--cert", &cert, "--key", &key, "--ca", &ca];
        let (code, out, error) = run(&one).await;
        let missed = out.contains("node 1 does not answer: node 2, which leads");
        if code == Some(3) && missed { Ok(()) } else { Err(format!("{code:?} {out} {error}")) }
    })
    .await;
    let (code, _, error) = run(&[
        "practice",
        "put",
        &lab,
        "--tenant",
        TENANT,
        "--practice",
        "ctl-new",
        "--time-zone",
        "America/Denver",
        "--carrier",
        "sim",
    ])
    .await;
    assert_eq!(code, Some(0), "{error}");
    rig.start_node(1).await;
    until("the cluster is healthy again", LIMIT, healthy).await;
}
