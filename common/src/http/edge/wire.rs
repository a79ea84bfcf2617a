//! The bytes of a connection, plain or encrypted. One thread reads while another may write;
//! nobody waits for a client who takes nothing, unless they ask to.

use std::io::{self, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::ServerConnection;
use socket2::SockRef;

use super::tls::Tls;

/// How much a session keeps of what its client has not taken.
const SECURE_BYTES_MAX: usize = 16 * 1024;

pub(super) struct Wire {
    tcp: TcpStream,
    /// Locked for as long as it works on bytes, never while somebody waits for the client.
    session: Option<Mutex<Box<ServerConnection>>>,
}

impl Wire {
    pub(super) fn new(tcp: TcpStream, tls: Option<&Tls>) -> io::Result<Self> {
        let session = match tls {
            Some(tls) => {
                let session = ServerConnection::new(Arc::clone(tls.config()));
                let mut session = Box::new(session.map_err(io::Error::other)?);
                session.set_buffer_limit(Some(SECURE_BYTES_MAX));
                Some(Mutex::new(session))
            }
            None => None,
        };
        Ok(Self { tcp, session })
    }

    pub(super) fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Reads what has arrived, or waits for it. A plain read is a single system call, which the
    /// socket's own limit ends; one of TLS takes as many as its client likes, and ends at the
    /// deadline.
    pub(super) fn read(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        match &self.session {
            None => (&self.tcp).read(buffer),
            Some(session) => self.read_secure(session, buffer, deadline),
        }
    }

    /// One piece after another, each understood and taken out before the next: rustls keeps only
    /// so much that nobody has read.
    fn read_secure(
        &self,
        session: &Mutex<Box<ServerConnection>>,
        buffer: &mut [u8],
        deadline: Instant,
    ) -> io::Result<usize> {
        loop {
            {
                let mut session = lock(session);
                match session.reader().read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // An end without farewell; requests carry their own lengths.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                    read => return read,
                }
                match session.read_tls(&mut Unwaited(&self.tcp)) {
                    // The end, or something behind a farewell.
                    Ok(0) => return Ok(0),
                    Ok(_) => {
                        let understood = session.process_new_packets();
                        // The other half of the handshake, or what it failed of.
                        self.flush_some(&mut session)?;
                        understood.map_err(io::Error::other)?;
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.wait_for(PollFlags::IN, left)?;
        }
    }

    /// Writes what the client takes without being waited for; 0 is none of it. What this
    /// returns may still wait for [`Wire::is_flushed`].
    pub(super) fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let Some(session) = &self.session else {
            return match send_some(&self.tcp, bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                sent => sent,
            };
        };
        let mut session = lock(session);
        if !self.flush_some(&mut session)? {
            return Ok(0);
        }
        let written = session.writer().write(bytes)?;
        self.flush_some(&mut session)?;
        Ok(written)
    }

    /// Whether the system has taken all that was written.
    pub(super) fn is_flushed(&self) -> io::Result<bool> {
        match &self.session {
            None => Ok(true),
            Some(session) => self.flush_some(&mut lock(session)),
        }
    }

    /// Waits until the client takes more, at most so long.
    pub(super) fn wait_until_writable(&self, limit: Duration) -> io::Result<()> {
        self.wait_for(PollFlags::OUT, limit)
    }

    fn wait_for(&self, what: PollFlags, limit: Duration) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.tcp, what)], milliseconds(limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// To wait for this one among others.
    pub(super) fn until_writable(&self) -> PollFd<'_> {
        PollFd::new(&self.tcp, PollFlags::OUT)
    }

    /// Tells the client that this is the end, so that it can tell it from a cut.
    pub(super) fn close(&self) {
        if let Some(session) = &self.session {
            let mut session = lock(session);
            session.send_close_notify();
            let _ = self.flush_some(&mut session);
        }
        let _ = self.tcp.shutdown(Half::Write);
    }

    /// Whether a TLS handshake is under way.
    pub(super) fn is_handshaking(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| lock(session).is_handshaking())
    }

    /// Has the connection end in a reset as soon as its thread has left it, which this wakes: the
    /// client must not take what it holds for the whole.
    pub(super) fn abort(&self) {
        let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
        let _ = self.tcp.shutdown(Half::Read);
    }

    /// Ends the connection for both directions, whoever waits for it.
    pub(super) fn cut(&self) {
        let _ = self.tcp.shutdown(Half::Both);
    }

    /// True if nothing is left that the session has to send.
    fn flush_some(&self, session: &mut ServerConnection) -> io::Result<bool> {
        while session.wants_write() {
            match session.write_tls(&mut Unwaited(&self.tcp)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(true)
    }
}

fn lock(session: &Mutex<Box<ServerConnection>>) -> MutexGuard<'_, Box<ServerConnection>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For poll(2).
pub(super) fn milliseconds(limit: Duration) -> i32 {
    i32::try_from(limit.as_millis()).unwrap_or(i32::MAX)
}

/// A socket that is never waited for.
struct Unwaited<'a>(&'a TcpStream);

impl Read for Unwaited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0, &mut *buffer, RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                received => return Ok(received?),
            }
        }
    }
}

impl Write for Unwaited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send_some(self.0, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send_some(tcp: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send(tcp, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}
