//! TLS to PostgreSQL: libpq's `sslmode`, and the connection between the `postgres` crate and rustls.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use postgres::Socket;
use postgres::config::SslMode;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use ring::digest::{self, digest};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as RustlsStream;

use crate::env::{ConfigError, Vars};
use crate::tls::{TlsClient, TlsKeys, Verification};

pub(super) const SSL_MODE: &str = "POSTGRES_SSLMODE";

const KEYS: TlsKeys = TlsKeys {
    switch: SSL_MODE,
    roots: "POSTGRES_SSLROOTCERT",
    certificate: "POSTGRES_SSLCERT",
    key: "POSTGRES_SSLKEY",
    host: super::HOST,
};

/// The error of the `postgres` crate for a server that refuses its request for TLS.
const NOT_OFFERED: &str = "server does not support TLS";

/// Whether connections are encrypted, and what the program checks of the server's certificate, with the meanings of
/// libpq's `sslmode`.
#[derive(Debug, Clone, Default)]
pub struct DatabaseTls {
    /// None stands for `disable`.
    client: Option<TlsClient>,
    /// Whether a server without TLS is accepted (`prefer`).
    optional: bool,
}

impl DatabaseTls {
    /// Reads the `POSTGRES_SSL…` variables.
    pub(super) fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let mode = vars.guarding(SSL_MODE)?;
        // With a file of authorities even the weaker modes check the chain.
        let weak = match vars.guarding(KEYS.roots)? {
            Some(_) => Verification::Chain,
            None => Verification::Nothing,
        };
        let verification = match mode {
            None | Some("disable") => {
                TlsClient::refuse_in(vars, KEYS)?;
                return Ok(Self::default());
            }
            Some("prefer" | "require") => weak,
            Some("verify-ca") => Verification::Chain,
            Some("verify-full") => Verification::ChainAndName,
            Some(_) => {
                let expected = "disable, prefer, require, verify-ca or verify-full";
                return Err(ConfigError::malformed(SSL_MODE, expected));
            }
        };
        Ok(Self {
            client: Some(TlsClient::from_vars(vars, KEYS, verification)?),
            optional: mode == Some("prefer"),
        })
    }

    /// What the program asks of a server. At a Unix socket, which is on this machine, it asks for no TLS.
    pub(super) fn ssl_mode(&self, unix_socket: bool) -> SslMode {
        match (&self.client, self.optional) {
            (None, _) => SslMode::Disable,
            (Some(_), _) if unix_socket => SslMode::Disable,
            (Some(_), true) => SslMode::Prefer,
            (Some(_), false) => SslMode::Require,
        }
    }

    /// Why there is no TLS, if that was the reason.
    pub(super) fn explain(&self, error: &postgres::Error, host: &str) -> Option<String> {
        let source = std::error::Error::source(error)?;
        if let Some(TlsError(text)) = source.downcast_ref() {
            return Some(text.clone());
        }
        // With TLS 1.3 a server checks the certificate of its client after the handshake.
        let late = source.downcast_ref::<io::Error>().and_then(refusal);
        if let (Some(client), Some(refused)) = (&self.client, late) {
            return Some(client.explain(refused, host));
        }
        (source.to_string() == NOT_OFFERED)
            .then(|| format!("{SSL_MODE} asks for TLS, and {host} does not offer it"))
    }

    /// Reads the files and makes the connector of a dial.
    pub(super) fn connector(&self) -> Result<Connector, ConfigError> {
        Ok(Connector(match &self.client {
            None => None,
            Some(client) => Some((client.clone(), client.config()?)),
        }))
    }
}

/// The error of rustls in an error of its stream.
fn refusal(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Begins TLS on connections to PostgreSQL.
#[derive(Clone)]
pub(super) struct Connector(Option<(TlsClient, Arc<ClientConfig>)>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Stream;
    type TlsConnect = Handshake;
    type Error = TlsError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, TlsError> {
        Ok(Handshake {
            connector: self.clone(),
            host: host.to_owned(),
        })
    }
}

/// The handshake with one host.
pub(super) struct Handshake {
    connector: Connector,
    host: String,
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Stream;
    type Error = TlsError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, TlsError>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let Some((client, config)) = self.connector.0 else {
                return Err(TlsError(format!("{SSL_MODE} does not turn TLS on")));
            };
            let name = ServerName::try_from(self.host.clone())
                .map_err(|_| TlsError(format!("{} is no name of a certificate", self.host)))?;
            let connected = TlsConnector::from(config).connect(name, socket).await;
            connected.map(Stream).map_err(|error| {
                TlsError(match refusal(&error) {
                    Some(refused) => client.explain(refused, &self.host),
                    None => format!("TLS with {} ({SSL_MODE}) failed: {error}", self.host),
                })
            })
        })
    }
}

/// Why a handshake failed.
#[derive(Debug)]
pub(super) struct TlsError(String);

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

/// An encrypted connection.
pub(super) struct Stream(RustlsStream<Socket>);

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        let (_, connection) = self.0.get_ref();
        connection
            .peer_certificates()
            .and_then(|certificates| end_point(certificates.first()?))
            .map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// The OIDs of signature algorithms (RFC 4055, RFC 5758), and the hash of each. RFC 5929 has SHA-256 in the place
/// of MD5 and SHA-1, and no hash for those with other parameters, as RSASSA-PSS, or with none, as Ed25519.
const HASHES: [(&[u8], &digest::Algorithm); 8] = [
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", &digest::SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", &digest::SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", &digest::SHA256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", &digest::SHA384),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", &digest::SHA512),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", &digest::SHA256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", &digest::SHA384),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", &digest::SHA512),
];

/// The channel binding `tls-server-end-point` (RFC 5929 §4): the certificate, hashed as its signature was. None
/// where that is not defined.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … }
    let (certificate_content, _) = element(certificate)?;
    let (_, behind_tbs) = element(certificate_content)?;
    let (algorithm, _) = element(behind_tbs)?;
    let (oid, _) = element(algorithm)?;
    let (_, hash) = HASHES.iter().find(|(known, _)| *known == oid)?;
    Some(digest(hash, certificate).as_ref().to_vec())
}

/// The content of the DER element that begins there, and what is behind it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = der.split_first_chunk::<2>()?;
    let length_bytes = usize::from(head[1]).checked_sub(0x80);
    match length_bytes {
        None => rest.split_at_checked(head[1].into()),
        Some(bytes @ 1..=4) => {
            let (length, rest) = rest.split_at_checked(bytes)?;
            let number = |number, byte: &u8| number << 8 | usize::from(*byte);
            rest.split_at_checked(length.iter().fold(0, number))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    };

    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params
            .self_signed(&key)
            .expect("a certificate")
            .der()
            .to_vec()
    }

    #[test]
    fn a_certificate_is_hashed_as_its_signature_was() {
        for (algorithm, hash) in [
            (&PKCS_ECDSA_P256_SHA256, &digest::SHA256),
            (&PKCS_ECDSA_P384_SHA384, &digest::SHA384),
        ] {
            let certificate = certificate(algorithm);

            let bound = end_point(&certificate);

            assert_eq!(bound.as_deref(), Some(digest(hash, &certificate).as_ref()));
        }
        assert_eq!(end_point(&certificate(&PKCS_ED25519)), None);
    }

    #[test]
    fn bytes_that_are_no_certificate_have_no_channel_binding() {
        let whole = certificate(&PKCS_ECDSA_P256_SHA256);

        for end in 0..whole.len() {
            assert_eq!(end_point(&whole[..end]), None);
        }
        assert_eq!(end_point(&[0x30, 0x85, 1, 1, 1, 1, 1]), None);
    }
}
