//! The gateway's settings.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::env::{ConfigError, Vars};
use common::http::HttpConfig;
use common::queue::QueueConfig;

use crate::access::AccessConfig;

/// A worker waits for the inventory or for the broker nearly all of its time.
const WORKERS: usize = 32;

/// Everything that the gateway is told.
#[derive(Clone)]
pub struct Config {
    /// Where it listens.
    pub http: HttpConfig,
    /// Where movies are forwarded to.
    pub inventory: SocketAddr,
    /// How long the inventory may take.
    pub limits: Limits,
    /// Where orders go.
    pub queue: QueueConfig,
    /// Who may do what, and how often.
    pub access: AccessConfig,
}

/// How long the inventory may take before the gateway answers in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Until it accepts a connection.
    pub connect: Duration,
    /// Until it has taken the request.
    pub send: Duration,
    /// From then until its answer begins.
    pub response: Duration,
    /// Between two parts of its answer.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            send: Duration::from_secs(5),
            response: Duration::from_secs(10),
            pause: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// From the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let host: IpAddr = vars.parsed("INVENTORY_VM_IP", "an IP address such as 192.168.56.11")?;
        Ok(Self {
            http: HttpConfig::from_vars(vars, "API_GATEWAY_PORT", WORKERS)?,
            inventory: SocketAddr::new(host, vars.port("INVENTORY_API_PORT")?),
            limits: Limits::default(),
            queue: QueueConfig::from_vars(vars)?,
            access: AccessConfig::from_vars(vars)?,
        })
    }
}
