//! HTTPS at the listener, asked by curl and, where it matters how the bytes are cut, by hand.

mod alone;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use alone::SETTINGS;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use testkit::{Program, ScriptedUpstream, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_api-gateway");

/// A folder with a certificate for `localhost` and its key, which goes with its test.
struct Certificate {
    folder: PathBuf,
}

impl Certificate {
    fn create() -> Self {
        let folder = std::env::temp_dir().join(format!("crud-master-tls-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).expect("a folder");
        let certificate = Self { folder };
        certificate.renew();
        certificate
    }

    /// Puts another certificate and key in place of the first.
    fn renew(&self) {
        let names = vec!["localhost".to_owned()];
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(names).expect("a certificate");
        fs::write(self.cert(), cert.pem()).expect("a file");
        fs::write(self.key(), signing_key.serialize_pem()).expect("a file");
    }

    fn cert(&self) -> PathBuf {
        self.folder.join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.join("key.pem")
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn start(inventory: SocketAddr, cert: &Path, key: &Path) -> Program {
    let (inventory_ip, inventory_port) = (inventory.ip().to_string(), inventory.port().to_string());
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let own = [
        ("HTTP_WORKERS", "2"),
        ("INVENTORY_VM_IP", &*inventory_ip),
        ("INVENTORY_API_PORT", &inventory_port),
        ("TLS_CERT_FILE", &cert),
        ("TLS_KEY_FILE", &key),
    ];
    // Of two for one key the later holds.
    Program::start(PROGRAM, SETTINGS.into_iter().chain(own))
}

/// What curl prints of an answer that it trusts; None where there is none.
fn curl(address: SocketAddr, trusted: &Path, path: &str, options: &[&str]) -> Option<String> {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--noproxy",
            "*",
        ])
        .args([
            "--resolve",
            &format!("localhost:{}:127.0.0.1", address.port()),
        ])
        .arg("--cacert")
        .arg(trusted)
        .args(options)
        .arg(format!("https://localhost:{}{path}", address.port()))
        .output()
        .expect("curl");
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn https_is_spoken_in_both_versions_and_said_to_the_inventory() {
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{}",
        "m".repeat(100_000)
    );
    let inventory = ScriptedUpstream::answering(answer);
    let certificate = Certificate::create();
    let gateway = start(inventory.address(), &certificate.cert(), &certificate.key());
    let address = gateway.address();
    for version in [
        ["--tlsv1.2", "--tls-max", "1.2"],
        ["--tlsv1.3", "--tls-max", "1.3"],
    ] {
        let movies = curl(address, &certificate.cert(), "/api/movies", &version);

        assert_eq!(
            movies.map(|movies| movies.len()),
            Some(100_000),
            "{version:?}"
        );
    }
    assert_eq!(
        curl(
            address,
            &certificate.cert(),
            "/health",
            &["--tls-max", "1.1"]
        ),
        None
    );
    let asked = inventory.requests();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].values("x-forwarded-proto"), ["https"]);
}

#[test]
fn whoever_came_by_https_is_told_to_do_so_again() {
    let inventory = ScriptedUpstream::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let certificate = Certificate::create();
    let gateway = start(inventory.address(), &certificate.cert(), &certificate.key());
    let address = gateway.address();

    for path in ["/api/movies", "/health", "/nothing", "/%"] {
        let head = curl(address, &certificate.cert(), path, &["--head"]).expect(path);

        assert!(
            head.contains("\r\nstrict-transport-security: max-age=31536000\r\n"),
            "{path}: {head}"
        );
    }
}

#[test]
fn whoever_speaks_plainly_to_a_tls_port_is_told_so_plainly() {
    let inventory = ScriptedUpstream::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let certificate = Certificate::create();
    let gateway = start(inventory.address(), &certificate.cert(), &certificate.key());
    let address = gateway.address();

    let answer = testkit::exchange(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");

    assert!(
        answer.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "{answer:?}"
    );
    assert!(answer.contains("this port speaks HTTPS"), "{answer:?}");
    let health = curl(address, &certificate.cert(), "/health", &[]);
    assert_eq!(health.as_deref(), Some(r#"{"status":"ok"}"#));
}

#[test]
fn a_large_body_arrives_whole_however_it_is_cut_into_records() {
    let inventory = ScriptedUpstream::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let certificate = Certificate::create();
    let gateway = start(inventory.address(), &certificate.cert(), &certificate.key());
    let begin = "POST /api/movies HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n";
    let mut chunked = format!("{begin}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for length in [16_000, 1, 300, 16_384, 5_000].iter().cycle().take(40) {
        chunked.extend_from_slice(format!("{length:x}\r\n{}\r\n", "m".repeat(*length)).as_bytes());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let body = "m".repeat(1_000_000);
    let whole = format!("{begin}Content-Length: 1000000\r\n\r\n{body}").into_bytes();

    for (request, record_bytes) in [(&whole, 16_384), (&whole, 700), (&chunked, 9_999)] {
        let mut stream = connect(gateway.address(), &certificate);
        for piece in request.chunks(record_bytes) {
            stream.write_all(piece).expect("it reads");
        }
        stream.flush().expect("it reads");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 204", "records of {record_bytes}");
    }

    let lengths = inventory
        .requests()
        .into_iter()
        .map(|request| request.body.len());
    let expected = [
        1_000_000,
        1_000_000,
        8 * (16_000 + 1 + 300 + 16_384 + 5_000),
    ];
    assert_eq!(lengths.collect::<Vec<_>>(), expected);
}

#[test]
fn a_full_record_may_come_together_with_the_end_of_the_handshake() {
    let inventory = ScriptedUpstream::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let certificate = Certificate::create();
    let gateway = start(inventory.address(), &certificate.cert(), &certificate.key());
    let mut stream = connect(gateway.address(), &certificate);
    while stream.conn.is_handshaking() {
        if stream.conn.wants_write() {
            stream.conn.write_tls(&mut stream.sock).expect("it reads");
        } else {
            stream.conn.read_tls(&mut stream.sock).expect("a handshake");
            stream.conn.process_new_packets().expect("a handshake");
        }
    }
    let head = "POST /api/movies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000\r\n\r\n";
    let request = format!("{head}{}", "m".repeat(30_000));

    stream
        .conn
        .writer()
        .write_all(request.as_bytes())
        .expect("room");
    let mut records = Vec::new();
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut records).expect("memory");
    }
    stream.sock.write_all(&records).expect("it reads");

    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 204");
}

#[test]
fn what_comes_behind_a_farewell_is_nobodys() {
    let inventory = ScriptedUpstream::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let certificate = Certificate::create();
    let gateway = start(inventory.address(), &certificate.cert(), &certificate.key());
    let address = gateway.address();
    let mut stream = connect(address, &certificate);
    stream.write_all(b"GET / HTTP/1.1\r\n").expect("it reads");

    stream.conn.send_close_notify();
    stream.flush().expect("it reads");
    let _ = stream.sock.write_all(&vec![0; 20_000]);

    eventually("its connection is gone", || {
        let metrics = curl(address, &certificate.cert(), "/metrics", &[]);
        metrics.is_some_and(|metrics| metrics.contains("\nhttp_connections 1\n"))
    });
}

/// A client that trusts the certificate, with its socket at hand.
fn connect(
    address: SocketAddr,
    certificate: &Certificate,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut trusted = RootCertStore::empty();
    let cert = CertificateDer::from_pem_file(certificate.cert()).expect("a certificate");
    trusted.add(cert).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    let name = "localhost".try_into().expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    let socket = TcpStream::connect(address).expect("a connection");
    let patience = Some(Duration::from_secs(30));
    socket.set_read_timeout(patience).expect("a socket option");
    StreamOwned::new(session, socket)
}

#[test]
fn a_new_certificate_is_used_once_it_is_there_and_a_broken_one_is_not() {
    let inventory = ScriptedUpstream::answering("HTTP/1.1 204 No Content\r\n\r\n");
    let certificate = Certificate::create();
    let gateway = start(inventory.address(), &certificate.cert(), &certificate.key());
    let address = gateway.address();
    let healthy = || curl(address, &certificate.cert(), "/health", &[]).is_some();
    assert!(healthy());

    certificate.renew();
    gateway.signal("HUP");

    eventually("the new certificate is used", healthy);
    fs::write(certificate.key(), "half a key").expect("a file");
    eventually("the broken key is noticed", || {
        gateway.log().contains("the certificate stays as it was")
    });
    assert!(healthy());
}

#[test]
fn a_certificate_or_key_that_cannot_be_used_is_named() {
    let (certificate, other) = (Certificate::create(), Certificate::create());
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    for (cert, key, named) in [
        (
            PathBuf::from("/nowhere"),
            certificate.key(),
            "TLS_CERT_FILE names /nowhere",
        ),
        (
            certificate.cert(),
            PathBuf::from("/nowhere"),
            "TLS_KEY_FILE names /nowhere",
        ),
        (certificate.key(), certificate.key(), "TLS_CERT_FILE names"),
        (certificate.cert(), other.key(), "TLS_KEY_FILE names"),
        (
            certificate.cert(),
            PathBuf::new(),
            "TLS_KEY_FILE is set and empty",
        ),
    ] {
        let (status, log) = start(nobody, &cert, &key).wait();

        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.starts_with(&format!("api-gateway: {named}")), "{log}");
    }
}
