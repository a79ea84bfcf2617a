//! A service that runs in the test's own process.

use std::net::SocketAddr;

use common::process::{Running, StartError};
use common::shutdown::{self, Shutdown, ShutdownTrigger};

use crate::Client;

/// A running service; a drop shuts it down and waits for its end.
pub struct Service<R: Running> {
    /// A client of the service.
    pub client: Client,
    trigger: Option<ShutdownTrigger>,
    running: Option<R>,
}

impl<R: Running> Service<R> {
    /// Starts a service as its `main` does; `address` returns its address.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(
        start: impl FnOnce(&Shutdown) -> Result<R, StartError>,
        address: impl FnOnce(&R) -> SocketAddr,
    ) -> Self {
        let (trigger, shutdown) = shutdown::channel();
        let running = start(&shutdown).expect("the service starts");
        let client = Client::new(address(&running));
        Self {
            client,
            trigger: Some(trigger),
            running: Some(running),
        }
    }
}

impl<R: Running> Drop for Service<R> {
    fn drop(&mut self) {
        drop(self.trigger.take());
        if let Some(running) = self.running.take() {
            running.join();
        }
    }
}
