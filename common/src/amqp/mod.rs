//! AMQP: the connection to the broker that the gateway, the consumer and the operator's tool share. Each
//! file uses only those below it.

mod connection;
mod watchdog;

mod frame;
mod inbound_limit;
mod sanitizing_stream;

mod outstanding_confirms;

mod config;
mod error;
mod queue_mismatch;

pub use config::{Broker, Brokers, Purpose, QueueConfig, QueueType};
pub use connection::{Confirming, Counts, Link};
pub use error::LinkError;
pub use outstanding_confirms::Unconfirmed;
pub use watchdog::{Limit, LimitFromDrop};
