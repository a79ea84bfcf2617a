//! The settings of the three billing programs.

use common::amqp::{Purpose, QueueConfig};
use common::db::{DatabaseConfig, DatabaseRole};
use common::env::{ConfigError, Vars};
use common::http::HttpConfig;

/// `billing-api` only reads orders, and reads do not wait for the disk.
const API_SLOTS: usize = 4;

/// One operator at a time asks for health and metrics.
const OPERATIONS_WORKERS: usize = 1;

/// All settings of `billing-api`.
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
            http: HttpConfig::from_vars(vars, "BILLING_API_PORT", API_SLOTS)?,
            database: DatabaseConfig::from_vars(vars, DatabaseRole::Reader, "BILLING_DB_NAME")?,
        })
    }
}

/// All settings of `billing-consumer`.
#[derive(Clone)]
pub struct ConsumerConfig {
    /// Where it answers `/health`, `/ready` and `/metrics`.
    pub http: HttpConfig,
    /// Where it records orders.
    pub database: DatabaseConfig,
    /// Where it takes orders from.
    pub queue: QueueConfig,
    /// When dead letters take so many bytes on disk, little is kept of further ones.
    pub dead_letters_bytes_max: i64,
}

impl ConsumerConfig {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            http: HttpConfig::from_vars(vars, "BILLING_CONSUMER_PORT", OPERATIONS_WORKERS)?,
            database: owned_database(vars)?,
            queue: QueueConfig::from_vars(vars, Purpose::Consume)?,
            dead_letters_bytes_max: dead_letters_bytes_max(vars)?,
        })
    }
}

/// All settings of `billing-dead-letters`. Only an import needs the last two, so an error in them concerns no
/// other command.
pub(crate) struct ToolConfig {
    /// Where the dead letters are.
    pub(crate) database: DatabaseConfig,
    /// The queue of orders, whose name is part of the name of the old queue of dead letters.
    pub(crate) queue: Result<QueueConfig, ConfigError>,
    /// When dead letters take so many bytes on disk, little is kept of further ones.
    pub(crate) dead_letters_bytes_max: Result<i64, ConfigError>,
}

impl ToolConfig {
    /// From the variables of `.env`.
    pub(crate) fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            database: owned_database(vars)?,
            queue: QueueConfig::from_vars(vars, Purpose::Consume),
            dead_letters_bytes_max: dead_letters_bytes_max(vars),
        })
    }
}

fn owned_database(vars: &Vars) -> Result<DatabaseConfig, ConfigError> {
    DatabaseConfig::from_vars(vars, DatabaseRole::Owner, "BILLING_DB_NAME")
}

/// `DEAD_LETTERS_BYTES_MAX`, or 1 GiB.
fn dead_letters_bytes_max(vars: &Vars) -> Result<i64, ConfigError> {
    vars.parsed_or("DEAD_LETTERS_BYTES_MAX", "a number of bytes", 1 << 30)
}
