//! AMQP: the connection to the broker that the gateway, the consumer and the operator's tool share.

mod connection;
mod inbound_limit;
mod sanitizing_stream;

pub use connection::{
    Broker, Brokers, Confirming, Counts, Limit, LimitFromDrop, Link, LinkError, Purpose,
    QueueConfig, QueueType, Unconfirmed,
};
