//! Accepts connections into the table, and makes room for them or rejects them if it is full.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Shutdown};

use super::core::Core;
use super::peer::Peer;
use super::poller::{Interest, LISTENER, Socket};
use super::table::Owned;
use super::transport::Transport;
use crate::http::connection::Connection;
use crate::http::message::problem::Problem;
use crate::http::message::response::Response;
use crate::http::sync::atomic::Ordering;
use crate::http::sync::{date, lock, now};

/// Accepts up to `many` connections, returns the last one and arms the others.
pub(crate) fn accept(core: &Core, many: usize) -> Option<Owned<'_, Peer>> {
    // The lock is held until the connections are in the table, so that a drain that closes the listener finds them.
    let listener = lock(&core.listener);
    let listener = listener.as_ref()?;
    let mut last = None;
    for _ in 0..many {
        let accepted = listener.accept().and_then(|(socket, address)| {
            socket.set_nonblocking(true)?;
            // A listener for IPv6 sees the addresses of IPv4 clients mapped to IPv6.
            Ok((socket, address.ip().to_canonical()))
        });
        let (socket, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => break,
                // The client left before it was accepted.
                ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset => continue,
                _ => {
                    // Descriptors or memory ran out; connections wait in the kernel until the next round.
                    if !core.accept_paused.swap(true, Ordering::SeqCst) {
                        log::error!(cause = error.to_string().as_str(); "cannot accept");
                    }
                    return last;
                }
            },
        };
        if let Some(peer) = admit(core, socket, client)
            && let Some(previous) = last.replace(peer)
        {
            core.arm(previous, Interest::Read);
        }
    }
    core.poller.arm(listener, LISTENER, Interest::Read);
    last
}

fn admit(core: &Core, socket: Socket, client: IpAddr) -> Option<Owned<'_, Peer>> {
    let mut used = core.table.used();
    let reservation = loop {
        let exhausted = match core.budget.admit(client, used) {
            Ok(reservation) => break reservation,
            Err(exhausted) => exhausted,
        };
        if core.evictable.take(&core.table, exhausted).is_none() {
            reject(core, &socket, client);
            return None;
        }
        // One connection that is closed makes room for one.
        used = 0;
    };
    let transport = Transport::new(socket, core.tls.as_ref())
        .inspect_err(|error| {
            log::error!(cause = error.to_string().as_str(); "cannot begin a TLS session");
        })
        .ok()?;
    core.accept_paused.store(false, Ordering::SeqCst);
    core.table.insert(Peer {
        transport,
        connection: Connection::new(&core.limits, client, core.tls.is_some(), now()),
        decided: None,
        outcome: None,
        reservation,
    })
}

/// Answers 503 to a connection that finds no room, without reading or waiting.
fn reject(core: &Core, mut socket: &Socket, client: IpAddr) {
    core.metrics.refused_connections.inc();
    let mut connection = Connection::new(&core.limits, client, core.tls.is_some(), now());
    let detail = "there are too many connections; try again";
    let problem = Problem::unavailable(detail, "there are too many connections");
    let problem = connection.refuse(problem, now());
    let id = connection.head().map(|head| head.request_id.clone());
    let response = Response::of_problem(problem, &id.unwrap_or_default());
    connection.respond(response, &date(), now());
    let _ = socket.write(connection.to_send());
    let _ = socket.shutdown(Shutdown::Write);
}
