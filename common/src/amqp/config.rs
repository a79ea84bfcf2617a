//! The settings of the connection to the broker and of the queue of orders.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use amiquip::{AmqpValue, FieldTable};

use crate::env::{ConfigError, Vars};

/// What a program does with the queue of orders; the broker has a user for each purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The program publishes orders.
    Publish,
    /// The program consumes orders.
    Consume,
}

impl Purpose {
    /// The variables with the name of the user and the password.
    const fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Publish => ["RABBITMQ_USER", "RABBITMQ_PASSWORD"],
            Self::Consume => ["RABBITMQ_CONSUMER_USER", "RABBITMQ_CONSUMER_PASSWORD"],
        }
    }
}

/// The settings of the connection to the broker and of the queue of orders.
#[derive(Clone)]
pub struct QueueConfig {
    /// The broker's nodes.
    pub brokers: Brokers,
    /// The user to connect as.
    pub user: String,
    /// The password of the user.
    pub password: String,
    /// The queue of orders.
    pub queue: String,
    /// The type of the queue.
    pub queue_type: QueueType,
}

impl QueueConfig {
    /// Reads the `RABBITMQ_…` variables and `BILLING_QUEUE_TYPE`.
    pub fn from_vars(vars: &Vars, purpose: Purpose) -> Result<Self, ConfigError> {
        let [user, password] = purpose.keys();
        Ok(Self {
            brokers: Brokers::from_vars(vars)?,
            user: vars.text(user)?,
            password: vars.text(password)?,
            queue: vars.text("RABBITMQ_QUEUE")?,
            queue_type: QueueType::from_vars(vars)?,
        })
    }

    /// The queue in which former versions kept dead letters.
    #[must_use]
    pub fn dead_queue(&self) -> String {
        format!("{}.dead", self.queue)
    }
}

/// A node of the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// The name or address of the node.
    pub host: String,
    /// The port of the node.
    pub port: u16,
}

/// The broker's nodes. They are tried in turn, beginning with the node that served last. Clones share the order of
/// the nodes, and the last mismatch of the queue that was logged.
#[derive(Clone)]
pub struct Brokers {
    nodes: Vec<Broker>,
    first: Arc<AtomicUsize>,
    logged_mismatch: Arc<Mutex<String>>,
}

impl Brokers {
    fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        const HOST: &str = "RABBITMQ_HOST";
        let (hosts, port) = (vars.text(HOST)?, vars.port("RABBITMQ_PORT")?);
        let nodes = hosts.split(',').map(|node| broker(node.trim(), port));
        let nodes = nodes.collect::<Option<Vec<_>>>().ok_or_else(|| {
            ConfigError::malformed(
                HOST,
                "a host or several, each with or without a port, as in rabbit-1,rabbit-2:5673",
            )
        })?;
        Ok(Self::new(nodes))
    }

    fn new(nodes: Vec<Broker>) -> Self {
        Self {
            nodes,
            first: Arc::default(),
            logged_mismatch: Arc::default(),
        }
    }

    /// Every node once, with its number.
    pub(super) fn in_turn(&self) -> impl Iterator<Item = (usize, &Broker)> {
        let first = self.first.load(Ordering::Relaxed) % self.nodes.len();
        let (before, from) = self.nodes.split_at(first);
        let numbered = (first..).zip(from);
        numbered.chain((0..).zip(before))
    }

    pub(super) fn try_first(&self, number: usize) {
        self.first.store(number, Ordering::Relaxed);
    }

    /// Whether this mismatch differs from the last one that was logged, which it replaces.
    pub(super) fn is_new_mismatch(&self, mismatch: &str) -> bool {
        let logged = self.logged_mismatch.lock();
        let mut logged = logged.unwrap_or_else(PoisonError::into_inner);
        let is_new = *logged != mismatch;
        mismatch.clone_into(&mut logged);
        is_new
    }
}

impl From<SocketAddr> for Brokers {
    fn from(address: SocketAddr) -> Self {
        Self::new(vec![Broker {
            host: address.ip().to_string(),
            port: address.port(),
        }])
    }
}

/// A host or `host:port`; an IPv6 address with a port stands in brackets.
fn broker(text: &str, default_port: u16) -> Option<Broker> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => {
                (host, &text[text.len() - port.len() - 1..])
            }
            _ => (text, ""),
        },
    };
    let sane = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || !host.chars().all(sane) {
        return None;
    }
    let port = match port {
        "" => default_port,
        _ => port.strip_prefix(':')?.parse().ok()?,
    };
    Some(Broker {
        host: host.to_owned(),
        port,
    })
}

/// The type of a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueType {
    /// The queue is on one node.
    #[default]
    Classic,
    /// The queue is replicated on several nodes of a cluster, and works while most of them do.
    Quorum,
}

impl QueueType {
    pub(super) const VARIABLE: &str = "BILLING_QUEUE_TYPE";

    fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        match vars.optional(Self::VARIABLE) {
            None | Some("classic") => Ok(Self::Classic),
            Some("quorum") => Ok(Self::Quorum),
            Some(_) => Err(ConfigError::malformed(Self::VARIABLE, "classic or quorum")),
        }
    }

    /// The value of `BILLING_QUEUE_TYPE` for this type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }

    /// The arguments of the declaration. A classic queue has none, so that the declaration of another program, without
    /// arguments, matches.
    pub(super) fn arguments(self) -> FieldTable {
        let mut arguments = FieldTable::new();
        if self == Self::Quorum {
            let text = AmqpValue::LongString(self.name().to_owned());
            arguments.insert("x-queue-type".to_owned(), text);
            // RabbitMQ 4 drops a message that was redelivered 20 times, as it may be in an outage of the
            // database.
            let limit = AmqpValue::LongInt(i32::MAX);
            arguments.insert("x-delivery-limit".to_owned(), limit);
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(hosts: &str) -> Result<Vec<Broker>, ConfigError> {
        let vars = Vars::from_pairs([("RABBITMQ_HOST", hosts), ("RABBITMQ_PORT", "5672")]);
        Brokers::from_vars(&vars).map(|brokers| brokers.nodes)
    }

    fn hosts_in_turn(brokers: &Brokers) -> Vec<&str> {
        let hosts = brokers.in_turn().map(|(_, broker)| broker.host.as_str());
        hosts.collect()
    }

    #[test]
    fn a_host_or_several_with_ports_of_their_own_are_brokers() {
        let broker = |host: &str, port| Broker {
            host: host.to_owned(),
            port,
        };

        assert_eq!(brokers("192.0.2.1"), Ok(vec![broker("192.0.2.1", 5672)]));
        assert_eq!(
            brokers("rabbit-1, rabbit_2.example:5673,::1,[2001:db8::1]:5674,[::1]"),
            Ok(vec![
                broker("rabbit-1", 5672),
                broker("rabbit_2.example", 5673),
                broker("::1", 5672),
                broker("2001:db8::1", 5674),
                broker("::1", 5672),
            ])
        );
    }

    #[test]
    fn a_list_of_brokers_that_is_malformed_is_named() {
        for hosts in [
            ",", "a,", "a,,b", ":5672", "a:", "a:b", "a:70000", "amqp://a", "a b", "[::1", "[::1]5",
        ] {
            assert_eq!(brokers(hosts).unwrap_err().key, "RABBITMQ_HOST", "{hosts}");
        }
    }

    #[test]
    fn the_broker_that_served_last_is_tried_first_and_then_the_others() {
        let vars = Vars::from_pairs([("RABBITMQ_HOST", "a,b,c"), ("RABBITMQ_PORT", "1")]);
        let brokers = Brokers::from_vars(&vars).expect("a list");
        assert_eq!(hosts_in_turn(&brokers), ["a", "b", "c"]);

        brokers.clone().try_first(1);
        assert_eq!(hosts_in_turn(&brokers), ["b", "c", "a"]);
        brokers.try_first(3);
        assert_eq!(hosts_in_turn(&brokers), ["a", "b", "c"]);
    }

    #[test]
    fn a_mismatch_is_new_once() {
        let brokers = Brokers::new(Vec::new());
        let is_new =
            ["", "a", "a", "b", "", "b"].map(|mismatch| brokers.clone().is_new_mismatch(mismatch));

        assert_eq!(is_new, [false, true, false, true, true, true]);
    }

    #[test]
    fn a_queue_type_that_is_none_is_named() {
        let of = |value| QueueType::from_vars(&Vars::from_pairs([("BILLING_QUEUE_TYPE", value)]));

        assert_eq!(of(""), Ok(QueueType::Classic));
        assert_eq!(of("classic"), Ok(QueueType::Classic));
        assert_eq!(of("quorum"), Ok(QueueType::Quorum));
        assert_eq!(of("Quorum").unwrap_err().key, "BILLING_QUEUE_TYPE");
    }
}
