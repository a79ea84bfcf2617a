//! The bytes of a connection, plain or encrypted.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;

use rustls::{ServerConnection, Stream};

use super::poller::Socket;
use super::tls::Tls;

/// How many bytes a session buffers that its client has not taken.
const SECURE_BYTES_MAX: usize = 16 * 1024;

/// Handshakes have a few thousand bytes; a session keeps what does not end.
const HANDSHAKE_BYTES_MAX: usize = 16 * 1024;

pub(crate) struct Transport {
    pub(crate) socket: Socket,
    session: Option<Box<ServerConnection>>,
    /// A byte has come.
    has_begun: bool,
    /// How many more bytes the handshake may have.
    handshake_left: usize,
}

impl Transport {
    pub(crate) fn new(socket: Socket, tls: Option<&Tls>) -> Result<Self, rustls::Error> {
        let session = tls.map(|tls| ServerConnection::new(tls.config()));
        let mut session = session.transpose()?.map(Box::new);
        if let Some(session) = &mut session {
            session.set_buffer_limit(Some(SECURE_BYTES_MAX));
        }
        Ok(Self {
            socket,
            session,
            has_begun: false,
            handshake_left: HANDSHAKE_BYTES_MAX,
        })
    }

    /// Reads what has arrived; 0 is the end. Who speaks plainly where TLS is spoken is unmasked by
    /// an error, and is spoken to plainly from then on.
    pub(crate) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return (&self.socket).read(buffer);
        };
        if !self.has_begun {
            let mut first = [0];
            self.has_begun = self.socket.peek(&mut first)? > 0;
            if first[0].is_ascii_alphabetic() {
                self.session = None;
                return Err(ErrorKind::Unsupported.into());
            }
        }
        while session.is_handshaking() {
            if session.wants_write() {
                session.write_tls(&mut &self.socket)?;
                continue;
            }
            let read = session.read_tls(&mut &self.socket)?;
            let left = self.handshake_left.checked_sub(read);
            self.handshake_left = left.ok_or(ErrorKind::InvalidData)?;
            if let Err(error) = session.process_new_packets() {
                // The alert that tells why.
                let _ = session.write_tls(&mut &self.socket);
                return Err(io::Error::other(error));
            }
            if read == 0 {
                return Ok(0);
            }
        }
        match Stream::new(&mut **session, &mut &self.socket).read(buffer) {
            // An end without farewell; requests carry their own lengths.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
            read => read,
        }
    }

    /// Sends what the client takes. What this returns may still wait for [`Transport::flush`].
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.flush()?;
        let Some(session) = &mut self.session else {
            return (&self.socket).write(bytes);
        };
        session.writer().write(bytes)
    }

    /// Sends what the session has for the client; an error of [`ErrorKind::WouldBlock`] where the
    /// client does not take all of it.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if let Some(session) = &mut self.session {
            while session.wants_write() {
                session.write_tls(&mut &self.socket)?;
            }
        }
        Ok(())
    }

    /// Tells the client that this is the end, so that it can tell it from a cut.
    pub(crate) fn send_close_notify(&mut self) {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
            let _ = self.flush();
        }
    }

    pub(crate) fn end_output(&mut self) {
        self.send_close_notify();
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Whether the session has more for us, of which no event of the socket will tell.
    pub(crate) fn has_unread(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| !session.wants_read())
    }
}
