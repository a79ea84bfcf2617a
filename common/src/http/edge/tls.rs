//! HTTPS: the certificate, read again when the process gets SIGHUP, and the bytes of a
//! connection, plain or encrypted.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;

use crate::env::{ConfigError, Vars};

const CERT_FILE: &str = "TLS_CERT_FILE";
const KEY_FILE: &str = "TLS_KEY_FILE";

/// What makes a listener speak HTTPS, in TLS 1.2 and 1.3.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// From `TLS_CERT_FILE`, a chain in PEM, and `TLS_KEY_FILE`; None where neither is set.
    pub fn from_vars(vars: &Vars) -> Result<Option<Self>, ConfigError> {
        let (cert_file, key_file) = match (vars.optional(CERT_FILE), vars.optional(KEY_FILE)) {
            (None, None) => return Ok(None),
            _ => (
                PathBuf::from(vars.text(CERT_FILE)?),
                PathBuf::from(vars.text(KEY_FILE)?),
            ),
        };
        let certificate = Arc::new(Certificate {
            current: RwLock::new(Arc::new(read(&cert_file, &key_file)?)),
            cert_file,
            key_file,
        });
        Certificate::read_again_on_sighup(&certificate);
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(CERT_FILE, &certificate.cert_file, error))?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        Ok(Some(Self {
            config: Arc::new(config),
        }))
    }
}

/// The certificate that connections get from now on.
#[derive(Debug)]
struct Certificate {
    current: RwLock<Arc<CertifiedKey>>,
    cert_file: PathBuf,
    key_file: PathBuf,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.current.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

impl Certificate {
    /// The thread ends with the process.
    fn read_again_on_sighup(certificate: &Arc<Self>) {
        let certificate = Arc::clone(certificate);
        let Ok(mut signals) = Signals::new([SIGHUP]) else {
            return;
        };
        thread::spawn(move || {
            for _ in signals.forever() {
                match read(&certificate.cert_file, &certificate.key_file) {
                    Ok(key) => {
                        let mut current = certificate
                            .current
                            .write()
                            .unwrap_or_else(PoisonError::into_inner);
                        *current = Arc::new(key);
                        log::info!("the certificate was read again");
                    }
                    // A half-written file must not cost the certificate that works.
                    Err(error) => {
                        let cause = error.to_string();
                        log::error!(cause = cause.as_str(); "the certificate stays as it was");
                    }
                }
            }
        });
    }
}

fn read(cert_file: &Path, key_file: &Path) -> Result<CertifiedKey, ConfigError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert_file)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(CERT_FILE, cert_file, error))?;
    if chain.is_empty() {
        return Err(unusable(CERT_FILE, cert_file, "it holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| unusable(KEY_FILE, key_file, error))?;
    let key = any_supported_type(&key).map_err(|error| unusable(KEY_FILE, key_file, error))?;
    let certified = CertifiedKey::new(chain, key);
    certified
        .keys_match()
        .map_err(|error| unusable(KEY_FILE, key_file, error))?;
    Ok(certified)
}

fn unusable(key: &str, file: &Path, error: impl std::fmt::Display) -> ConfigError {
    ConfigError {
        key: key.to_owned(),
        problem: format!("names {}, which cannot be used: {error}", file.display()),
    }
}

/// The bytes of a connection.
pub(super) struct Wire<'a> {
    pub(super) tcp: &'a TcpStream,
    session: Option<Box<ServerConnection>>,
    /// Until when a read may last, however many pieces it takes.
    deadline: Instant,
}

impl<'a> Wire<'a> {
    pub(super) fn new(tcp: &'a TcpStream, tls: Option<&Tls>) -> io::Result<Self> {
        let session = match tls {
            Some(tls) => {
                let session = ServerConnection::new(Arc::clone(&tls.config));
                Some(Box::new(session.map_err(io::Error::other)?))
            }
            None => None,
        };
        Ok(Self {
            tcp,
            session,
            deadline: Instant::now(),
        })
    }

    pub(super) fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    /// For the reads that follow. A plain one is a single system call, which the socket's own
    /// limit ends; one of TLS takes as many as its client likes.
    pub(super) fn read_until(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Tells the client that this is the end, so that it can tell it from a cut.
    pub(super) fn close(&mut self) {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
            while session.wants_write() {
                if session.write_tls(&mut self.tcp).is_err() {
                    break;
                }
            }
        }
        let _ = self.tcp.shutdown(std::net::Shutdown::Write);
    }
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return self.tcp.read(buffer);
        };
        let mut tcp = Timed {
            tcp: self.tcp,
            deadline: self.deadline,
        };
        match rustls::Stream::new(&mut **session, &mut tcp).read(buffer) {
            // An end without farewell; requests carry their own lengths.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            read => read,
        }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.session {
            Some(session) => {
                let mut tcp = Timed {
                    tcp: self.tcp,
                    deadline: self.deadline,
                };
                rustls::Stream::new(&mut **session, &mut tcp).write(bytes)
            }
            None => self.tcp.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.session {
            Some(session) => rustls::Stream::new(&mut **session, &mut self.tcp).flush(),
            None => Ok(()),
        }
    }
}

/// A socket whose reads end at a deadline, each of them.
struct Timed<'a> {
    tcp: &'a TcpStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.tcp.set_read_timeout(Some(left))?;
        self.tcp.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}
