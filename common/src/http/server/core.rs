//! What workers, the sweeper and threads that answer share: the connections, and the operations on a connection
//! that its owner may call.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::budget::Budget;
use super::evictable::Evictable;
use super::peer::Peer;
use super::poller::{Interest, LISTENER, Listener, Poller, Socket, reset_on_close};
use super::table::{Owned, PEERS, Parked, Table, WATCHES};
use super::tls::Tls;
use crate::http::connection::Next;
use crate::http::limits::Limits;
use crate::http::service::router::Router;
use crate::http::service::workers::Workers;
use crate::http::sync::atomic::AtomicBool;
use crate::http::sync::{Mutex, lock, now};
use crate::metrics::Metrics;

/// A socket of a handler that waits for an event.
pub(crate) struct SocketWatch {
    pub(crate) socket: Socket,
    pub(crate) deadline: Instant,
    /// Is called when the socket is ready, or when the deadline has passed and the socket is shut down.
    pub(crate) then: Box<dyn FnOnce(Socket) + Send>,
}

pub(crate) struct Core {
    pub(crate) router: Router,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Arc<Limits>,
    pub(crate) tls: Option<Tls>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) poller: Poller,
    /// None from the beginning of the drain.
    pub(crate) listener: Mutex<Option<Listener>>,
    pub(crate) table: Table<Peer>,
    pub(crate) evictable: Evictable,
    pub(crate) watches: Table<SocketWatch>,
    pub(crate) draining: AtomicBool,
    /// Whether the drain is at its limit, and no worker may wait for a client any longer.
    pub(crate) cut: AtomicBool,
    /// Whether the last accept failed, so that a failure that lasts is logged once.
    pub(crate) accept_paused: AtomicBool,
}

impl Core {
    /// `start` starts a worker; there are `spare` workers, and one more for each that waits.
    pub(crate) fn new(
        router: Router,
        limits: &Limits,
        tls: Option<Tls>,
        metrics: &Metrics,
        listener: Listener,
        (spare, start): (usize, fn(Arc<Core>) -> bool),
    ) -> io::Result<Arc<Self>> {
        let slots = router.slots();
        let poller = Poller::new()?;
        poller.arm(&listener, LISTENER, Interest::Read);
        Ok(Arc::new_cyclic(|core: &Weak<Self>| {
            let (starting, waking) = (Weak::clone(core), Weak::clone(core));
            let start = move || starting.upgrade().is_some_and(start);
            let wake = move || waking.upgrade().iter().for_each(|core| core.poller.wake());
            Self {
                router,
                metrics: metrics.clone(),
                limits: Arc::new(limits.clone()),
                tls,
                budget: Budget::new(limits, metrics),
                workers: Arc::new(Workers::new(spare, start, wake)),
                poller,
                listener: Mutex::new(Some(listener)),
                table: Table::new(PEERS, limits.connections),
                evictable: Evictable::default(),
                watches: Table::new(WATCHES, slots),
                draining: AtomicBool::new(false),
                cut: AtomicBool::new(false),
                accept_paused: AtomicBool::new(false),
            }
        }))
    }

    /// Goes on with a connection after an answer, on any thread. The next request is left to a worker, which
    /// gets an event at once, so no handler runs on the thread that answers.
    pub(crate) fn go_on(&self, mut peer: Owned<'_, Peer>) {
        let blocked = matches!(peer.send(), Ok(false));
        if blocked || peer.connection.has_input() {
            self.arm(peer, Interest::Write);
        } else if let Some((peer, _)) = self.advance(peer) {
            self.arm(peer, Interest::Read);
        }
    }

    /// Goes on with a connection as far as its socket allows, and returns what is next for a worker. None if
    /// the connection was parked or closed.
    pub(crate) fn advance<'t>(&self, mut peer: Owned<'t, Peer>) -> Option<(Owned<'t, Peer>, Next)> {
        loop {
            match peer.send() {
                Ok(true) => {}
                Ok(false) => {
                    self.arm(peer, Interest::Write);
                    return None;
                }
                Err(_) => peer.connection.truncate(),
            }
            match peer.connection.next(now()) {
                Next::Write => {}
                Next::EndOutput => peer.transport.end_output(),
                Next::Answer => {
                    peer.park(Parked::Waiting, |_| {});
                    return None;
                }
                Next::Close => {
                    peer.transport.send_close_notify();
                    return None;
                }
                Next::Reset => {
                    reset_on_close(&peer.transport.socket);
                    return None;
                }
                next => return Some((peer, next)),
            }
        }
    }

    /// Parks a connection until the next event of its socket.
    pub(crate) fn arm(&self, mut peer: Owned<'_, Peer>, mut interest: Interest) {
        if peer.transport.has_unread() {
            interest = Interest::Write;
        }
        // The memory of what has been sent or read is given back; a reservation that cannot grow stays as it is.
        let _ = peer.reserve();
        let token = peer.token();
        peer.park(Parked::Armed, |peer| {
            self.poller.arm(&peer.transport.socket, token, interest);
        });
    }

    pub(crate) fn arm_listener(&self) {
        if let Some(listener) = &*lock(&self.listener) {
            self.poller.arm(listener, LISTENER, Interest::Read);
        }
    }
}
