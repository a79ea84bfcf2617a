//! The code that the services share. The features in a service's manifest decide what the service can reach:
//! with `features = ["queue"]` and without `"db"` it cannot reach a database.

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
