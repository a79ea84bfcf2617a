//! HTTPS: the certificate, which is read again when its files have changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::env::{ConfigError, Vars};
use crate::watched::Watched;

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
        let (cert_file, key_file) = match (vars.guarding(CERT_FILE)?, vars.guarding(KEY_FILE)?) {
            (None, None) => return Ok(None),
            _ => (
                PathBuf::from(vars.text(CERT_FILE)?),
                PathBuf::from(vars.text(KEY_FILE)?),
            ),
        };
        let watched = Watched::new(vec![cert_file.clone(), key_file.clone()]);
        let certificate = Arc::new(Certificate {
            current: RwLock::new(Arc::new(read(&cert_file, &key_file)?)),
            cert_file,
            key_file,
        });
        let changed = Arc::clone(&certificate);
        watched
            .watch(move || changed.read_again())
            .map_err(|error| unusable(CERT_FILE, &certificate.cert_file, error))?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(CERT_FILE, &certificate.cert_file, error))?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        Ok(Some(Self {
            config: Arc::new(config),
        }))
    }

    pub(crate) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
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
    fn read_again(&self) {
        match read(&self.cert_file, &self.key_file) {
            Ok(key) => {
                let current = self.current.write();
                *current.unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                log::info!("the certificate was read again");
            }
            // A half-written file must not cost the certificate that works.
            Err(error) => {
                let cause = error.to_string();
                log::error!(cause = cause.as_str(); "the certificate stays as it was");
            }
        }
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
        problem: format!(
            "names {}, which cannot be used: {error}; both files must be PEM, readable for this \
             user, and the key that of the certificate",
            file.display()
        ),
    }
}
