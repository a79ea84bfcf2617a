//! What clients have not read of their answers, and whose answer is given up where there is no memory
//! for it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::budget::{Exhausted, Use};
use super::core::{Core, Peer};
use super::table::Parked;
use crate::http::sync::now;

/// Whoever has read nothing for so long may be cut off for others' sake.
const SILENCE: Duration = Duration::from_secs(2);

impl Core {
    /// Sends what the client takes of what is in the buffer; what is left has its place in memory.
    pub(crate) fn send(&self, peer: &mut Peer) -> Result<(), String> {
        while !peer.connection.to_send().is_empty() {
            match peer.transport.send(peer.connection.to_send()) {
                Ok(bytes) => peer.connection.on_sent(bytes, now()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let kept = self.keep(peer);
                    return kept.then_some(()).ok_or_else(|| {
                        "there is no memory left for what the client has not read".to_owned()
                    });
                }
                Err(error) => return Err(format!("the client went away: {error}")),
            }
        }
        Ok(())
    }

    /// Finds a place in memory for what the client has not read. Where there is none, whoever has
    /// been silent for longest over an answer of theirs makes room.
    pub(crate) fn keep(&self, peer: &mut Peer) -> bool {
        loop {
            let bytes = peer.connection.to_send().len();
            match peer.reservation.grow(bytes, Use::Answer) {
                Ok(()) => return true,
                Err(exhausted) if self.make_room(exhausted) => {}
                Err(_) => return false,
            }
        }
    }

    fn make_room(&self, exhausted: Exhausted) -> bool {
        let set_before = now() + self.limits.send_time.saturating_sub(SILENCE);
        let helps = |parked, peer: &Peer| {
            let client = peer.reservation.client();
            parked == Parked::Armed
                && !peer.connection.to_send().is_empty()
                && peer.reservation.is_used()
                && peer.connection.deadline() <= set_before
                && (exhausted == Exhausted::Budget || exhausted == Exhausted::Share(client))
        };
        let mut longest: Option<Instant> = None;
        let look = |parked, peer: &Peer| {
            if helps(parked, peer) {
                let deadline = peer.connection.deadline();
                longest = Some(longest.map_or(deadline, |longest| longest.min(deadline)));
            }
            false
        };
        self.table.sweep(look, drop);
        let Some(longest) = longest else { return false };
        let mut found = false;
        let choose = |parked, peer: &Peer| {
            let chosen = !found && helps(parked, peer) && peer.connection.deadline() <= longest;
            found |= chosen;
            chosen
        };
        self.table.sweep(choose, |mut peer| {
            log::warn!(
                client = peer.reservation.client().to_string().as_str();
                "an answer that was not read was cut off, for others"
            );
            peer.connection.truncate();
            self.settle(peer);
        });
        found
    }
}
