//! AMQP: the connection to the broker, for the gateway, the consumer and the operator's tool.
//! `connection` uses the other files; `sanitizing_stream` and `watchdog` use `inbound_limit`, which uses
//! `frame`.

mod config;
mod connection;
mod error;
mod frame;
mod inbound_limit;
mod outstanding_confirms;
mod queue_mismatch;
mod sanitizing_stream;
mod tls_stream;
mod watchdog;

pub use config::{Brokers, Purpose, QueueConfig, QueueType};
pub use connection::{AmqpConnection, ConfirmChannel, QueueCounts};
pub use error::AmqpError;
pub use outstanding_confirms::OutstandingConfirms;
pub use watchdog::{Deadline, DeadlineOnDrop};
