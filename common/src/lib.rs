//! What the services share. A service names in its manifest what it may touch:
//! `features = ["queue"]` without `"db"` is the sentence "no database here".

pub mod env;
#[cfg(any(feature = "db", feature = "queue"))]
pub mod hosts;
#[cfg(any(feature = "db", feature = "queue"))]
pub mod password;
pub mod process;
pub mod shutdown;

pub mod http;
pub mod order;

#[cfg(feature = "queue")]
pub mod amqp;
#[cfg(feature = "db")]
pub mod db;

pub mod backoff;
pub mod log;
pub mod metrics;
pub mod outage;
#[cfg(any(feature = "db", feature = "queue"))]
pub mod tls;
mod usage;
pub mod watched;
