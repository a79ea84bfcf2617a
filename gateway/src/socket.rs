//! The sockets to the services behind, as ureq uses them. Its own looks whether a connection is
//! still open with three system calls, twice for each request, and sets the time that is left
//! before each read and write: eight calls beside the four that move bytes. Here it is two.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use http::Uri;
use rustix::net::{RecvFlags, recv};
use rustix::time::{ClockId, clock_gettime};
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

/// A connection that was idle for longer is not used again.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Times are rounded up to whole steps, so that what is left of a limit is mostly the time that
/// the socket has already.
const STEP: Duration = Duration::from_millis(100);

/// Takes the address that a URI names: ours name no others.
#[derive(Debug)]
pub(crate) struct Addresses;

impl Resolver for Addresses {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let authority = uri.authority().ok_or(Error::HostNotFound)?;
        let address: SocketAddr = authority
            .as_str()
            .parse()
            .map_err(|_| Error::HostNotFound)?;
        let mut addresses = self.empty();
        addresses.push(address);
        Ok(addresses)
    }
}

/// Connects to them.
#[derive(Debug)]
pub(crate) struct Sockets;

impl Connector for Sockets {
    type Out = Socket;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Socket>, Error> {
        let address = details.addrs.iter().next().ok_or(Error::HostNotFound)?;
        let connected = match details.timeout.not_zero() {
            Some(limit) => TcpStream::connect_timeout(address, *limit),
            None => TcpStream::connect(address),
        };
        let stream = connected.map_err(|error| in_time(error, Timeout::Connect))?;
        stream.set_nodelay(true)?;
        let config = details.config;
        Ok(Some(Socket {
            stream,
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            read_limit: None,
            write_limit: None,
            last_read: since_boot(),
        }))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// What the stream was told.
    read_limit: Option<Duration>,
    write_limit: Option<Duration>,
    /// When something was read last, as time since the boot.
    last_read: Duration,
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let limit = in_steps(timeout);
        if limit != self.write_limit {
            self.stream.set_write_timeout(limit)?;
            self.write_limit = limit;
        }
        let output = &self.buffers.output()[..amount];
        let written = self.stream.write_all(output);
        written.map_err(|error| in_time(error, timeout.reason))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let limit = in_steps(timeout);
        if limit != self.read_limit {
            self.stream.set_read_timeout(limit)?;
            self.read_limit = limit;
        }
        let input = self.buffers.input_append_buf();
        let read = loop {
            match self.stream.read(input) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let amount = read.map_err(|error| in_time(error, timeout.reason))?;
        self.buffers.input_appended(amount);
        self.last_read = since_boot();
        Ok(amount > 0)
    }

    /// Nothing to read, not even the end: what comes unasked belongs to no request. And not idle
    /// for too long, by a clock that runs while the machine is suspended, as ureq's does not: of a
    /// peer that gave the connection up meanwhile nothing need have arrived.
    fn is_open(&mut self) -> bool {
        if since_boot().saturating_sub(self.last_read) > IDLE_LIMIT {
            return false;
        }
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(&self.stream, &mut [0], flags) == Err(rustix::io::Errno::AGAIN)
    }
}

/// The time since the machine was booted, suspensions included.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}

fn in_steps(timeout: NextTimeout) -> Option<Duration> {
    let left = timeout.not_zero()?;
    let steps = left.as_nanos().div_ceil(STEP.as_nanos());
    Some(STEP.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX)))
}

/// A socket that did not get ready in its time says that it would block.
fn in_time(error: io::Error, reason: Timeout) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Error::Timeout(reason),
        _ => Error::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A socket that was idle for so long, and its peer.
    fn idle_for(idle: Duration) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let stream = TcpStream::connect(address).expect("a listener");
        let (peer, _) = listener.accept().expect("a connection");
        let socket = Socket {
            stream,
            buffers: LazyBuffers::new(1024, 1024),
            read_limit: None,
            write_limit: None,
            last_read: since_boot().saturating_sub(idle),
        };
        (socket, peer)
    }

    #[test]
    fn a_connection_is_open_until_its_end_has_come_or_it_was_idle_for_too_long() {
        let (mut fresh, peer) = idle_for(Duration::ZERO);
        let (mut stale, _peer) = idle_for(IDLE_LIMIT + Duration::from_secs(1));

        assert!(fresh.is_open());
        assert!(!stale.is_open());
        drop(peer);
        // The end arrives without anybody's doing.
        while fresh.is_open() {
            std::thread::yield_now();
        }
    }
}
