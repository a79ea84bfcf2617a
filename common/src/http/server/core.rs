//! What workers, sweeper and whoever answers share: the connections, and what can be done with one
//! by whoever owns it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::budget::{Budget, Reservation};
use super::poller::{Interest, Listener, Poller, Socket};
use super::table::{Owned, Parked, Table};
use super::tls::Tls;
use super::transport::Transport;
use crate::http::connection::{Connection, Next};
use crate::http::limits::Limits;
use crate::http::message::response::HandlerResult;
use crate::http::service::router::Router;
use crate::http::service::workers::Workers;
use crate::http::sync::atomic::{AtomicBool, Ordering};
use crate::http::sync::{Mutex, lock, now};
use crate::metrics::Metrics;

/// A client's connection.
pub(crate) struct Peer {
    pub(crate) transport: Transport,
    /// Whether the poller knows the socket.
    registered: bool,
    pub(crate) connection: Connection,
    /// The answer to the request whose body is passed over.
    pub(crate) decided: Option<HandlerResult<'static>>,
    pub(crate) reservation: Reservation,
    metrics: Metrics,
}

impl Peer {
    pub(crate) fn new(
        transport: Transport,
        connection: Connection,
        reservation: Reservation,
        metrics: &Metrics,
    ) -> Self {
        metrics.connections.inc();
        Self {
            transport,
            registered: false,
            connection,
            decided: None,
            reservation,
            metrics: metrics.clone(),
        }
    }

    /// Whether closing it loses nothing.
    pub(crate) fn may_be_closed(&self, now: Instant) -> bool {
        self.connection.may_be_closed(now) && !self.transport.is_handshaking()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

/// A socket of the program's own that is waited for without a thread.
pub struct Watched {
    /// The socket.
    pub socket: Socket,
    registered: bool,
}

impl Watched {
    /// A socket that was not waited for before.
    #[must_use]
    pub fn new(socket: Socket) -> Self {
        Self {
            socket,
            registered: false,
        }
    }
}

/// Goes on when the socket is ready, or, shut down, when the deadline has passed.
pub(crate) type Then = Box<dyn FnOnce(Watched) + Send>;

pub(crate) struct Watch {
    pub(crate) watched: Watched,
    pub(crate) deadline: Instant,
    pub(crate) then: Then,
}

pub(crate) struct Core {
    pub(crate) router: Router,
    pub(crate) metrics: Metrics,
    pub(crate) limits: Arc<Limits>,
    pub(crate) tls: Option<Tls>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) poller: Poller,
    pub(crate) listener: Mutex<Option<Arc<Listener>>>,
    pub(crate) table: Table<Peer>,
    pub(crate) watches: Table<Watch>,
    pub(crate) draining: AtomicBool,
    /// Whoever has not taken their answer by now keeps nobody any longer.
    pub(crate) cut: AtomicBool,
    /// There were no descriptors: the sweeper tries again.
    pub(crate) accept_paused: AtomicBool,
}

impl Core {
    /// `spare` workers that do not wait are started by `start`, and more as they are needed.
    pub(crate) fn new(
        router: Router,
        limits: &Limits,
        tls: Option<Tls>,
        metrics: &Metrics,
        (poller, listener): (Poller, Listener),
        (spare, start): (usize, fn(Arc<Core>) -> bool),
    ) -> Arc<Self> {
        let slots = router.slots();
        poller.arm_listener(&listener, true);
        Arc::new_cyclic(|core: &Weak<Self>| {
            let (starting, calling) = (Weak::clone(core), Weak::clone(core));
            let start = move || starting.upgrade().is_some_and(start);
            let call = move || calling.upgrade().iter().for_each(|core| core.poller.call());
            Self {
                router,
                metrics: metrics.clone(),
                limits: Arc::new(limits.clone()),
                tls,
                budget: Budget::new(limits),
                workers: Arc::new(Workers::new(spare, start, call)),
                poller,
                listener: Mutex::new(Some(Arc::new(listener))),
                table: Table::new(limits.connections),
                watches: Table::new(slots),
                draining: AtomicBool::new(false),
                cut: AtomicBool::new(false),
                accept_paused: AtomicBool::new(false),
            }
        })
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// After an answer: does what needs no more than the socket. A next request is left to a
    /// worker, which gets an event at once: no handler runs on the thread that answers.
    pub(crate) fn settle(&self, mut peer: Owned<'_, Peer>) {
        loop {
            if peer.connection.has_input() {
                return self.arm(peer, Interest::Write);
            }
            match self.step(peer) {
                Some((same, None)) => peer = same,
                Some((same, Some(_))) => {
                    let unread = same.transport.has_unread;
                    return self.arm(
                        same,
                        if unread {
                            Interest::Write
                        } else {
                            Interest::Read
                        },
                    );
                }
                None => return,
            }
        }
    }

    /// One step of the owner of a connection. What needs no more than the socket is done, and what
    /// does need more is returned. None where the connection is in other hands, or closed.
    pub(crate) fn step<'t>(
        &self,
        mut peer: Owned<'t, Peer>,
    ) -> Option<(Owned<'t, Peer>, Option<Next>)> {
        match peer.transport.flush() {
            Ok(true) => {}
            Ok(false) => {
                self.arm(peer, Interest::Write);
                return None;
            }
            Err(_) => peer.connection.truncate(),
        }
        match peer.connection.next(now()) {
            Next::Write => {
                let Peer {
                    transport,
                    connection,
                    ..
                } = &mut *peer;
                match transport.send(connection.to_send()) {
                    Ok(bytes) => connection.on_sent(bytes, now()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.arm(peer, Interest::Write);
                        return None;
                    }
                    Err(_) => connection.truncate(),
                }
            }
            Next::EndOutput => peer.transport.end_output(),
            Next::Answer => {
                peer.park(Parked::Waiting, |_| {});
                return None;
            }
            Next::Close => {
                peer.transport.say_farewell();
                return None;
            }
            Next::Reset => {
                peer.transport.socket.reset_on_close();
                return None;
            }
            next => return Some((peer, Some(next))),
        }
        Some((peer, None))
    }

    pub(crate) fn arm(&self, mut peer: Owned<'_, Peer>, interest: Interest) {
        let held = peer
            .connection
            .held_input()
            .max(peer.connection.to_send().len());
        peer.reservation.shrink(held);
        let first = !std::mem::replace(&mut peer.registered, true);
        let token = peer.token();
        peer.park(Parked::Armed, |peer| {
            self.poller
                .arm(&peer.transport.socket, token, interest, first);
        });
    }

    /// Waits for the socket without a thread; a worker goes on.
    pub(crate) fn watch(
        &self,
        mut watched: Watched,
        interest: Interest,
        deadline: Instant,
        then: Then,
    ) -> io::Result<()> {
        let place = self.watches.insert().ok_or(ErrorKind::OutOfMemory)?;
        let first = !std::mem::replace(&mut watched.registered, true);
        let watch = place.fill(Watch {
            watched,
            deadline,
            then,
        });
        let token = watch.token();
        watch.park(Parked::Armed, |watch| {
            self.poller
                .arm_watch(&watch.watched.socket, token, interest, first);
        });
        Ok(())
    }

    pub(crate) fn arm_listener(&self) {
        if let Some(listener) = &*lock(&self.listener) {
            self.poller.arm_listener(listener, false);
        }
    }
}

thread_local! {
    /// The second that the date was written for, and the date.
    static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// The value of `Date`, written once a second.
pub(crate) fn with_date<T>(take: impl FnOnce(&str) -> T) -> T {
    DATE.with_borrow_mut(|(written, date)| {
        let second = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        if *written != second || date.is_empty() {
            *written = second;
            date.clear();
            let time = UNIX_EPOCH + Duration::from_secs(second);
            let _ = write!(date, "{}", httpdate::HttpDate::from(time));
        }
        take(date)
    })
}
