//! What stands between strangers and tiny_http, which a single request can end: it sizes
//! buffers by what a client claims, waits without limit, and reads framing loosely. The edge
//! accepts connections itself, reads whole requests within limits, checks their framing, and
//! hands each over a lane to a worker. A slow, broken or hostile client costs one small thread
//! and nothing behind it.

mod connection;
mod framing;
mod lanes;
mod settings;
mod tls;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown as Half, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

pub(super) use framing::Refusal;
pub(super) use lanes::{EDGE_HEADER, LaneHandles, Lanes, NoLane, PROOF_TARGET};
pub use settings::EdgeLimits;
pub use tls::Tls;

use super::exchange::request_id;
use super::problem::Problem;
use super::request::LaneFlags;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

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

/// How long the threads of connections that were cut at the shutdown may take to notice.
const CUT_LIMIT: Duration = Duration::from_millis(500);

/// How long a thread that has lost its connection waits for the next one.
const THREAD_IDLE: Duration = Duration::from_secs(5);

/// What a connection's thread needs of its stack, with room to spare.
const THREAD_STACK_BYTES: usize = 256 * 1024;

/// Where requests of one kind are worked on.
pub(super) struct HallLanes {
    /// Paths that are this one or below it belong here; empty takes the rest.
    pub(super) prefix: &'static str,
    pub(super) lanes: Lanes,
}

/// All that the connections of one listener share.
pub(super) struct Edge {
    pub(super) limits: EdgeLimits,
    tls: Option<Tls>,
    pub(super) halls: Vec<HallLanes>,
    pub(super) metrics: Metrics,
    pub(super) shutdown: Shutdown,
    connections: Mutex<Connections>,
    all_closed: Condvar,
    /// Bytes of requests in memory, beyond a small allowance for each connection.
    buffered: AtomicUsize,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, Arc<Open>>,
    per_client: HashMap<IpAddr, usize>,
}

/// A connection as the shutdown sees it.
struct Open {
    stream: TcpStream,
    client: SocketAddr,
    /// Waiting for a request: it may be closed.
    idle: AtomicBool,
}

impl Edge {
    pub(super) fn new(
        limits: EdgeLimits,
        tls: Option<Tls>,
        halls: Vec<HallLanes>,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Self {
        Self {
            limits,
            tls,
            halls,
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            connections: Mutex::default(),
            all_closed: Condvar::new(),
            buffered: AtomicUsize::new(0),
        }
    }

    fn hall(&self, path: &str) -> Option<&HallLanes> {
        self.halls.iter().find(|hall| {
            path.strip_prefix(hall.prefix).is_some_and(|rest| {
                hall.prefix.is_empty() || rest.is_empty() || rest.starts_with('/')
            })
        })
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        // Nothing that happens under the lock can panic half way.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in; None when it is one too many.
    fn admit(
        self: &Arc<Self>,
        stream: TcpStream,
        client: SocketAddr,
    ) -> Result<Admitted, TcpStream> {
        let mut connections = self.connections();
        let of_client = connections
            .per_client
            .get(&client.ip())
            .copied()
            .unwrap_or(0);
        if connections.open.len() >= self.limits.connections
            || of_client >= self.limits.connections_per_client
        {
            return Err(stream);
        }
        connections.next += 1;
        let number = connections.next;
        let open = Arc::new(Open {
            stream,
            client,
            idle: AtomicBool::new(true),
        });
        connections.open.insert(number, Arc::clone(&open));
        connections.per_client.insert(client.ip(), of_client + 1);
        self.metrics.connections.inc();
        Ok(Admitted {
            edge: Arc::clone(self),
            number,
            open,
        })
    }

    /// Closes connections that wait for a request, waits for the others until `deadline`, and
    /// cuts those that are left.
    fn drain(&self, deadline: Instant) {
        let mut connections = self.connections();
        while !connections.open.is_empty() {
            for open in connections.open.values() {
                if open.idle.load(Ordering::Relaxed) {
                    // What its client has sent already is still read, and answered.
                    let _ = open.stream.shutdown(Half::Read);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Looked at again now and then: one may just have become idle.
            let pause = left.min(Duration::from_millis(50));
            let waited = self.all_closed.wait_timeout(connections, pause);
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        // Whoever has not taken their answer by now keeps nobody any longer.
        for open in connections.open.values() {
            let _ = open.stream.shutdown(Half::Both);
        }
        let closed = self
            .all_closed
            .wait_timeout_while(connections, CUT_LIMIT, |connections| {
                !connections.open.is_empty()
            });
        drop(closed);
    }
}

/// A connection that was let in; dropping it makes room for another.
struct Admitted {
    edge: Arc<Edge>,
    number: u64,
    open: Arc<Open>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut connections = self.edge.connections();
        connections.open.remove(&self.number);
        let client = self.open.client.ip();
        if let Some(count) = connections.per_client.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                connections.per_client.remove(&client);
            }
        }
        if connections.open.is_empty() {
            self.edge.all_closed.notify_all();
        }
        self.edge.metrics.connections.dec();
    }
}

/// The thread that accepts.
pub(super) struct Acceptor {
    pub(super) address: SocketAddr,
    thread: JoinHandle<()>,
    edge: Arc<Edge>,
}

impl Acceptor {
    /// Listens on `address`; port 0 lets the system choose.
    pub(super) fn start(address: SocketAddr, reuse_port: bool, edge: Edge) -> io::Result<Self> {
        let listener = listen(address, reuse_port, edge.limits.send_time)?;
        let address = listener.local_addr()?;
        let edge = Arc::new(edge);
        let accepting = Arc::clone(&edge);
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || accept(&listener, &accepting))?;
        Ok(Self {
            address,
            thread,
            edge,
        })
    }

    /// After the shutdown was requested: no new connections, and an end to the others.
    pub(super) fn join(self, deadline: Instant) -> Arc<Edge> {
        let _ = self.thread.join();
        self.edge.drain(deadline);
        self.edge
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
    socket.set_write_timeout(Some(send_time))?;
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
    stream: TcpStream,
    client: SocketAddr,
    idle_threads: &Sender<Admitted>,
    work: &Receiver<Admitted>,
) {
    // A listener for IPv6 sees IPv4 clients in a form of its own.
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let admitted = match edge.admit(stream, client) {
        Ok(admitted) => admitted,
        Err(stream) => return turn_away(edge, &stream),
    };
    let Err(refused) = idle_threads.try_send(admitted) else {
        return;
    };
    let admitted = refused.into_inner();
    let work = work.clone();
    let stream = admitted.open.stream.try_clone();
    let spawned = thread::Builder::new()
        .name("connection".to_owned())
        .stack_size(THREAD_STACK_BYTES)
        .spawn(move || serve_connections(admitted, &work));
    if let (Err(error), Ok(stream)) = (spawned, stream) {
        log::error!(cause = error.to_string().as_str(); "cannot start a thread");
        turn_away(edge, &stream);
    }
}

fn serve_connections(first: Admitted, work: &Receiver<Admitted>) {
    let mut admitted = first;
    loop {
        connection::serve(&admitted.edge, &admitted.open);
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
    let flags = LaneFlags {
        http_10: false,
        close: true,
        secure: false,
    };
    let request_id = request_id(None);
    problem
        .into_response(&request_id)
        .with_header("x-request-id", request_id)
        .with_header("connection", "close")
        .write_to(&mut answer, false, flags);
    let _ = stream.write_all(&answer);
    let _ = stream.shutdown(Half::Write);
}
