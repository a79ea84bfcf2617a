//! The inventory's settings.

use common::db::{DatabaseConfig, DatabaseRole};
use common::env::{ConfigError, Vars};
use common::http::HttpConfig;

/// A create waits for the disk most of its time, so more slots than cores do more work.
const WORKERS: usize = 16;

/// All settings of the inventory.
#[derive(Clone)]
pub struct Config {
    /// Where it listens.
    pub http: HttpConfig,
    /// Where the movies are.
    pub database: DatabaseConfig,
}

impl Config {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            http: HttpConfig::from_vars(vars, "INVENTORY_API_PORT", WORKERS)?,
            database: DatabaseConfig::from_vars(vars, DatabaseRole::Owner, "INVENTORY_DB_NAME")?,
        })
    }
}
