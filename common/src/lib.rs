//! What the services share. A service names in its manifest what it may touch:
//! `features = ["queue"]` without `"db"` is the sentence "no database here".

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
