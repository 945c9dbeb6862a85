//! `carillonctl` as people use it: what it prints, and its exit codes.
use carillon_ctl::lab::{OPERATOR, TENANT};
use carillon_proto::public::{CancelMessagesRequest, MessageClass, MessageState, MessageView};
use carillon_tests::api::{from_now, spec};
use carillon_tests::rig::{Rig, program, until};
use serde_json::Value;
use std::process::{Output, Stdio};
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
}

/// On the way: nobody listens; the wrong CA; a certificate of another plane. Said once, with what to do.
pub async fn transport(rig: &Rig) {
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

    // The same on the operators' plane.
    let admin = format!("127.0.0.1:{}", rig.lab.plan().nodes[0].admin_port);
    for (holder, ca, expected) in [
        ("operator-lab", "clients-ca.pem", "not from the CA that was given; give the CA of this server"),
        (tenant.as_str(), "operators-ca.pem", "it does not trust its CA; use a certificate of the CA"),
    ] {
        let (cert, key, ca) = (pki(&format!("{holder}.pem")), pki(&format!("{holder}.key")), pki(ca));
        let flags = ["--admin", &admin, "--cert", &cert, "--key", &key, "--ca", &ca];
        for command in [&["practice", "list"][..], &["unknown", "list"], &["dead-letter", "list"]] {
            let (code, _, error) = run(&[command, &flags].concat()).await;
            assert!(code == Some(1) && error.contains(expected), "{command:?}: {code:?} {error}");
        }
    }
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

/// What there is: practices, carriers, messages by every filter and in pages.
pub async fn lists(rig: &Rig) {
    let (lab, practice) = (lab(rig), rig.practices[15].as_str());
    let (code, practices) = json(&["practice", "list", &lab, "--tenant", TENANT]).await;
    let practices = practices.as_array().unwrap();
    assert_eq!((code, practices.len() >= rig.practices.len()), (Some(0), true));
    let own = practices.iter().find(|p| p["practice"] == practice).expect("it is registered");
    assert_eq!((&own["carrier"], &own["partition"]), (&"sim".into(), &rig.partition_of(practice).into()));
    assert_eq!(own["paused_on"], serde_json::json!([]));
    let (_, none) = json(&["practice", "list", &lab, "--tenant", "nobody"]).await;
    assert_eq!(none, serde_json::json!([]));
    let (code, carriers) = json(&["carrier", "list", &lab]).await;
    assert_eq!(
        (code, &carriers[0]["name"], &carriers[0]["protocol"]),
        (Some(0), &"sim".into(), &"smpp".into())
    );
    assert!(carriers[0]["connections"].as_u64().unwrap() >= 3, "of all nodes together: {carriers}");

    let mut specs: Vec<_> = (0..7).map(|at| spec(practice, &format!("ctl-list-{at}"), at)).collect();
    for (at, spec) in specs.iter_mut().enumerate() {
        spec.external_reference = format!("ctl-list-{}", at % 2);
        spec.not_before = from_now(3_600_000);
        if at == 6 {
            spec.class = MessageClass::Recall as i32;
        }
    }
    let ids: Vec<String> = rig.submit(specs).await.into_iter().map(|a| a.message_id).collect();
    let list = async |more: &[&str]| {
        let (code, value) = json(&[&["message", "list", &lab, "--practice", practice], more].concat()).await;
        assert_eq!(code, Some(0), "{more:?}");
        let ids = value["messages"].as_array().unwrap().iter();
        let ids: Vec<String> = ids.map(|m| m["message_id"].as_str().unwrap().to_owned()).collect();
        (ids, value["next_page_token"].as_str().unwrap().to_owned())
    };
    assert_eq!(list(&[]).await, (ids.clone(), String::new()));
    assert_eq!(list(&["--class=recall"]).await.0, ids[6..]);
    assert_eq!(list(&["--state=delivered", "--state=dead"]).await.0, Vec::<String>::new());
    assert_eq!(list(&["--reference=ctl-list-1"]).await.0, [&ids[1], &ids[3], &ids[5]].map(Clone::clone));
    assert_eq!(list(&["--before=-1h"]).await.0.len(), 0);
    assert_eq!(list(&["--after=-1h", "--before=+1h"]).await.0.len(), 7);
    // Pages: what a list ends with goes on, and nothing comes twice.
    let (mut all, mut token) = list(&["--limit=3"]).await;
    assert_eq!(all.len(), 3);
    while !token.is_empty() {
        let (page, next) = list(&["--limit=3", "--page-token", &token]).await;
        assert!(page.len() <= 3);
        all.extend(page);
        token = next;
    }
    assert_eq!(all, ids);
    let (code, out, _) = run(&["message", "list", &lab, "--practice", practice, "--limit=3"]).await;
    assert!(code == Some(0) && out.contains(&ids[2]) && out.contains("for more: --page-token "), "{out}");
    assert!(!out.contains("+1212555"), "numbers are masked: {out}");
    // A reader that goes away is no panic.
    let ctl = program("carillonctl");
    let mut cut = std::process::Command::new(ctl);
    let cut = cut.args(["practice", "list", &lab]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut cut = cut.unwrap();
    drop(cut.stdout.take());
    let ended = tokio::task::spawn_blocking(move || cut.wait_with_output().unwrap()).await.unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
    let (code, _, error) = run(&["message", "list", &lab, "--practice", "nobodys"]).await;
    assert!(code == Some(4) && error.contains("PRACTICE_NOT_FOUND"), "{error}");
}

/// A watch ends with a cursor, and the next one goes on there.
pub async fn watch(rig: &Rig) {
    let (lab, practice) = (lab(rig), rig.practices[16].as_str());
    let watched = async |more: &[&str]| {
        let first = ["-o", "json", "message", "watch", &lab, "--practice", practice];
        let (code, out, error) = run(&[&first, more].concat()).await;
        assert_eq!(code, Some(0), "{error}");
        let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let cursor = lines.last().unwrap()["cursor"].as_str().unwrap().to_owned();
        let events = lines.into_iter().filter(|line| line.get("message_id").is_some());
        let told =
            |e: Value| format!("{} {}", e["message_id"].as_str().unwrap(), e["state"].as_str().unwrap());
        (events.map(told).collect::<Vec<String>>(), cursor)
    };
    let send = async |key: &str| rig.submit(vec![spec(practice, key, 5)]).await.remove(0).message_id;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cursor");
    let first = send("ctl-watch-1").await;
    rig.until_state(&first, MessageState::Delivered, LIMIT).await;
    // A message has three events at least.
    let (before, cursor) = watched(&["--from=start", "--count=3"]).await;
    assert_eq!(before.first(), Some(&format!("{first} ACCEPTED")));
    let second = send("ctl-watch-2").await;
    rig.until_state(&second, MessageState::Delivered, LIMIT).await;
    fs_err::write(&file, &cursor).unwrap();
    let kept = format!("--cursor-file={}", file.display());
    let (after, cursor) = watched(&[&kept, "--count=3"]).await;
    assert_eq!(fs_err::read_to_string(&file).unwrap(), cursor, "the file goes on too");
    // Both together are the feed, without a gap and without a repetition.
    let both = [before, after].concat();
    let (whole, _) = watched(&["--from=start", &format!("--count={}", both.len())]).await;
    assert_eq!(whole[..both.len()], both);
    assert!(both.contains(&format!("{second} ACCEPTED")), "{both:?}");
    let (code, _, error) = run(&["message", "watch", &lab, "--from=nonsense"]).await;
    assert!(code == Some(4) && error.contains("INVALID_TOKEN"), "{error}");
}

/// An operator says what became of messages whose answer was lost.
pub async fn unknown(rig: &Rig) {
    let (lab, practice) = (lab(rig), rig.practices[17].as_str());
    rig.carrier
        .set_profile("base = \"perfect\"\n[faults]\nlost_accepted = 1.0\n[receipts]\nnever = 1.0\n")
        .await
        .unwrap();
    let specs = (0..4).map(|at| spec(practice, &format!("ctl-unknown-{at}"), at)).collect();
    let mut ids: Vec<String> = rig.submit(specs).await.into_iter().map(|a| a.message_id).collect();
    ids.sort_unstable();
    for id in &ids {
        rig.until_state(id, MessageState::Unknown, LIMIT).await;
    }
    rig.carrier.set_profile("base = \"perfect\"\n").await.unwrap();
    let list = async |more: &[&str]| {
        let first = ["unknown", "list", &lab, "--tenant", TENANT, "--practice", practice];
        let (code, value) = json(&[&first, more].concat()).await;
        assert_eq!(code, Some(0));
        value["messages"].as_array().unwrap().clone()
    };
    let found = list(&[]).await;
    let mut listed: Vec<&str> = found.iter().map(|m| m["message_id"].as_str().unwrap()).collect();
    listed.sort_unstable();
    assert_eq!(listed, ids);
    assert_eq!(
        (&found[0]["detail"], &found[0]["attempts"][0]["carrier"]),
        (&"answer_timeout".into(), &"sim".into())
    );
    assert_eq!(list(&["--older-than-s=3600"]).await.len(), 0);
    assert_eq!(list(&["--limit=2"]).await.len(), 2);

    let resolve = async |id: &str, verdict: &str, more: &[&str]| {
        let arguments = ["unknown", "resolve", id, "--as", verdict, "--reason", "carrier_portal", &lab];
        run(&[&arguments, more].concat()).await
    };
    let (code, out, _) = resolve(&ids[0], "delivered", &["--dry-run"]).await;
    assert!(code == Some(0) && out.contains("1 messages would be resolved, 0 refused"), "{out}");
    assert_eq!(rig.get(&ids[0], MessageView::Basic).await.unwrap().state(), MessageState::Unknown);
    for (id, verdict, state, detail) in [
        (&ids[0], "delivered", MessageState::Delivered, "operator:carrier_portal"),
        (&ids[1], "failed", MessageState::Undelivered, "operator:carrier_portal"),
    ] {
        assert_eq!(resolve(id, verdict, &[]).await.0, Some(0), "{verdict}");
        let message = rig.get(id, MessageView::Basic).await.unwrap();
        assert_eq!((message.state(), message.state_detail.as_str()), (state, detail));
        // Only once, and only what is UNKNOWN.
        let (code, out, error) = resolve(id, "send-again", &[]).await;
        assert!(code == Some(4) && out.contains("only UNKNOWN is resolved"), "{out} {error}");
    }
    assert_eq!(resolve(&ids[2], "send-again", &[]).await.0, Some(0));
    let message = rig.until_state(&ids[2], MessageState::Delivered, LIMIT).await;
    assert_eq!(message.attempts.len(), 2, "it went a second time");
    // Taken back by the practice: nobody sends it again.
    let cancel = CancelMessagesRequest { message_ids: vec![ids[3].clone()], ..Default::default() };
    rig.client.cancel(cancel).await.unwrap();
    let (code, out, _) = resolve(&ids[3], "send-again", &[]).await;
    assert!(code == Some(4) && out.contains("it was taken back"), "{out}");
    let (code, _, error) =
        run(&["unknown", "resolve", &ids[3], "--as=failed", "--reason", "told Ada", &lab]).await;
    assert!(code == Some(4) && error.contains("give a reason: one word"), "{error}");
    assert_eq!(list(&[]).await.len(), 1);

    told_why_and_by_whom(rig, practice, &ids).await;
}

/// The event says why, and the leader's log who.
async fn told_why_and_by_whom(rig: &Rig, practice: &str, ids: &[String]) {
    let lab = lab(rig);
    let (_, out, _) =
        run(&["message", "watch", &lab, "--practice", practice, "--from=start", "--count=15"]).await;
    assert!(
        out.lines().any(|l| l.contains(&ids[1]) && l.ends_with("UNDELIVERED  operator:carrier_portal")),
        "{out}"
    );
    assert!(out.lines().any(|l| l.contains(&ids[2]) && l.contains("resend:carrier_portal")), "{out}");
    let logs =
        ["node-1", "node-2", "node-3"].map(|node| fs_err::read_to_string(rig.lab.log_path(node)).unwrap());
    let audit = logs
        .iter()
        .flat_map(|log| log.lines())
        .find(|line| line.contains("unknown message resolved by an operator") && line.contains(&ids[0]));
    let audit: Value = serde_json::from_str(audit.expect("it is in a log")).unwrap();
    assert_eq!((&audit["operator"], &audit["reason"]), (&OPERATOR.into(), &"carrier_portal".into()));
}
