//! The thread that accepts, and the threads of connections.

use std::io::{self, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::wire::Wire;
use super::{Admitted, Edge, Refusal, THREAD_STACK_BYTES, attendant, connection};
use crate::http::exchange::request_id;
use crate::http::problem::Problem;
use crate::http::response::Terms;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4096;

/// When a silent connection is asked whether its client still exists.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(10));

/// How often the acceptor looks up from its listener.
const ACCEPT_LIMIT: Duration = Duration::from_millis(200);

/// How long the acceptor rests when the system has no descriptor for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How long a thread that has lost its connection waits for the next one.
const THREAD_IDLE: Duration = Duration::from_secs(5);

/// The thread that accepts.
pub(in crate::http) struct Acceptor {
    pub(in crate::http) address: SocketAddr,
    thread: JoinHandle<()>,
    attendant: JoinHandle<()>,
    edge: Arc<Edge>,
}

impl Acceptor {
    /// Listens on `address`; port 0 lets the system choose.
    pub(in crate::http) fn start(
        address: SocketAddr,
        reuse_port: bool,
        edge: Edge,
    ) -> io::Result<Self> {
        let edge = Arc::new(edge);
        let listener = listen(address, reuse_port, edge.limits.send_time)?;
        let address = listener.local_addr()?;
        let attendant = attendant::start(&edge)?;
        let accepting = Arc::clone(&edge);
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self {
            address,
            thread,
            attendant,
            edge,
        })
    }

    /// After the shutdown was requested: no new connections, and an end to the others.
    pub(in crate::http) fn join(self, deadline: Instant) {
        let _ = self.thread.join();
        self.edge.drain(deadline);
        self.edge.closed.store(true, Ordering::Relaxed);
        let _ = self.attendant.join();
    }
}

/// What is set on the listener is inherited by the connections that it accepts.
fn listen(address: SocketAddr, reuse_port: bool, send_time: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    // Without it an answer in two segments waits 40 ms for the client's delayed acknowledgement.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(send_time))?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    // For accept() itself. Connections set their own.
    socket.set_read_timeout(Some(ACCEPT_LIMIT))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, edge: &Arc<Edge>) {
    // Without a buffer: a send succeeds only if a thread waits for it.
    let (idle_threads, work) = crossbeam_channel::bounded(0);
    let mut exhausted = false;
    while !edge.shutdown.is_requested() {
        match listener.accept() {
            Ok((stream, client)) => {
                exhausted = false;
                hand_over(edge, stream, client, &idle_threads, &work);
            }
            Err(error) if is_pause(&error) => {}
            Err(error) => {
                // Out of descriptors or memory: connections wait in the kernel meanwhile.
                if !std::mem::replace(&mut exhausted, true) {
                    log::error!(cause = error.to_string().as_str(); "cannot accept");
                }
                let _ = edge.shutdown.wait_at_most(ACCEPT_PAUSE);
            }
        }
    }
    // Whoever is connected already, but not yet accepted, is served too.
    if listener.set_nonblocking(true).is_ok() {
        while let Ok((stream, client)) = listener.accept() {
            let _ = stream.set_nonblocking(false);
            hand_over(edge, stream, client, &idle_threads, &work);
        }
    }
}

/// The listener's own time ran out, or a client left before it was accepted.
fn is_pause(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut, WouldBlock};
    matches!(
        error.kind(),
        WouldBlock | TimedOut | Interrupted | ConnectionAborted | ConnectionReset
    )
}

/// To a thread that waits for work, else to a new one.
fn hand_over(
    edge: &Arc<Edge>,
    tcp: TcpStream,
    address: SocketAddr,
    idle_threads: &Sender<Admitted>,
    work: &Receiver<Admitted>,
) {
    // A listener for IPv6 sees IPv4 clients in a form of its own.
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let wire = match Wire::new(tcp, edge.tls.as_ref()) {
        Ok(wire) => wire,
        Err(error) => {
            log::error!(cause = error.to_string().as_str(); "cannot begin a TLS session");
            return;
        }
    };
    let admitted = match edge.admit(wire, address) {
        Ok(admitted) => admitted,
        Err(wire) => return turn_away(edge, wire.tcp()),
    };
    let Err(refused) = idle_threads.try_send(admitted) else {
        return;
    };
    let admitted = refused.into_inner();
    let client = Arc::clone(&admitted.client);
    let work = work.clone();
    let spawned = thread::Builder::new()
        .name("connection".to_owned())
        .stack_size(THREAD_STACK_BYTES)
        .spawn(move || serve_connections(admitted, &work));
    if let Err(error) = spawned {
        log::error!(cause = error.to_string().as_str(); "cannot start a thread");
        turn_away(edge, client.wire.tcp());
    }
}

fn serve_connections(first: Admitted, work: &Receiver<Admitted>) {
    let mut admitted = first;
    loop {
        connection::serve(&admitted.client);
        drop(admitted);
        match work.recv_timeout(THREAD_IDLE) {
            Ok(next) => admitted = next,
            Err(_) => return,
        }
    }
}

/// Without reading a byte, and without waiting for anything.
fn turn_away(edge: &Edge, mut stream: &TcpStream) {
    edge.metrics.refused_connections.inc();
    let _ = SockRef::from(stream).set_nonblocking(true);
    let problem = Problem::refused(Refusal::new(
        503,
        "there are too many connections; try again",
    ));
    let mut answer = Vec::new();
    let terms = Terms {
        http_10: false,
        close: true,
        https: edge.tls.is_some(),
    };
    let request_id = request_id(None);
    problem
        .into_response(&request_id)
        .with_header("x-request-id", request_id)
        .with_header("connection", "close")
        .write_to(&mut answer, false, terms);
    let _ = stream.write_all(&answer);
    let _ = stream.shutdown(Half::Write);
}
