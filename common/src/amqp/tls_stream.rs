//! TLS on a socket to the broker, for a thread that waits with mio.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Token};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::error::AmqpError;
use crate::tls::TlsClient;

/// How many bytes are encrypted at once.
const WRITTEN_BYTES: usize = 64 * 1024;

/// Does the TLS handshake with the broker. The socket must have a deadline.
pub(super) fn encrypted(
    mut socket: TcpStream,
    tls: &TlsClient,
    host: &str,
) -> Result<TlsSocket, AmqpError> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| AmqpError::Unusable(format!("{host} is no name of a certificate")))?;
    let unusable = |failure: &rustls::Error| AmqpError::Unusable(tls.explain(failure, host));
    let mut session =
        ClientConnection::new(tls.config()?, name).map_err(|failure| unusable(&failure))?;
    while session.is_handshaking() {
        session.complete_io(&mut socket).map_err(|error| {
            match error.get_ref().and_then(|source| source.downcast_ref()) {
                Some(failure) => unusable(failure),
                None => AmqpError::Connect(error),
            }
        })?;
    }
    Ok(TlsSocket {
        session,
        socket: mio::net::TcpStream::from_stream(socket)?,
        owed: 0,
        tls: tls.clone(),
        host: host.to_owned(),
    })
}

/// A socket with TLS. Bytes count as written only once their ciphertext is in the socket; otherwise amiquip would
/// no longer wait until the socket takes more.
pub(super) struct TlsSocket {
    session: ClientConnection,
    socket: mio::net::TcpStream,
    /// How many bytes are encrypted and do not count as written yet.
    owed: usize,
    /// With `host` it explains a failure: with TLS 1.3 the broker checks a certificate after the handshake.
    tls: TlsClient,
    host: String,
}

impl TlsSocket {
    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            if self.session.write_tls(&mut self.socket)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl Read for TlsSocket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            // At the end of the stream the reader returns whether the broker has closed it.
            self.session.read_tls(&mut self.socket)?;
            let processed = self.session.process_new_packets();
            // This sends an alert or the answer to a key update. Bytes that the socket does not take are sent with
            // the next ones.
            match self.send() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            processed.map_err(|failure| {
                let text = self.tls.explain(&failure, &self.host);
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
        }
    }
}

impl Write for TlsSocket {
    /// After `WouldBlock` the caller must call again with the bytes that it had.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send()?;
        if self.owed == 0 {
            let part = &bytes[..bytes.len().min(WRITTEN_BYTES)];
            self.owed = self.session.writer().write(part)?;
            self.send()?;
        }
        Ok(std::mem::take(&mut self.owed))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl Evented for TlsSocket {
    fn register(&self, poll: &Poll, token: Token, ready: Ready, opt: PollOpt) -> io::Result<()> {
        self.socket.register(poll, token, ready, opt)
    }

    fn reregister(&self, poll: &Poll, token: Token, ready: Ready, opt: PollOpt) -> io::Result<()> {
        self.socket.reregister(poll, token, ready, opt)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket.deregister(poll)
    }
}

impl IoStream for TlsSocket {}
