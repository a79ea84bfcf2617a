//! Sends health checks to the services behind the gateway. A check blocks the thread that runs it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::process::{self, StartError};
use common::shutdown::Shutdown;
use ureq::Agent;

use crate::upstreams::Upstreams;

/// How long a service may take to answer a check.
const CHECK_LIMIT: Duration = Duration::from_secs(1);

/// A connection that was idle for longer is not used again.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// How often a service that is marked down is checked.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Starts the thread that checks the services that are marked down.
pub(crate) fn start_health_checks(
    upstreams: &Arc<Upstreams>,
    shutdown: &Shutdown,
) -> Result<(), StartError> {
    let (upstreams, shutdown) = (Arc::clone(upstreams), shutdown.clone());
    process::spawn("health-checks", move || {
        let probe = Probe::new(&upstreams);
        while !shutdown.wait_at_most(CHECK_EVERY) {
            upstreams.mark_up(|address| probe.is_ready(address));
        }
    })
    .map(drop)
}

/// Checks services of one kind, for one thread.
pub(crate) struct Probe {
    upstreams: Arc<Upstreams>,
    agent: Agent,
}

impl Probe {
    pub(crate) fn new(upstreams: &Arc<Upstreams>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent("")
            .accept("")
            .accept_encoding("")
            .max_idle_connections(upstreams.len())
            .max_idle_connections_per_host(1)
            .max_idle_age(IDLE_LIMIT)
            .timeout_connect(Some(CHECK_LIMIT))
            .timeout_recv_response(Some(CHECK_LIMIT))
            .timeout_per_read(Some(CHECK_LIMIT))
            .timeout_global(Some(2 * CHECK_LIMIT))
            .build();
        Self {
            upstreams: Arc::clone(upstreams),
            agent: config.new_agent(),
        }
    }

    /// Whether one of the services answers now.
    pub(crate) fn is_up(&self) -> bool {
        self.get("/health").is_some_and(|(status, _)| status == 200)
    }

    /// The status and the content of the answer of one of the services to a GET; None if it does not answer in
    /// time.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        self.get_at(self.upstreams.choose(), path)
    }

    /// Whether the service at this address is ready now.
    fn is_ready(&self, address: SocketAddr) -> bool {
        self.get_at(address, "/ready")
            .is_some_and(|(status, _)| status == 200)
    }

    fn get_at(&self, address: SocketAddr, path: &str) -> Option<(u16, Vec<u8>)> {
        let send = || {
            let mut request = self.agent.get(format!("http://{address}{path}"));
            if let Some(key) = self.upstreams.operations_key() {
                request = request.header("authorization", key.authorization());
            }
            request.call()
        };
        // The service may have closed an idle connection, so a request that fails is sent again.
        let answer = match send() {
            Err(ureq::Error::Io(_)) => send(),
            answer => answer,
        };
        let mut answer = answer.ok()?;
        // The body is read to its end, so that the connection can be used again.
        let body = answer.body_mut().read_to_vec().ok()?;
        Some((answer.status().as_u16(), body))
    }
}
