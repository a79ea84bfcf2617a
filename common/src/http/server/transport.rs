//! The bytes of a connection, plain or encrypted.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;

use rustls::{ServerConnection, Stream};

use super::poller::Socket;
use super::tls::Tls;

/// How much a session keeps of what its client has not taken.
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

/// The socket of a session that reads no more than so much.
struct Limited<'s>(&'s Socket, &'s mut usize);

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer)?;
        *self.1 = self.1.checked_sub(read).ok_or(ErrorKind::InvalidData)?;
        Ok(read)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
        if !session.is_handshaking() {
            self.handshake_left = usize::MAX;
        }
        let mut socket = Limited(&self.socket, &mut self.handshake_left);
        match Stream::new(&mut **session, &mut socket).read(buffer) {
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
    pub(crate) fn say_farewell(&mut self) {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
            let _ = self.flush();
        }
    }

    pub(crate) fn end_output(&mut self) {
        self.say_farewell();
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Whether the session has more for us, of which no event of the socket will tell.
    pub(crate) fn has_unread(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| !session.wants_read())
    }
}
