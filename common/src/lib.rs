//! The code that the services share. The features in a service's manifest decide what the service can reach:
//! with `features = ["queue"]` and without `"db"` it cannot reach a database.

pub mod env;
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
mod usage;
pub mod watched;
