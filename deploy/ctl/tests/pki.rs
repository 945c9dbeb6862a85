//! Certificates of the helper as the real TLS stack sees them.
use carillon_ctl::pki::{Ca, Leaf, Usage};
use carillon_proto::identity::{Identity, Role};
use carillon_proto::tls::{self, TlsFiles};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn identity(role: Role) -> Identity {
    Identity { cluster: "lab".to_owned(), role }
}

fn files(dir: &Path, stem: &str, ca: &str) -> TlsFiles {
    TlsFiles {
        cert: dir.join(format!("{stem}.pem")),
        key: dir.join(format!("{stem}.key")),
        ca: dir.join(format!("{ca}.pem")),
    }
}

/// Whether the two get through a handshake and can talk.
async fn talk(server: &TlsFiles, client: &TlsFiles) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(tls::server_config(server).unwrap());
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(tcp).await.map_err(|e| e.to_string())?;
        stream.write_all(b"k").await.map_err(|e| e.to_string())
    });
    let config: Arc<_> = tls::client_config(client).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let heard = async {
        let mut stream = TlsConnector::from(config).connect(name, tcp).await?;
        stream.read_exact(&mut [0]).await
    };
    let heard = heard.await.map(drop).map_err(|e| e.to_string());
    serving.await.unwrap().and(heard)
}

#[tokio::test]
async fn only_a_valid_client_certificate_of_the_same_ca_gets_through() {
    tls::install_provider();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path();
    let (ca, other) = (Ca::new("clients").unwrap(), Ca::new("peers").unwrap());
    ca.write(dir, "ca").unwrap();
    let tenant = Leaf::new(&identity(Role::Tenant("lakeside".into())), Usage::Client);
    let server = Leaf::new(&identity(Role::Router("r1".into())), Usage::Server);
    ca.issue(&server).unwrap().write(dir, "server").unwrap();
    ca.issue(&tenant).unwrap().write(dir, "good").unwrap();
    ca.issue(&tenant.clone().expired()).unwrap().write(dir, "expired").unwrap();
    other.issue(&tenant).unwrap().write(dir, "stranger").unwrap();
    // A stored CA goes on issuing.
    Ca::load("clients", dir, "ca").unwrap().issue(&tenant).unwrap().write(dir, "later").unwrap();

    let server = files(dir, "server", "ca");
    assert_eq!(talk(&server, &files(dir, "good", "ca")).await, Ok(()));
    assert_eq!(talk(&server, &files(dir, "later", "ca")).await, Ok(()));
    // The server's certificate is not one for clients.
    for wrong in ["expired", "stranger", "server"] {
        assert!(talk(&server, &files(dir, wrong, "ca")).await.is_err(), "{wrong} got through");
    }
    let leaf = &tls::certificates(&dir.join("good.pem")).unwrap()[0];
    assert_eq!(Identity::of_certificate(leaf), Some(identity(Role::Tenant("lakeside".into()))));
    for key in ["ca.key", "good.key"] {
        let mode = std::fs::metadata(dir.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}
