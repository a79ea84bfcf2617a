//! The settings of the two billing programs.

use common::db::DatabaseConfig;
use common::env::{ConfigError, Vars};
use common::http::HttpConfig;
use common::queue::QueueConfig;

/// Orders are only read here, and reads do not wait for the disk.
const API_WORKERS: usize = 4;

/// Health and metrics for one operator.
const OPERATIONS_WORKERS: usize = 1;

/// Everything that `billing-api` is told.
#[derive(Clone)]
pub struct ApiConfig {
    /// Where it listens.
    pub http: HttpConfig,
    /// Where the orders are.
    pub database: DatabaseConfig,
}

impl ApiConfig {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            http: HttpConfig::from_vars(vars, "BILLING_API_PORT", API_WORKERS)?,
            database: DatabaseConfig::from_vars(vars, "BILLING_DB_NAME")?,
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
}

impl ConsumerConfig {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            http: HttpConfig::from_vars(vars, "BILLING_CONSUMER_PORT", OPERATIONS_WORKERS)?,
            database: DatabaseConfig::from_vars(vars, "BILLING_DB_NAME")?,
            queue: QueueConfig::from_vars(vars)?,
        })
    }
}
