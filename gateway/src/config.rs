//! The gateway's settings.

use std::net::{IpAddr, SocketAddr};

use common::env::{ConfigError, Vars};
use common::http::HttpConfig;
use common::queue::QueueConfig;

/// A worker waits for the inventory or for the broker nearly all of its time.
const WORKERS: usize = 32;

/// Everything that the gateway is told.
#[derive(Clone)]
pub struct Config {
    /// Where it listens.
    pub http: HttpConfig,
    /// Where movies are forwarded to.
    pub inventory: SocketAddr,
    /// Where orders go.
    pub queue: QueueConfig,
}

impl Config {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let host: IpAddr = vars.parsed("INVENTORY_VM_IP", "an IP address such as 192.168.56.11")?;
        Ok(Self {
            http: HttpConfig::from_vars(vars, "API_GATEWAY_PORT", WORKERS)?,
            inventory: SocketAddr::new(host, vars.port("INVENTORY_API_PORT")?),
            queue: QueueConfig::from_vars(vars)?,
        })
    }
}
