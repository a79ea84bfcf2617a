//! The hosts of one server, which are tried in turn: the nodes of a RabbitMQ cluster, or a PostgreSQL and its
//! standbys.

use std::fmt;
use std::net::SocketAddr;
#[cfg(feature = "db")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "db")]
use std::time::Duration;

use crate::env::{ConfigError, Vars};
#[cfg(feature = "db")]
use crate::process::{self, StartError};

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The name or address of the host, or for PostgreSQL the folder of a Unix socket.
    pub name: String,
    /// The port of the host.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

/// The hosts of one server, beginning with the host that served last. Clones share the order.
#[derive(Clone)]
pub struct Hosts {
    all: Vec<Host>,
    first: Arc<AtomicUsize>,
    /// For each host, how many connections were abandoned that the host may still answer.
    #[cfg(feature = "db")]
    abandoned: Arc<[AtomicUsize]>,
}

impl Hosts {
    /// Reads a list such as `a,b:5433`; a host without a port of its own has the port of `port_key`.
    pub fn from_vars(vars: &Vars, host_key: &str, port_key: &str) -> Result<Self, ConfigError> {
        let (list, port) = (vars.text(host_key)?, vars.port(port_key)?);
        let hosts = list.split(',').map(|host| parse(host.trim(), port));
        let hosts = hosts.collect::<Option<Vec<_>>>().ok_or_else(|| {
            ConfigError::malformed(
                host_key,
                "a host or several, each with or without a port, as in server-1,server-2:7000",
            )
        })?;
        Ok(Self::new(hosts))
    }

    pub(crate) fn new(hosts: Vec<Host>) -> Self {
        Self {
            #[cfg(feature = "db")]
            abandoned: hosts.iter().map(|_| AtomicUsize::new(0)).collect(),
            all: hosts,
            first: Arc::default(),
        }
    }

    /// Each host once, with its number.
    pub(crate) fn in_turn(&self) -> impl Iterator<Item = (usize, &Host)> {
        let first = self.first.load(Ordering::Relaxed) % self.all.len();
        let (before, from) = self.all.split_at(first);
        let numbered = (first..).zip(from);
        numbered.chain((0..).zip(before))
    }

    pub(crate) fn try_first(&self, number: usize) {
        self.first.store(number, Ordering::Relaxed);
    }

    /// Connects to a host in a thread of its own, and abandons it after `limit`. While a host has not answered an
    /// abandoned connection, no further one is begun. None if the host does not answer.
    #[cfg(feature = "db")]
    pub(crate) fn connect_in_time<T: Send + 'static>(
        &self,
        number: usize,
        limit: Duration,
        connect: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, StartError> {
        if self.abandoned[number].load(Ordering::SeqCst) > 0 {
            return Ok(None);
        }
        // Without a buffer a value is either received or not sent.
        let (answer, answered) = crossbeam_channel::bounded(0);
        let abandoned = Arc::clone(&self.abandoned);
        process::spawn("dial", move || {
            let connected = catch_unwind(AssertUnwindSafe(connect)).ok();
            if answer.send(connected).is_err() {
                abandoned[number].fetch_sub(1, Ordering::SeqCst);
            }
        })?;
        let Ok(connected) = answered.recv_timeout(limit) else {
            self.abandoned[number].fetch_add(1, Ordering::SeqCst);
            return Ok(None);
        };
        Ok(connected)
    }

    /// Whether there is more than one host.
    #[cfg(feature = "db")]
    pub(crate) fn are_several(&self) -> bool {
        self.all.len() > 1
    }
}

impl From<SocketAddr> for Hosts {
    fn from(address: SocketAddr) -> Self {
        Self::new(vec![Host {
            name: address.ip().to_string(),
            port: address.port(),
        }])
    }
}

/// Reads a host or `host:port`; an IPv6 address with a port stands in brackets.
fn parse(text: &str, default_port: u16) -> Option<Host> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match text.split_once(':') {
            Some((name, port)) if !port.contains(':') => {
                (name, &text[text.len() - port.len() - 1..])
            }
            _ => (text, ""),
        },
    };
    // A % stands before the zone of an IPv6 address.
    let sane = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    if name.is_empty() || !name.chars().all(sane) {
        return None;
    }
    let port = match port {
        "" => default_port,
        _ => port.strip_prefix(':')?.parse().ok()?,
    };
    Some(Host {
        name: name.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &str) -> Result<Hosts, ConfigError> {
        let vars = Vars::from_pairs([("RABBITMQ_HOST", list), ("RABBITMQ_PORT", "5672")]);
        Hosts::from_vars(&vars, "RABBITMQ_HOST", "RABBITMQ_PORT")
    }

    fn names_in_turn(hosts: &Hosts) -> Vec<&str> {
        let names = hosts.in_turn().map(|(_, host)| host.name.as_str());
        names.collect()
    }

    #[test]
    fn a_host_or_several_with_ports_of_their_own_are_hosts() {
        let texts = |list: &str| {
            let hosts = hosts(list).expect("a list").all;
            hosts.iter().map(Host::to_string).collect::<Vec<_>>()
        };

        assert_eq!(texts("192.0.2.1"), ["192.0.2.1:5672"]);
        assert_eq!(
            texts("rabbit-1, rabbit_2.example:5673,::1,[2001:db8::1]:5674,[::1]"),
            [
                "rabbit-1:5672",
                "rabbit_2.example:5673",
                "::1:5672",
                "2001:db8::1:5674",
                "::1:5672"
            ]
        );
    }

    #[test]
    fn a_list_of_hosts_that_is_malformed_is_named() {
        for list in [
            ",", "a,", "a,,b", ":5672", "a:", "a:b", "a:70000", "amqp://a", "a b", "[::1", "[::1]5",
        ] {
            let error = hosts(list).err().expect(list);
            assert_eq!(error.key, "RABBITMQ_HOST", "{list}");
        }
    }

    #[cfg(feature = "db")]
    #[test]
    fn a_host_that_was_abandoned_is_left_alone_until_it_has_answered() {
        let hosts = hosts("a").expect("a list");
        let (answer, answered) = crossbeam_channel::bounded::<()>(0);
        let connect = |limit, number| {
            let connected = hosts.connect_in_time(0, limit, move || number);
            connected.expect("a thread")
        };

        let limit = Duration::from_millis(1);
        let first = hosts.connect_in_time(0, limit, move || answered.recv().is_ok());

        assert_eq!(first.expect("a thread"), None);
        assert_eq!(connect(Duration::from_mins(1), 2), None);
        drop(answer);
        while connect(Duration::from_mins(1), 3) != Some(3) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_host_that_served_last_is_tried_first_and_then_the_others() {
        let hosts = hosts("a,b,c").expect("a list");
        assert_eq!(names_in_turn(&hosts), ["a", "b", "c"]);

        hosts.clone().try_first(1);
        assert_eq!(names_in_turn(&hosts), ["b", "c", "a"]);
        hosts.try_first(3);
        assert_eq!(names_in_turn(&hosts), ["a", "b", "c"]);
    }
}
