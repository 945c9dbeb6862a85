//! What `lab init` writes: complete, private, and kept when it is called again.
use carillon_ctl::lab::{Fixed, Lab, LabError, LabOptions, Placement, Plane};
use carillon_ctl::pki::{Leaf, Usage};
use carillon_proto::identity::{Identity, Role};
use carillon_proto::tls;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

fn everything(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            everything(&path, found);
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_new_lab_is_private_and_an_old_one_is_kept() {
    tls::install_provider();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("lab");
    drop(Lab::init(&dir, &LabOptions::default()).unwrap());
    let mut first = BTreeMap::new();
    everything(&dir, &mut first);
    for path in first.keys() {
        let mode = std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let secret = path.extension().is_some_and(|e| e == "key") || path.starts_with(dir.join("secrets"));
        assert!(!secret || mode == 0o600, "{} has mode {mode:o}", path.display());
    }
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let key = std::fs::read_to_string(dir.join("keys/lab.key")).unwrap();
    let digits = key.lines().last().unwrap();
    assert!(key.starts_with("# For labs only") && digits.len() == 64);
    assert!(digits.bytes().all(|b| b.is_ascii_hexdigit()));
    assert!(std::fs::read_to_string(dir.join("secrets/sim-password")).unwrap().trim().len() <= 8);

    drop(Lab::init(&dir, &LabOptions { nodes: 5, ..LabOptions::default() }).unwrap());
    let mut second = BTreeMap::new();
    everything(&dir, &mut second);
    assert!(first == second, "a lab that exists was changed");
}

#[test]
fn an_old_lab_says_what_it_cannot_change() {
    tls::install_provider();
    let home = tempfile::tempdir().unwrap();
    let check = |fixed: Fixed| fixed.check(home.path()).map_err(|error| error.to_string());
    let other = |nodes| Fixed { nodes: Some(nodes), ..Fixed::default() };
    check(other(5)).expect("there is no lab yet");
    let options = LabOptions { node_config: "[scrub]\nevery_s = 0\n".to_owned(), ..LabOptions::default() };
    drop(Lab::init(home.path(), &options).unwrap());
    let same = Fixed {
        nodes: Some(3),
        partitions: Some(16),
        log_filter: Some("info".to_owned()),
        node_config: Some(options.node_config),
        ..Fixed::default()
    };
    check(same).unwrap();
    check(Fixed::default()).unwrap();
    for (fixed, flag) in [
        (other(5), "--nodes: it has 3"),
        (Fixed { partitions: Some(4), ..Fixed::default() }, "--partitions: it has 16"),
        (Fixed { log_filter: Some("warn".to_owned()), ..Fixed::default() }, "--log-filter"),
        (Fixed { node_config: Some("[disk]\n".to_owned()), ..Fixed::default() }, "--node-config"),
        (Fixed { with_http_carrier: true, ..Fixed::default() }, "--with-http-carrier"),
        (Fixed { carrier_tls: true, ..Fixed::default() }, "--carrier-tls"),
    ] {
        let told = check(fixed).unwrap_err();
        assert!(told.contains(flag) && told.contains("use another --dir"), "{told}");
    }
}

#[test]
fn every_certificate_loads_and_names_whom_it_should() {
    tls::install_provider();
    let home = tempfile::tempdir().unwrap();
    let lab = Lab::init(home.path(), &LabOptions::default()).unwrap();
    let expected = [
        ("node-3", Plane::Peers, Role::Node(3)),
        ("node-3-admin", Plane::Operators, Role::Node(3)),
        ("router-r1", Plane::Peers, Role::Router("r1".into())),
        ("router-r1-public", Plane::Clients, Role::Router("r1".into())),
        ("tenant-lakeside", Plane::Clients, Role::Tenant("lakeside".into())),
        ("tenant-otherco", Plane::Clients, Role::Tenant("otherco".into())),
        ("operator-lab", Plane::Operators, Role::Operator("lab".into())),
    ];
    for (stem, plane, role) in expected {
        let files = lab.tls(stem, plane);
        tls::client_config(&files).unwrap();
        let chain = tls::certificates(&files.cert).unwrap();
        let found = Identity::of_certificate(&chain[0]).unwrap();
        assert_eq!((found.cluster.as_str(), found.role), ("lab", role), "{stem}");
    }
    // Tests issue more of them.
    let nobody = Leaf { uri: None, ..Leaf::new(&lab_identity(), Usage::Client) };
    assert!(lab.ca(Plane::Clients).unwrap().issue(&nobody).is_ok());
}

fn lab_identity() -> Identity {
    Identity { cluster: "lab".to_owned(), role: Role::Tenant("lakeside".to_owned()) }
}

#[test]
fn a_placed_node_is_configured_certified_and_reached_at_its_address() {
    tls::install_provider();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("lab");
    let address = "10.213.7.2".parse().unwrap();
    let data_dir = home.path().join("elsewhere");
    let placement =
        Placement { address: Some(address), data_dir: Some(data_dir.clone()), ..Placement::default() };
    let options = LabOptions {
        placements: vec![placement],
        smsc_address: "10.213.7.1".parse().ok(),
        ..LabOptions::default()
    };
    let lab = Lab::init(&dir, &options).unwrap();
    assert!(lab.node_peer(1).unwrap().starts_with("10.213.7.2:"), "{:?}", lab.node_peer(1));
    assert!(lab.node_peer(2).unwrap().starts_with("127.0.0.1:"));
    assert!(lab.plan().smsc().starts_with("10.213.7.1:"));
    assert_eq!((lab.data_dir(1), lab.data_dir(2)), (data_dir.clone(), dir.join("node-2/data")));
    assert!(data_dir.is_dir());
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let (first, second) = (read("node-1/config.toml"), read("node-2/config.toml"));
    assert_eq!(first.matches("10.213.7.2:").count(), 6, "four listeners, a url and a member: {first}");
    assert_eq!(second.matches("10.213.7.2:").count(), 1, "{second}");
    assert!(read("router.toml").contains("10.213.7.2:"));
    // A client checks the address in the certificate: its octets are in it.
    let certificate = |stem: &str| tls::certificates(&lab.tls(stem, Plane::Peers).cert).unwrap().remove(0);
    let names = |stem: &str| certificate(stem).windows(6).any(|w| w == [0x87, 4, 10, 213, 7, 2]);
    assert!(names("node-1") && !names("node-2"));
}

#[test]
fn the_environment_of_a_node_is_kept_with_the_plan() {
    tls::install_provider();
    let home = tempfile::tempdir().unwrap();
    let lab = Lab::init(home.path(), &LabOptions::default()).unwrap();
    lab.set_node_env(2, "FAILPOINTS", Some("x=return")).unwrap();
    let env = |lab: &Lab| lab.plan().nodes[1].placement.env.get("FAILPOINTS").cloned();
    assert_eq!(env(&Lab::open(home.path()).unwrap()).as_deref(), Some("x=return"));
    lab.set_node_env(2, "FAILPOINTS", None).unwrap();
    assert_eq!(env(&Lab::open(home.path()).unwrap()), None);
    assert!(lab.set_node_env(9, "A", None).is_err());
}

#[test]
fn a_directory_without_a_lab_is_named() {
    let home = tempfile::tempdir().unwrap();
    assert!(matches!(Lab::open(home.path()), Err(LabError::NoLab(_))));
}
