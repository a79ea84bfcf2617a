//! TLS as a client: which certificates of a server a program accepts, and which one it shows. The files are
//! read at each new connection, so that a renewed certificate needs no restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, RootCertStore,
    SignatureScheme,
};

use crate::env::{ConfigError, Vars};
use crate::password::{read_secret, require_file};

/// The value that stands for the certification authorities of the system.
const SYSTEM: &str = "system";

/// The authorities of a system have some 250 KB.
const CERTIFICATES_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The files with the authorities of a system: Debian, Alpine and Arch; Red Hat; SUSE.
const SYSTEM_FILES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// The variables of TLS to one kind of server.
#[derive(Debug, Clone, Copy)]
pub struct TlsKeys {
    /// The variable that turns TLS on.
    pub switch: &'static str,
    /// The variable that names the file with the trusted certification authorities.
    pub roots: &'static str,
    /// The variable that names the file with the certificate of the program.
    pub certificate: &'static str,
    /// The variable that names the file with the key of the certificate.
    pub key: &'static str,
    /// The variable that names the server.
    pub host: &'static str,
}

/// What a program checks of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// Nothing: any program that answers counts as the server.
    Nothing,
    /// A trusted authority has signed it.
    Chain,
    /// A trusted authority has signed it, for the name of the server.
    ChainAndName,
}

/// Which certificates a program accepts; the file has the trusted authorities, or is [`SYSTEM`].
#[derive(Debug, Clone)]
enum Accepted {
    All,
    AnyName(PathBuf),
    NameOfServer(PathBuf),
}

/// How a program speaks TLS to one kind of server.
#[derive(Debug, Clone)]
pub struct TlsClient {
    keys: TlsKeys,
    accepted: Accepted,
    /// The files of the program's certificate and of its key.
    identity: Option<[PathBuf; 2]>,
}

impl TlsClient {
    /// Reads the variables and, as a check, the files that they name.
    pub fn from_vars(
        vars: &Vars,
        keys: TlsKeys,
        verification: Verification,
    ) -> Result<Self, ConfigError> {
        let accepted = match verification {
            Verification::Nothing => Accepted::All,
            Verification::Chain => Accepted::AnyName(roots_in(vars, keys)?),
            Verification::ChainAndName => Accepted::NameOfServer(roots_in(vars, keys)?),
        };
        if let Accepted::AnyName(roots) = &accepted
            && is_system(roots)
        {
            let problem = format!(
                "must be verify-full with {}={SYSTEM}, whose authorities sign certificates for everybody",
                keys.roots
            );
            return Err(error(keys.switch, problem));
        }
        let client = Self {
            keys,
            accepted,
            identity: identity_in(vars, keys)?,
        };
        client.config()?;
        Ok(client)
    }

    /// Refuses variables that would have no effect without TLS.
    pub fn refuse_in(vars: &Vars, keys: TlsKeys) -> Result<(), ConfigError> {
        for key in [keys.roots, keys.certificate, keys.key] {
            if vars.guarding(key)?.is_some() {
                let problem = format!("is set, and {} does not turn TLS on", keys.switch);
                return Err(error(key, problem));
            }
        }
        Ok(())
    }

    /// Reads the files and makes the configuration of a connection.
    pub fn config(&self) -> Result<Arc<ClientConfig>, ConfigError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|refused| error(self.keys.switch, format!("has no TLS: {refused}")))?;
        let any_name = |roots| Arc::new(AnyName { roots, provider });
        let builder = match &self.accepted {
            Accepted::NameOfServer(file) => builder.with_root_certificates(self.read_roots(file)?),
            Accepted::AnyName(file) => {
                let verifier = any_name(Some(self.read_roots(file)?));
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
            }
            Accepted::All => {
                let verifier = any_name(None);
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(verifier)
            }
        };
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some([certificate, key]) => {
                let chain = certificates(self.keys.certificate, certificate)?;
                let unusable = |problem| unusable(self.keys.key, key, problem);
                let text = read_secret(self.keys.key, key)?;
                let private_key = PrivateKeyDer::from_pem_slice(text.as_bytes())
                    .map_err(|_| unusable("has no private key in PEM".to_owned()))?;
                builder
                    .with_client_auth_cert(chain, private_key)
                    .map_err(|refused| {
                        unusable(format!("does not fit {}: {refused}", self.keys.certificate))
                    })?
            }
        };
        Ok(Arc::new(config))
    }

    fn read_roots(&self, file: &Path) -> Result<RootCertStore, ConfigError> {
        let mut roots = RootCertStore::empty();
        if is_system(file) {
            let found = SYSTEM_FILES
                .map(Path::new)
                .into_iter()
                .find(|file| file.exists());
            let file = found.ok_or_else(|| {
                let problem =
                    "is system, and the system has no authorities: install ca-certificates";
                error(self.keys.roots, problem.to_owned())
            })?;
            // A system may have old authorities that rustls refuses.
            roots.add_parsable_certificates(certificates(self.keys.roots, file)?);
            return Ok(roots);
        }
        for certificate in certificates(self.keys.roots, file)? {
            roots.add(certificate).map_err(|refused| {
                let problem = format!("has a certificate that is no authority's: {refused}");
                unusable(self.keys.roots, file, problem)
            })?;
        }
        Ok(roots)
    }

    /// Why TLS with `host` failed, with the variable that it concerns. The text of a cause stays the same from one
    /// try to the next.
    #[must_use]
    pub fn explain(&self, failure: &Error, host: &str) -> String {
        let TlsKeys {
            switch,
            roots,
            certificate,
            host: host_key,
            ..
        } = self.keys;
        match failure {
            Error::InvalidCertificate(problem) => match problem {
                CertificateError::UnknownIssuer => {
                    format!("no authority in {roots} has signed the certificate of {host}")
                }
                CertificateError::NotValidForName => {
                    format!("the certificate of {host} is for another name than {host_key} has")
                }
                CertificateError::NotValidForNameContext { presented, .. } => format!(
                    "the certificate of {host} is for another name than {host_key} has: {}",
                    presented.join(", ")
                ),
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    format!("the certificate of {host}, which {switch} has checked, has expired")
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    format!(
                        "the certificate of {host}, which {switch} has checked, is not valid yet"
                    )
                }
                problem => format!("{switch} refuses the certificate of {host}: {problem}"),
            },
            Error::AlertReceived(alert) => {
                format!("{host} refuses TLS with this {certificate}, or without one: {alert:?}")
            }
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                format!("{switch} asks for TLS, and {host} does not speak it at this port")
            }
            failure => format!("TLS with {host} ({switch}) failed: {failure}"),
        }
    }
}

fn is_system(roots: &Path) -> bool {
    roots == Path::new(SYSTEM)
}

fn roots_in(vars: &Vars, keys: TlsKeys) -> Result<PathBuf, ConfigError> {
    let found = vars.guarding(keys.roots)?.map(PathBuf::from);
    found.ok_or_else(|| {
        let problem = format!(
            "is missing: {} checks the server's certificate, so set it to a PEM file with the authorities that \
             are trusted, or to {SYSTEM} for those of the system",
            keys.switch
        );
        error(keys.roots, problem)
    })
}

fn identity_in(vars: &Vars, keys: TlsKeys) -> Result<Option<[PathBuf; 2]>, ConfigError> {
    let certificate = vars.guarding(keys.certificate)?;
    match (certificate, vars.guarding(keys.key)?) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => Ok(Some([certificate, key].map(PathBuf::from))),
        (None, Some(_)) => Err(missing(keys.certificate, keys.key)),
        (Some(_), None) => Err(missing(keys.key, keys.certificate)),
    }
}

fn missing(key: &str, other: &str) -> ConfigError {
    error(
        key,
        format!("is missing: {other} is set, and each needs the other"),
    )
}

/// Reads all certificates of a PEM file.
fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    require_file(key, file, CERTIFICATES_BYTES_MAX)?;
    let text = std::fs::read(file)
        .map_err(|failure| unusable(key, file, format!("cannot be read: {failure}")))?;
    let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match read {
        Ok(read) if !read.is_empty() => Ok(read),
        _ => Err(unusable(key, file, "has no certificate in PEM")),
    }
}

fn unusable(key: &str, file: &Path, problem: impl std::fmt::Display) -> ConfigError {
    error(key, format!("names {}, which {problem}", file.display()))
}

fn error(key: &str, problem: String) -> ConfigError {
    ConfigError {
        key: key.to_owned(),
        problem,
    }
}

/// Accepts a certificate for any name, if one of the roots has signed it; without roots it accepts every
/// certificate. The server must still prove that it has the key of the certificate.
#[derive(Debug)]
struct AnyName {
    roots: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(certificate)?,
                roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
