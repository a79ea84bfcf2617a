//! The settings of a server.

use std::net::{IpAddr, SocketAddr};

use super::tls::Tls;
use crate::env::{ConfigError, Vars};
use crate::http::limits::{Limits, number};
use crate::http::service::operations::OperationsKey;

/// The settings of a server.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Where the server listens; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether another process may listen on the port too, to take over without a gap.
    pub reuse_port: bool,
    /// How many requests of one kind are processed at the same time.
    pub slots: usize,
    /// The limits for clients.
    pub limits: Limits,
    /// The certificate, if the server speaks HTTPS.
    pub tls: Option<Tls>,
    /// The key for the metrics and the dependencies; without it everybody sees them.
    pub operations_key: Option<OperationsKey>,
    /// The names that `Host` may have; if there are none, every name is allowed.
    pub hosts: Vec<String>,
}

impl HttpConfig {
    /// From `LISTEN_ADDRESS`, the port that `port_key` names, and the optional `HTTP_…`
    /// variables.
    pub fn from_vars(vars: &Vars, port_key: &str, slots: usize) -> Result<Self, ConfigError> {
        let address: IpAddr = vars.parsed("LISTEN_ADDRESS", "an IP address such as 0.0.0.0")?;
        Ok(Self {
            address: SocketAddr::new(address, vars.port(port_key)?),
            reuse_port: vars.parsed_or("HTTP_REUSE_PORT", "true or false", false)?,
            slots: number(vars, "HTTP_WORKERS", slots, 1024)?,
            limits: Limits::from_vars(vars)?,
            tls: Tls::from_vars(vars)?,
            operations_key: OperationsKey::from_vars(vars)?,
            hosts: hosts(vars)?,
        })
    }

    /// The defaults, on a loopback port that the system chooses, for tests.
    ///
    /// # Panics
    /// When there are no slots, or more than `HTTP_WORKERS` allows.
    #[must_use]
    pub fn on_loopback(slots: usize) -> Self {
        let vars = Vars::from_pairs([("LISTEN_ADDRESS", "127.0.0.1"), ("PORT", "0")]);
        Self::from_vars(&vars, "PORT", slots).expect("each default is within its range")
    }
}

/// The names in `ALLOWED_HOSTS`.
fn hosts(vars: &Vars) -> Result<Vec<String>, ConfigError> {
    const HOSTS: &str = "ALLOWED_HOSTS";
    let expected = "a list of names such as movies.example,gateway-vm";
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let Some(list) = vars.guarding(HOSTS)? else {
        return Ok(Vec::new());
    };
    let names = list.split(',').map(|name| {
        let name = name.trim();
        let is_name = !name.is_empty() && name.bytes().all(is_plain);
        is_name.then(|| name.to_owned())
    });
    let names = names.collect::<Option<_>>();
    names.ok_or_else(|| ConfigError::malformed(HOSTS, expected))
}
