//! The system calls of the server: sockets that never block, and one epoll.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags, EventVec};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use socket2::{Domain, SockFilter, SockRef, TcpKeepalive, Type};

use super::table::Token;

/// The tokens of events that belong to no connection.
pub(crate) const LISTENER: Token = Token(u64::MAX);
pub(crate) const END_ALL: Token = Token(u64::MAX - 1);
pub(crate) const WAKE: Token = Token(u64::MAX - 2);

/// How many connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 4096;

/// When the kernel probes a silent connection for a client that is gone.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(10));

/// The event that a socket waits for. The values are those of poll(2) and epoll(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Interest {
    Read = 1,
    Write = 4,
}

/// A connected socket that never blocks.
pub type Socket = TcpStream;

pub(crate) type Listener = TcpListener;

pub(crate) struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let once = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE.0), once)?;
        Ok(Self { epoll, wake })
    }

    /// Waits for one event, which disarms its source. If it took two, the second one would wait for the handler
    /// of the first.
    pub(crate) fn wait(&self) -> io::Result<Token> {
        let mut events = EventVec::with_capacity(1);
        loop {
            match epoll::wait(&self.epoll, &mut events, -1) {
                Err(Errno::INTR) => {}
                waited => waited?,
            }
            if let Some(event) = events.iter().next() {
                return Ok(Token(event.data.u64()));
            }
        }
    }

    /// Every wait returns [`END_ALL`] from now on.
    pub(crate) fn end_all(&self) {
        let end = EventData::new_u64(END_ALL.0);
        let _ = epoll::modify(&self.epoll, &self.wake, end, EventFlags::IN);
        self.wake();
    }

    /// One wait returns [`WAKE`].
    pub(crate) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Waits for one event of this source.
    pub(crate) fn arm(&self, source: &impl AsFd, token: Token, interest: Interest) {
        let flags = EventFlags::from_bits_retain(interest as u32) | EventFlags::ONESHOT;
        let data = EventData::new_u64(token.0);
        let set = match epoll::modify(&self.epoll, source, data, flags) {
            Err(Errno::NOENT) => epoll::add(&self.epoll, source, data, flags),
            set => set,
        };
        // It fails if the kernel has no memory; the deadline then ends the connection.
        debug_assert!(set.is_ok(), "{set:?}");
    }
}

/// Opens a listener. The connections that it accepts inherit its options.
pub(crate) fn bind(
    address: SocketAddr,
    reuse_port: bool,
    send_time: Duration,
) -> io::Result<Listener> {
    let socket = new_socket(address)?;
    // A restart must not wait for the connections of the former process.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_tcp_user_timeout(Some(send_time))?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Makes the kernel drop requests for new connections to this listener. A client repeats its request a second
/// later, and gets to another process that listens on the port. Handshakes that have begun go on.
pub(crate) fn ignore_newcomers(listener: &Listener) -> io::Result<()> {
    // Load the byte of TCP's flags; drop the packet if it has no ACK, which a SYN has not.
    let filter = [
        SockFilter::new(0x30, 0, 0, 13),
        SockFilter::new(0x45, 1, 0, 0x10),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ];
    SockRef::from(listener).attach_filter(&filter)
}

/// Begins to connect; when the socket is writable, its error is the result.
pub fn connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket.into()),
    }
}

fn new_socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking(), None)?;
    // Without it an answer in two segments waits 40 ms for the client's delayed acknowledgement.
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Waits for a socket on this thread; false if it was not ready in time.
#[must_use]
pub fn wait_for(socket: &Socket, interest: Interest, limit: Duration) -> bool {
    let flags = PollFlags::from_bits_retain(interest as u16);
    let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    loop {
        match poll(&mut [PollFd::new(socket, flags)], limit) {
            Err(Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Makes closing the socket reset the connection.
pub(crate) fn reset_on_close(socket: &Socket) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}
