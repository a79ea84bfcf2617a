//! Certificates, and servers that show them.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::Folder;

/// A certification authority, with its certificate in a file.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: Folder,
}

/// A certificate and its key, in PEM.
pub struct Signed {
    /// The certificate, in PEM.
    pub certificate: String,
    /// The key of the certificate, in PEM.
    pub key: String,
}

impl Authority {
    /// Makes an authority that no other test trusts.
    ///
    /// # Panics
    /// When there is no place for its file.
    #[must_use]
    pub fn create() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = crate::unique_name("authority");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        let folder = Folder::create();
        folder.write("ca.pem", &issuer.pem(), 0o644);
        Self { issuer, folder }
    }

    /// The file with the certificate of the authority.
    ///
    /// # Panics
    /// When the folder of temporary files is not UTF-8.
    #[must_use]
    pub fn file(&self) -> String {
        let file = self.folder.path().join("ca.pem");
        file.to_str().expect("UTF-8").to_owned()
    }

    /// Signs a certificate for a server of this name or address, or for a client.
    #[must_use]
    pub fn sign(&self, name: &str) -> Signed {
        self.sign_until(name, 4000)
    }

    /// Signs a certificate that was good until the year 2000.
    #[must_use]
    pub fn sign_expired(&self, name: &str) -> Signed {
        self.sign_until(name, 2000)
    }

    fn sign_until(&self, name: &str, year: i32) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Signed {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Starts a server that does a handshake with this certificate and then closes the connection; with `clients` it
    /// asks for a certificate of that authority. It ends with the test's process.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn listen_with(signed: &Signed, clients: Option<&Authority>) -> SocketAddr {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions of TLS");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                let root = authority.issuer.as_ref().der().clone();
                roots.add(root).expect("a certificate");
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).expect("a key");
        let config = builder
            .with_single_cert(vec![certificate.expect("a certificate")], key)
            .expect("a key of the certificate");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let config = Arc::clone(&config);
                let mut session = ServerConnection::new(config).expect("a configuration");
                while session.is_handshaking() && session.complete_io(&mut client).is_ok() {}
                // With bytes of the client unread, the end of the connection would take back the last alert.
                let _ = client.shutdown(Shutdown::Write);
                let _ = io::copy(&mut client, &mut io::sink());
            }
        });
        address
    }
}
