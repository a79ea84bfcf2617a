//! What stands between strangers and tiny_http, which a single request can end: it sizes
//! buffers by what a client claims, waits without limit, and reads framing loosely. The edge
//! accepts connections itself, reads whole requests within limits, checks their framing, and
//! puts each before the workers, who answer the client directly. A slow, broken or hostile
//! client costs one small thread and nothing behind it.

mod acceptor;
mod connection;
mod framing;

mod client;
mod wire;

mod feed;

mod attendant;
mod memory;
mod settings;
mod tls;

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown as Half, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

pub(super) use acceptor::Acceptor;
use client::Client;
pub(super) use client::Outlet;
pub(super) use feed::{Call, Feed, Hall, LineTerms, Serve, Taken};
pub(super) use framing::Refusal;
use memory::Memory;
pub(super) use memory::Share;
pub use settings::EdgeLimits;
pub use tls::Tls;
use wire::Wire;

use super::operations::OperationsKey;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How long the threads of connections that were cut at the shutdown may take to notice.
const CUT_LIMIT: Duration = Duration::from_millis(500);

/// What a connection's thread needs of its stack, with room to spare.
const THREAD_STACK_BYTES: usize = 512 * 1024;

/// All that the connections of one listener share.
pub(super) struct Edge {
    pub(super) limits: EdgeLimits,
    tls: Option<Tls>,
    pub(super) operations_key: Option<OperationsKey>,
    pub(super) halls: Vec<Hall>,
    pub(super) metrics: Metrics,
    pub(super) shutdown: Shutdown,
    memory: Memory,
    connections: Mutex<Connections>,
    all_closed: Condvar,
    /// For the attendant: whose client did not take all of its answer.
    left: (Sender<Outlet>, Receiver<Outlet>),
    /// No connection is left, and none will come.
    closed: AtomicBool,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, Arc<Client>>,
    per_client: HashMap<IpAddr, usize>,
}

impl Edge {
    pub(super) fn new(
        limits: EdgeLimits,
        tls: Option<Tls>,
        operations_key: Option<OperationsKey>,
        halls: Vec<Hall>,
        metrics: &Metrics,
        shutdown: &Shutdown,
    ) -> Self {
        Self {
            memory: Memory::new(limits.buffer_bytes),
            limits,
            tls,
            operations_key,
            halls,
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
            connections: Mutex::default(),
            all_closed: Condvar::new(),
            left: crossbeam_channel::unbounded(),
            closed: AtomicBool::new(false),
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        // Nothing that happens under the lock can panic half way.
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in, or gives it back when it is one too many.
    fn admit(self: &Arc<Self>, wire: Wire, address: SocketAddr) -> Result<Admitted, Wire> {
        let mut connections = self.connections();
        let of_client = connections.per_client.get(&address.ip());
        let of_client = of_client.copied().unwrap_or(0);
        if connections.open.len() >= self.limits.connections
            || of_client >= self.limits.connections_per_client
        {
            return Err(wire);
        }
        connections.next += 1;
        let number = connections.next;
        let client = Arc::new(Client::new(self, address, wire));
        connections.open.insert(number, Arc::clone(&client));
        connections.per_client.insert(address.ip(), of_client + 1);
        self.metrics.connections.inc();
        Ok(Admitted { number, client })
    }

    /// Closes connections that wait for a request, waits for the others until `deadline`, and
    /// cuts those that are left.
    fn drain(&self, deadline: Instant) {
        let mut connections = self.connections();
        while !connections.open.is_empty() {
            for client in connections.open.values().filter(|client| client.is_idle()) {
                // What the client has sent already is still read, and answered.
                let _ = client.wire.tcp().shutdown(Half::Read);
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
        for client in connections.open.values() {
            client.wire.cut();
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
    number: u64,
    client: Arc<Client>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let edge = &self.client.edge;
        let mut connections = edge.connections();
        connections.open.remove(&self.number);
        let address = self.client.address.ip();
        if let Some(count) = connections.per_client.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                connections.per_client.remove(&address);
            }
        }
        if connections.open.is_empty() {
            edge.all_closed.notify_all();
        }
        edge.metrics.connections.dec();
    }
}
