//! The settings of the connection to the broker and of the queue of orders.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use amiquip::{AmqpValue, FieldTable};

use crate::env::{ConfigError, Vars};
use crate::hosts::Hosts;
use crate::password::Password;
use crate::tls::{TlsClient, TlsKeys, Verification};

/// The virtual host that every broker has.
const DEFAULT_VIRTUAL_HOST: &str = "/";

/// A name on the wire is a short string.
const VIRTUAL_HOST_BYTES_MAX: usize = 255;

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
    /// The broker.
    pub brokers: Brokers,
    /// The user to connect as.
    pub user: String,
    /// The password of the user.
    pub password: Password,
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
            password: Password::from_vars(vars, password)?,
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

/// The variables of TLS to the broker.
const TLS: TlsKeys = TlsKeys {
    switch: "RABBITMQ_TLS",
    roots: "RABBITMQ_CACERTFILE",
    certificate: "RABBITMQ_CERTFILE",
    key: "RABBITMQ_KEYFILE",
    host: "RABBITMQ_HOST",
};

/// The broker's nodes, and how a connection to them is made. The nodes are tried in turn, beginning with the node
/// that served last. Clones share the order of the nodes, and the last mismatch of the queue that was logged.
#[derive(Clone)]
pub struct Brokers {
    pub(super) nodes: Hosts,
    /// None: connections are not encrypted.
    pub(super) tls: Option<TlsClient>,
    pub(super) virtual_host: String,
    logged_mismatch: Arc<Mutex<String>>,
}

impl Brokers {
    fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let nodes = Hosts::from_vars(vars, TLS.host, "RABBITMQ_PORT")?;
        let tls = match vars.guarding(TLS.switch)? {
            None | Some("false") => {
                TlsClient::refuse_in(vars, TLS)?;
                None
            }
            Some("true") => Some(TlsClient::from_vars(vars, TLS, Verification::ChainAndName)?),
            Some(_) => return Err(ConfigError::malformed(TLS.switch, "true or false")),
        };
        let virtual_host = vars
            .optional("RABBITMQ_VHOST")
            .unwrap_or(DEFAULT_VIRTUAL_HOST);
        if virtual_host.len() > VIRTUAL_HOST_BYTES_MAX {
            return Err(ConfigError::malformed(
                "RABBITMQ_VHOST",
                "255 bytes at most",
            ));
        }
        Ok(Self {
            tls,
            virtual_host: virtual_host.to_owned(),
            ..Self::new(nodes)
        })
    }

    fn new(nodes: Hosts) -> Self {
        Self {
            nodes,
            tls: None,
            virtual_host: DEFAULT_VIRTUAL_HOST.to_owned(),
            logged_mismatch: Arc::default(),
        }
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
        Self::new(address.into())
    }
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

    #[test]
    fn a_mismatch_is_new_once() {
        let brokers = Brokers::from(SocketAddr::from(([127, 0, 0, 1], 5672)));
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
