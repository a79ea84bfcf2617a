//! The inventory's settings.

use common::db::{DatabaseConfig, DatabaseRole};
use common::env::{ConfigError, Vars};
use common::http::HttpConfig;

/// There are more slots than cores, since a create waits for the disk most of its time.
const WORKERS: usize = 16;

/// All settings of the inventory.
#[derive(Clone)]
pub struct Config {
    /// The address and the limits of the HTTP server.
    pub http: HttpConfig,
    /// The database of the movies.
    pub database: DatabaseConfig,
}

impl Config {
    /// Reads the settings from the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        Ok(Self {
            http: HttpConfig::from_vars(vars, "INVENTORY_API_PORT", WORKERS)?,
            database: DatabaseConfig::from_vars(vars, DatabaseRole::Owner, "INVENTORY_DB_NAME")?,
        })
    }
}
