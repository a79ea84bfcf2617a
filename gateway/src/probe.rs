//! Asks the services behind how they are. Whoever asks has a thread for it, and may wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::shutdown::Shutdown;
use ureq::Agent;

use crate::upstreams::Upstreams;

/// How long a service may take to say that it lives.
const LIMIT: Duration = Duration::from_secs(1);

/// A connection that was idle for longer is not used again.
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// How often a service that was marked down is asked whether it is back.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Starts the thread that asks those marked down whether they are back.
pub(crate) fn watch(upstreams: &Arc<Upstreams>, shutdown: &Shutdown) -> io::Result<()> {
    let (upstreams, shutdown) = (Arc::clone(upstreams), shutdown.clone());
    thread::Builder::new()
        .name("upstreams".to_owned())
        .spawn(move || {
            let probe = Probe::new(&upstreams);
            while !shutdown.wait_at_most(ASK_AGAIN) {
                upstreams.mark_up(|address| probe.is_ready(address));
            }
        })
        .map(drop)
}

/// The services of one kind, as one thread asks them.
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
            .timeout_connect(Some(LIMIT))
            .timeout_recv_response(Some(LIMIT))
            .timeout_per_read(Some(LIMIT))
            .build();
        Self {
            upstreams: Arc::clone(upstreams),
            agent: config.new_agent(),
        }
    }

    /// Whether the process of one of them answers, now.
    pub(crate) fn is_up(&self) -> bool {
        self.ask("/health").is_some_and(|(status, _)| status == 200)
    }

    /// What one of them answers to a GET, soon: the status and the content. None where it does not
    /// answer.
    pub(crate) fn ask(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        self.ask_at(self.upstreams.choose(), path)
    }

    /// Whether that one can work, now.
    fn is_ready(&self, address: SocketAddr) -> bool {
        self.ask_at(address, "/ready")
            .is_some_and(|(status, _)| status == 200)
    }

    fn ask_at(&self, address: SocketAddr, path: &str) -> Option<(u16, Vec<u8>)> {
        let ask = || {
            let mut request = self.agent.get(format!("http://{address}{path}"));
            if let Some(key) = self.upstreams.operations_key() {
                request = request.header("authorization", key.authorization());
            }
            request.call()
        };
        // A connection that was closed while it was idle is no answer.
        let answer = match ask() {
            Err(ureq::Error::Io(_)) => ask(),
            answer => answer,
        };
        let mut answer = answer.ok()?;
        // Read to its end, so that the connection can be used again.
        let body = answer.body_mut().read_to_vec().ok()?;
        Some((answer.status().as_u16(), body))
    }
}
