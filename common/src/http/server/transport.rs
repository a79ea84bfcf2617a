//! The bytes of a connection, plain or encrypted.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use rustls::ServerConnection;

use super::poller::Socket;
use super::tls::Tls;

/// How much a session keeps of what its client has not taken.
const SECURE_BYTES_MAX: usize = 16 * 1024;

pub(crate) struct Transport {
    pub(crate) socket: Socket,
    session: Option<Box<ServerConnection>>,
    /// The session has more for us, of which no event will tell.
    pub(crate) has_unread: bool,
    /// A byte has come.
    has_begun: bool,
}

impl Transport {
    pub(crate) fn new(socket: Socket, tls: Option<&Tls>) -> io::Result<Self> {
        let session = match tls {
            Some(tls) => {
                let session = ServerConnection::new(Arc::clone(tls.config()));
                let mut session = Box::new(session.map_err(io::Error::other)?);
                session.set_buffer_limit(Some(SECURE_BYTES_MAX));
                Some(session)
            }
            None => None,
        };
        Ok(Self {
            socket,
            session,
            has_unread: false,
            has_begun: false,
        })
    }

    /// Reads what has arrived; 0 is the end. Who speaks plainly where TLS is spoken is unmasked by
    /// an error, and is spoken to plainly from then on.
    pub(crate) fn recv(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.session.is_some() && !self.has_begun {
            let mut first = [0];
            self.has_begun = self.socket.peek(&mut first)? > 0;
            if first[0].is_ascii_alphabetic() {
                self.session = None;
                return Err(ErrorKind::InvalidData.into());
            }
        }
        let Self {
            socket,
            session,
            has_unread,
            ..
        } = self;
        let Some(session) = session else {
            let read = socket.recv(buffer);
            *has_unread = matches!(read, Ok(bytes) if bytes == buffer.len());
            return read;
        };
        // One piece after another, each understood and taken out before the next: rustls keeps
        // only so much that nobody has read.
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // An end without farewell; requests carry their own lengths.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                read => {
                    *has_unread = matches!(read, Ok(bytes) if bytes > 0);
                    return read;
                }
            }
            *has_unread = false;
            if session.read_tls(&mut Io(socket))? == 0 {
                return Ok(0);
            }
            let understood = session.process_new_packets();
            // The other half of the handshake, or what it failed of.
            flush(session, socket)?;
            understood.map_err(io::Error::other)?;
        }
    }

    /// Sends what the client takes. What this returns may still wait for [`Transport::flush`].
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return self.socket.send(bytes);
        };
        if !flush(session, &self.socket)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let taken = session.writer().write(bytes)?;
        flush(session, &self.socket)?;
        Ok(taken)
    }

    /// Whether the system has taken all that was sent.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        match &mut self.session {
            Some(session) => flush(session, &self.socket),
            None => Ok(true),
        }
    }

    /// Tells the client that this is the end, so that it can tell it from a cut.
    pub(crate) fn say_farewell(&mut self) {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
            let _ = flush(session, &self.socket);
        }
    }

    pub(crate) fn end_output(&mut self) {
        self.say_farewell();
        self.socket.end_output();
    }

    /// Whether closing would interrupt a TLS handshake.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.is_handshaking())
    }
}

/// True if nothing is left that the session has to send.
fn flush(session: &mut ServerConnection, socket: &Socket) -> io::Result<bool> {
    while session.wants_write() {
        match session.write_tls(&mut Io(socket)) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            sent => drop(sent?),
        }
    }
    Ok(true)
}

/// As rustls wants it.
struct Io<'a>(&'a Socket);

impl Read for Io<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }
}

impl Write for Io<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
