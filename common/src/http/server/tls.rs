//! HTTPS: the certificate, which is read again when its files have changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::env::{ConfigError, Vars};
use crate::http::sync::{Mutex, lock};
use crate::watched::Watched;

const CERT_FILE: &str = "TLS_CERT_FILE";
const KEY_FILE: &str = "TLS_KEY_FILE";

/// What makes a listener speak HTTPS, in TLS 1.2 and 1.3.
#[derive(Debug, Clone)]
pub struct Tls {
    /// With the certificate that connections get from now on.
    current: Arc<Mutex<Arc<ServerConfig>>>,
}

impl Tls {
    /// From `TLS_CERT_FILE`, a chain in PEM, and `TLS_KEY_FILE`; None where neither is set.
    pub fn from_vars(vars: &Vars) -> Result<Option<Self>, ConfigError> {
        // Both are asked for, so that one that is set and empty is told of.
        let (cert, key) = (vars.guarding(CERT_FILE)?, vars.guarding(KEY_FILE)?);
        if cert.is_none() && key.is_none() {
            return Ok(None);
        }
        let files = [vars.text(CERT_FILE)?, vars.text(KEY_FILE)?].map(PathBuf::from);
        let watched = Watched::new(files.to_vec());
        let current = Arc::new(Mutex::new(read(&files)?));
        let (own, own_files) = (Arc::clone(&current), files.clone());
        let read_again = move || match read(&own_files) {
            Ok(config) => {
                *lock(&own) = config;
                log::info!("the certificate was read again");
            }
            // A half-written file must not cost the certificate that works.
            Err(error) => {
                let cause = error.to_string();
                log::error!(cause = cause.as_str(); "the certificate stays as it was");
            }
        };
        let watching = watched.watch(read_again);
        watching.map_err(|error| unusable(CERT_FILE, &files[0], error))?;
        Ok(Some(Self { current }))
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&lock(&self.current))
    }
}

fn read([cert_file, key_file]: &[PathBuf; 2]) -> Result<Arc<ServerConfig>, ConfigError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert_file)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(CERT_FILE, cert_file, error))?;
    if chain.is_empty() {
        return Err(unusable(CERT_FILE, cert_file, "it holds no certificate"));
    }
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| unusable(KEY_FILE, key_file, error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| unusable(KEY_FILE, key_file, error))?;
    Ok(Arc::new(config))
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
