//! The settings of the two billing programs.

use common::amqp::{Purpose, QueueConfig};
use common::db::{DatabaseConfig, DatabaseRole};
use common::env::{ConfigError, Vars};
use common::http::HttpConfig;

/// Orders are only read here, and reads do not wait for the disk.
const API_WORKERS: usize = 4;

/// Health and metrics for one operator.
const OPERATIONS_WORKERS: usize = 1;

/// Everything that `billing-api` is told.
#[derive(Clone)]
pub struct ApiConfig {
    /// Where it listens.
    pub http: HttpConfig,
    /// Where the orders are; it only reads them.
    pub database: DatabaseConfig,
}

impl ApiConfig {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            http: HttpConfig::from_vars(vars, "BILLING_API_PORT", API_WORKERS)?,
            database: DatabaseConfig::from_vars(vars, DatabaseRole::Reader, "BILLING_DB_NAME")?,
        })
    }
}

/// Everything that `billing-consumer` is told.
#[derive(Clone)]
pub struct ConsumerConfig {
    /// Where it answers `/health`, `/ready` and `/metrics`.
    pub http: HttpConfig,
    /// Where the orders go.
    pub database: DatabaseConfig,
    /// Where they come from.
    pub queue: QueueConfig,
    /// What dead letters may take on disk before little is kept of further ones, in bytes.
    pub dead_letters_bytes_max: i64,
}

impl ConsumerConfig {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            http: HttpConfig::from_vars(vars, "BILLING_CONSUMER_PORT", OPERATIONS_WORKERS)?,
            database: DatabaseConfig::from_vars(vars, DatabaseRole::Owner, "BILLING_DB_NAME")?,
            queue: QueueConfig::from_vars(vars, Purpose::Consume)?,
            dead_letters_bytes_max: dead_letters_bytes_max(vars)?,
        })
    }
}

/// From `DEAD_LETTERS_BYTES_MAX`; 1 GiB where it is not set.
pub(crate) fn dead_letters_bytes_max(vars: &Vars) -> Result<i64, ConfigError> {
    vars.parsed_or("DEAD_LETTERS_BYTES_MAX", "a number of bytes", 1 << 30)
}
