//! The sockets to the services behind, as ureq uses them. Its own looks whether a connection is
//! still open with three system calls, twice for each request, and sets the time that is left
//! before each read and write: eight calls beside the four that move bytes. Here it is two.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use http::Uri;
use rustix::net::{RecvFlags, recv};
use ureq::config::Config;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

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
        Ok(amount > 0)
    }

    /// Nothing to read, not even the end: what comes unasked belongs to no request.
    fn is_open(&mut self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        recv(&self.stream, &mut [0], flags) == Err(rustix::io::Errno::AGAIN)
    }
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
