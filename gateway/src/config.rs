//! The gateway's settings.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::amqp::{Purpose, QueueConfig};
use common::env::{ConfigError, Vars};
use common::http::HttpConfig;

use crate::access::AccessConfig;

/// There are many slots, since a slot for movies waits for the inventory nearly all of its time.
const WORKERS: usize = 32;

/// All settings of the gateway.
#[derive(Clone)]
pub struct Config {
    /// The address and the limits of the HTTP server.
    pub http: HttpConfig,
    /// The inventories to which the gateway forwards requests in turn; at least one.
    pub inventories: Vec<SocketAddr>,
    /// The address of billing-api, which lists recorded orders and dead letters.
    pub billing_api: SocketAddr,
    /// The address at which the consumer reports whether it records orders.
    pub billing_consumer: SocketAddr,
    /// Whether clients can read orders and dead letters through the gateway.
    pub expose_orders: bool,
    /// How long a service behind the gateway may take.
    pub limits: UpstreamLimits,
    /// The queue to which orders are published.
    pub queue: QueueConfig,
    /// The API keys and the rate limit.
    pub access: AccessConfig,
}

/// How long a service may take before the gateway answers in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamLimits {
    /// From the dial until the service accepts the connection.
    pub connect: Duration,
    /// From then until the service has taken the request.
    pub send: Duration,
    /// From then until the answer of the service begins.
    pub response: Duration,
    /// Between two parts of the answer.
    pub pause: Duration,
    /// For all of these together; no client waits longer.
    pub answer: Duration,
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            send: Duration::from_secs(5),
            response: Duration::from_secs(10),
            pause: Duration::from_secs(10),
            answer: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Reads the settings from the variables of `.env`.
    pub fn from_vars(vars: &Vars) -> Result<Self, ConfigError> {
        let billing: IpAddr =
            vars.parsed("BILLING_VM_IP", "an IP address such as 192.168.56.12")?;
        let http = HttpConfig::from_vars(vars, "API_GATEWAY_PORT", WORKERS)?;
        let limits = UpstreamLimits {
            answer: http.limits.answer_time,
            ..UpstreamLimits::default()
        };
        Ok(Self {
            http,
            inventories: inventories(vars)?,
            billing_api: SocketAddr::new(billing, vars.port("BILLING_API_PORT")?),
            billing_consumer: SocketAddr::new(billing, vars.port("BILLING_CONSUMER_PORT")?),
            expose_orders: vars.parsed_or("EXPOSE_ORDERS", "true or false", false)?,
            limits,
            queue: QueueConfig::from_vars(vars, Purpose::Publish)?,
            access: AccessConfig::from_vars(vars)?,
        })
    }
}

/// Reads the addresses from `INVENTORY_URLS`, or the one address from `INVENTORY_VM_IP` and
/// `INVENTORY_API_PORT` if `INVENTORY_URLS` is not set.
fn inventories(vars: &Vars) -> Result<Vec<SocketAddr>, ConfigError> {
    const URLS: &str = "INVENTORY_URLS";
    let Some(urls) = vars.optional(URLS) else {
        let host: IpAddr = vars.parsed("INVENTORY_VM_IP", "an IP address such as 192.168.56.11")?;
        return Ok(vec![SocketAddr::new(
            host,
            vars.port("INVENTORY_API_PORT")?,
        )]);
    };
    // A host name is malformed, since the gateway would have to resolve it for each request.
    let address = |url: &str| {
        let address = url.trim().strip_prefix("http://")?;
        address.strip_suffix('/').unwrap_or(address).parse().ok()
    };
    urls.split(',')
        .map(address)
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| {
            ConfigError::malformed(
                URLS,
                "a list such as http://192.168.56.11:8080,http://192.168.56.21:8080",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventories_of(urls: &str) -> Result<Vec<SocketAddr>, ConfigError> {
        inventories(&Vars::from_pairs([
            ("INVENTORY_URLS", urls),
            ("INVENTORY_VM_IP", "192.0.2.1"),
            ("INVENTORY_API_PORT", "8080"),
        ]))
    }

    #[test]
    fn several_inventories_are_listed_and_one_needs_no_list() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");

        assert_eq!(inventories_of(""), Ok(vec![address("192.0.2.1:8080")]));
        assert_eq!(
            inventories_of("http://192.0.2.7:80, http://[2001:db8::1]:81/"),
            Ok(vec![address("192.0.2.7:80"), address("[2001:db8::1]:81")])
        );
    }

    #[test]
    fn a_list_that_is_malformed_is_named() {
        for urls in [
            "https://192.0.2.7:80",
            "192.0.2.7:80",
            "http://192.0.2.7",
            "http://a:80,",
            ",",
        ] {
            assert_eq!(
                inventories_of(urls).unwrap_err().key,
                "INVENTORY_URLS",
                "{urls}"
            );
        }
    }
}
