//! A worker takes one event after another, and does what is to be done about it.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::answer::Responder;
use super::budget::Use;
use super::core::{Core, Peer, with_date};
use super::poller::{Event, Interest, Room, Socket};
use super::table::{Owned, Parked, Place};
use super::transport::Transport;
use super::watch;
use crate::http::connection::{Connection, Next};
use crate::http::message::problem::Problem;
use crate::http::message::request::Request;
use crate::http::message::request_id::request_id;
use crate::http::message::response::{Body, Response};
use crate::http::sync::atomic::Ordering;
use crate::http::sync::{lock, now};

const READ_BYTES: usize = 32 * 1024;

/// How many connections one event of the listener may bring.
const ACCEPTS: usize = 8;

/// So many places are for clients of this machine.
const OPERATORS: usize = 8;

/// How many idle connections make room at once where there are too many.
const EVICTED: usize = 32;

/// A worker's life.
pub(crate) fn work(core: &Arc<Core>) {
    watch::enter(core);
    let (mut room, mut buffer) = (Room::new(), vec![0; READ_BYTES]);
    loop {
        let event = match core.poller.wait(&mut room) {
            Ok(Event::Wake) => return,
            Ok(event) => event,
            Err(error) => {
                log::error!(cause = error.to_string().as_str(); "cannot wait for events");
                return;
            }
        };
        if catch_unwind(AssertUnwindSafe(|| take(core, &event, &mut buffer))).is_err() {
            // A slot may have been given back by nobody who works on what waits for it.
            core.router.work();
            core.arm_listener_unless_paused();
        }
    }
}

fn take(core: &Arc<Core>, event: &Event, buffer: &mut [u8]) {
    match *event {
        // Gone, or not armed, where the event is older than what became of it.
        Event::Peer(token) => {
            if let Some(peer) = core.table.take(token, Parked::Armed) {
                drive(core, peer, buffer);
            }
        }
        Event::Watch(token) => {
            if let Some(watch) = core.watches.take(token, Parked::Armed)
                && let Some(watch) = watch.remove()
            {
                (watch.then)(watch.watched);
                // Where that was the end of an exchange, its slot is free.
                core.router.work();
            }
        }
        Event::Listener => {
            let last = accept(core, ACCEPTS);
            core.arm_listener_unless_paused();
            if let Some(last) = last {
                // Its request is mostly there already.
                drive(core, last, buffer);
            }
        }
        Event::Call => core.router.work(),
        Event::Wake => {}
    }
}

/// Goes on with a connection, and leaves it in another's hands.
fn drive(core: &Arc<Core>, mut peer: Owned<'_, Peer>, buffer: &mut [u8]) {
    let mut may_read = true;
    loop {
        let Some((same, next)) = core.step(peer) else {
            return;
        };
        peer = same;
        match next {
            None => {}
            Some(Next::Read) if may_read => {
                let read = peer.transport.recv(buffer);
                may_read = peer.transport.has_unread;
                match read {
                    Ok(0) => peer.connection.on_end(),
                    Ok(bytes) => peer.connection.on_bytes(&buffer[..bytes]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == ErrorKind::InvalidData => {
                        let problem = Problem::bad_request("this port speaks HTTPS");
                        let problem = peer.connection.refuse(problem, now());
                        return refuse(core, peer, problem);
                    }
                    Err(_) => peer.connection.on_error(),
                }
                let held = peer.connection.held_input();
                if peer.reservation.grow(held, Use::Request).is_err() {
                    let detail = "too many large requests at the same time; try again";
                    let problem = Problem::unavailable(detail, "the byte budget is used up");
                    let problem = peer.connection.refuse(problem, now());
                    return refuse(core, peer, problem);
                }
            }
            Some(Next::Read) => return core.arm(peer, Interest::Read),
            Some(Next::Head) => {
                let Some(head) = peer.connection.head_mut() else {
                    return;
                };
                let decided = core.router.admit(head).transpose();
                peer.connection.decide(decided.is_some());
                peer.decided = decided;
            }
            Some(Next::Request(head, body)) => {
                if let Some(decided) = peer.decided.take() {
                    return core.answer(peer, &head, decided, None);
                }
                let responder = Responder {
                    core: Arc::clone(core),
                    token: peer.token(),
                };
                peer.park(Parked::Waiting, |_| {});
                return core
                    .router
                    .submit(Request::new(head, body, Box::new(responder)));
            }
            Some(Next::Refused(problem)) => return refuse(core, peer, problem),
            Some(_) => return,
        }
    }
}

/// Answers a request that is not taken.
pub(crate) fn refuse(core: &Core, peer: Owned<'_, Peer>, problem: Problem) {
    core.metrics
        .refused_requests
        .with_label_values(&[&problem.status.to_string()])
        .inc();
    if let Some(head) = peer.connection.head().cloned() {
        core.answer(peer, &head, Err(problem), None);
    }
}

/// Accepts some connections; the last one is returned, the others are armed.
pub(crate) fn accept(core: &Core, many: usize) -> Option<Owned<'_, Peer>> {
    let mut last: Option<Owned<'_, Peer>> = None;
    for _ in 0..many {
        // The place first: a drain that still finds the listener open also finds this.
        let place = core.table.insert();
        let Some(listener) = lock(&core.listener).clone() else {
            break;
        };
        let accepted = listener.accept();
        drop(listener);
        let (socket, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if is_of_one_client(error.kind()) => continue,
            Err(error) => {
                // Out of descriptors or memory: connections wait in the kernel meanwhile.
                if !core.accept_paused.swap(true, Ordering::SeqCst) {
                    log::error!(cause = error.to_string().as_str(); "cannot accept");
                }
                break;
            }
        };
        let reserved = OPERATORS.min(core.table.capacity() / 16);
        // The last places are for whoever sits at this machine and has to see what is wrong.
        let place = place.filter(|_| client.is_loopback() || core.table.left() >= reserved);
        let place = place.or_else(|| evict(core, None));
        let reservation = core.budget.admit(client).or_else(|| {
            evict(core, Some(client))?;
            core.budget.admit(client)
        });
        let (Some(place), Some(reservation)) = (place, reservation) else {
            reject(core, &socket);
            continue;
        };
        let transport = match Transport::new(socket, core.tls.as_ref()) {
            Ok(transport) => transport,
            Err(error) => {
                log::error!(cause = error.to_string().as_str(); "cannot begin a TLS session");
                continue;
            }
        };
        core.accept_paused.store(false, Ordering::SeqCst);
        let connection = Connection::new(&core.limits, client, core.tls.is_some(), now());
        let peer = place.fill(Peer::new(transport, connection, reservation, &core.metrics));
        if let Some(previous) = last.replace(peer) {
            core.arm(previous, Interest::Read);
        }
    }
    last
}

/// A client left before it was accepted.
fn is_of_one_client(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

impl Core {
    pub(crate) fn arm_listener_unless_paused(&self) {
        if !self.accept_paused.load(Ordering::SeqCst) {
            self.arm_listener();
        }
    }
}

/// Closes those that were idle for longest, of all or of one client; the place of the first is
/// returned.
fn evict(core: &Core, client: Option<IpAddr>) -> Option<Place<'_, Peer>> {
    let client = client.map(super::budget::network);
    let now = now();
    let may_go = |parked, peer: &Peer| {
        parked == Parked::Armed
            && client.is_none_or(|client| peer.reservation.client() == client)
            && peer.may_be_closed(now)
    };
    let mut idle: Vec<Instant> = Vec::new();
    let look = |parked, peer: &Peer| {
        if may_go(parked, peer) {
            idle.push(peer.connection.deadline());
        }
        false
    };
    core.table.sweep(look, |_| {});
    if idle.is_empty() {
        return None;
    }
    let mut left = EVICTED.min(idle.len() / 8 + 1);
    let (_, latest, _) = idle.select_nth_unstable(left - 1);
    let latest = *latest;
    let choose = |parked, peer: &Peer| {
        let chosen = left > 0 && may_go(parked, peer) && peer.connection.deadline() <= latest;
        left -= usize::from(chosen);
        chosen
    };
    let mut place = None;
    core.table.sweep(choose, |peer| {
        place.get_or_insert_with(|| peer.vacate());
    });
    place
}

/// Tells a client that there is no room for its connection, without reading a byte and without
/// waiting for anything.
fn reject(core: &Core, socket: &Socket) {
    core.metrics.refused_connections.inc();
    let detail = "there are too many connections; try again";
    let problem = Problem::unavailable(detail, "no place is left");
    let id = request_id(None);
    let response = Response::of_problem(problem, &id);
    let mut answer = Vec::new();
    with_date(|date| response.write_head(&mut answer, &id, core.tls.is_some(), date));
    if let Body::Bytes(body) = &response.body {
        let end = format!(
            "connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        answer.extend_from_slice(end.as_bytes());
        answer.extend_from_slice(body);
    }
    let _ = socket.send(&answer);
    socket.end_output();
}
