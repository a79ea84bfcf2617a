//! The one door: `proxy` forwards movies to the inventory, `publisher` puts orders on the
//! queue, `api` says which is which.

mod config;

mod api;
mod proxy;
mod publisher;

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use common::http::Server;
use common::metrics::Metrics;
use common::process::{Running, StartError};
use common::shutdown::Shutdown;

pub use config::{Config, Limits};

/// The running service.
pub struct Gateway {
    server: Server,
    publisher: JoinHandle<()>,
}

/// Starts the service: what `main` and the tests call alike.
pub fn start(config: &Config, shutdown: &Shutdown) -> Result<Gateway, StartError> {
    let metrics = Metrics::new();
    let (orders, publisher) = publisher::start(&config.queue, &metrics)?;
    let (inventory, limits) = (config.inventory, config.limits);
    let server = Server::start(
        &config.http,
        api::service(),
        &metrics,
        shutdown,
        move || api::Doors {
            inventory: proxy::Inventory::new(inventory, limits),
            orders: orders.clone(),
        },
    )?;
    Ok(Gateway { server, publisher })
}

impl Gateway {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Running for Gateway {
    /// The publisher ends when no worker is left that could hand it an order.
    fn join(self) -> io::Result<()> {
        let outcome = self.server.join();
        self.publisher
            .join()
            .map_err(|_| io::Error::other("the publisher panicked"))?;
        outcome
    }
}
