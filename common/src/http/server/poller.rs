//! The operating system, as the server uses it: sockets that never block, and one epoll.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags, EventVec};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, SockFilter, SockRef, TcpKeepalive, Type};

use super::table::Token;

const LISTENER: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;
const CALL: u64 = u64::MAX - 2;
/// Marks the tokens of watched sockets; no index is so large.
const WATCH: u64 = 1 << 31;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4096;

/// When a silent connection is asked whether its client still exists.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(10));

/// What a socket is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Interest {
    Read,
    Write,
}

pub(crate) enum Event {
    Wake,
    Call,
    Listener,
    Peer(Token),
    Watch(Token),
}

/// Room for one event. More at once would leave the second to wait for the first one's handler.
pub(crate) struct Room(EventVec);

impl Room {
    pub(crate) fn new() -> Self {
        Self(EventVec::with_capacity(1))
    }
}

pub(crate) struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
    call: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(
            &epoll,
            &call,
            EventData::new_u64(CALL),
            EventFlags::IN | EventFlags::ONESHOT,
        )?;
        Ok(Self { epoll, wake, call })
    }

    /// Waits for one event; whatever it belongs to is disarmed.
    pub(crate) fn wait(&self, room: &mut Room) -> io::Result<Event> {
        loop {
            match epoll::wait(&self.epoll, &mut room.0, -1) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let event = room.0.iter().next().map(|event| event.data.u64());
            return Ok(match event {
                None => continue,
                Some(WAKE) => Event::Wake,
                Some(CALL) => {
                    let _ = rustix::io::read(&self.call, &mut [0; 8]);
                    self.set(&self.call, CALL, Interest::Read, false);
                    Event::Call
                }
                Some(LISTENER) => Event::Listener,
                Some(bits) if bits & WATCH != 0 => Event::Watch(Token(bits & !WATCH)),
                Some(bits) => Event::Peer(Token(bits)),
            });
        }
    }

    /// Every wait returns from now on.
    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// One wait returns.
    pub(crate) fn call(&self) {
        let _ = rustix::io::write(&self.call, &1_u64.to_ne_bytes());
    }

    pub(crate) fn arm_listener(&self, listener: &Listener, first: bool) {
        self.set(&listener.0, LISTENER, Interest::Read, first);
    }

    pub(crate) fn arm(&self, socket: &Socket, token: Token, interest: Interest, first: bool) {
        self.set(&socket.0, token.0, interest, first);
    }

    pub(crate) fn arm_watch(&self, socket: &Socket, token: Token, interest: Interest, first: bool) {
        self.set(&socket.0, token.0 | WATCH, interest, first);
    }

    fn set(&self, source: &impl AsFd, data: u64, interest: Interest, first: bool) {
        let flags = match interest {
            Interest::Read => EventFlags::IN,
            Interest::Write => EventFlags::OUT,
        };
        let (data, flags) = (EventData::new_u64(data), flags | EventFlags::ONESHOT);
        let set = if first {
            epoll::add(&self.epoll, source, data, flags)
        } else {
            epoll::modify(&self.epoll, source, data, flags)
        };
        // It fails where memory is short; the deadline then ends the connection.
        debug_assert!(set.is_ok(), "{set:?}");
    }
}

pub(crate) struct Listener(TcpListener);

impl Listener {
    /// What is set on the listener is inherited by the connections that it accepts.
    pub(crate) fn bind(
        address: SocketAddr,
        reuse_port: bool,
        send_time: Duration,
    ) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // A restart must not wait for the connections of the process before it.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        // Without it an answer in two segments waits 40 ms for the client's delayed acknowledgement.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_user_timeout(Some(send_time))?;
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self(socket.into()))
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Takes no new connection any more: who asks for one asks again a second later, and another
    /// process that listens here has it. Handshakes that have begun go on.
    pub(crate) fn ignore_newcomers(&self) -> io::Result<()> {
        // Load the byte of TCP's flags; where there is no ACK, which a SYN has not, drop the packet.
        let filter = [
            SockFilter::new(0x30, 0, 0, 13),
            SockFilter::new(0x45, 1, 0, 0x10),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        SockRef::from(&self.0).attach_filter(&filter)
    }

    pub(crate) fn accept(&self) -> io::Result<(Socket, IpAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, address) = acceptfrom_with(&self.0, flags)?;
        let client = match address {
            Some(SocketAddrAny::V4(address)) => IpAddr::V4(*address.ip()),
            // A listener for IPv6 sees IPv4 clients in a form of its own.
            Some(SocketAddrAny::V6(address)) => address.ip().to_canonical(),
            _ => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        Ok((Socket(TcpStream::from(socket)), client))
    }
}

/// A connected socket that never blocks.
#[derive(Debug)]
pub struct Socket(TcpStream);

impl Socket {
    /// Begins to connect: once the socket can be written to, [`Socket::error`] tells what came
    /// of it.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                Err(error)
            }
            _ => Ok(Self(socket.into())),
        }
    }

    /// What has gone wrong meanwhile.
    pub fn error(&self) -> io::Result<()> {
        self.0.take_error()?.map_or(Ok(()), Err)
    }

    /// Reads what has arrived; 0 is the end.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.0).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// Looks at what has arrived, and leaves it there.
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.peek(buffer)
    }

    /// Sends what the peer has room for.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.0).write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return sent,
            }
        }
    }

    /// Waits on this thread; false where the socket was not ready in time.
    #[must_use]
    pub fn wait(&self, interest: Interest, limit: Duration) -> bool {
        let flags = match interest {
            Interest::Read => PollFlags::IN,
            Interest::Write => PollFlags::OUT,
        };
        let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        loop {
            match poll(&mut [PollFd::new(&self.0, flags)], limit) {
                Err(Errno::INTR) => {}
                ready => return ready.is_ok_and(|ready| ready > 0),
            }
        }
    }

    pub(crate) fn end_output(&self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// Ends both directions, whoever waits for the socket.
    pub(crate) fn shut_down(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Has closing the socket reset the connection.
    pub(crate) fn reset_on_close(&self) {
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }
}
