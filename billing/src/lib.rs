//! Orders: `consumer` records them from the queue, `api` reads them out over HTTP, `store`
//! holds the SQL of both. Two programs, so that one can stop without the other.

mod config;
mod order;

mod api;
mod consumer;
mod store;

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use common::db::Database;
use common::http::Server;
use common::metrics::Metrics;
use common::process::{Running, StartError};
use common::shutdown::Shutdown;

pub use config::{ApiConfig, ConsumerConfig};
use store::OrderStore;

/// The running `billing-api`.
pub struct BillingApi {
    server: Server,
    bring_up: JoinHandle<()>,
}

/// Starts `billing-api`: what its `main` and the tests call alike.
pub fn start_api(config: &ApiConfig, shutdown: &Shutdown) -> Result<BillingApi, StartError> {
    let metrics = Metrics::new();
    let database = Database::new(&config.database, store::MIGRATIONS);
    let bring_up = OrderStore::new(&database).bring_up(shutdown)?;
    let server = Server::start(
        &config.http,
        api::service(),
        &metrics,
        shutdown,
        move || OrderStore::new(&database),
    )?;
    Ok(BillingApi { server, bring_up })
}

impl BillingApi {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Running for BillingApi {
    fn join(self) -> io::Result<()> {
        let outcome = self.server.join();
        let _ = self.bring_up.join();
        outcome
    }
}

/// The running `billing-consumer`.
pub struct BillingConsumer {
    server: Server,
    consumer: JoinHandle<()>,
}

/// Starts `billing-consumer`: what its `main` and the tests call alike.
pub fn start_consumer(
    config: &ConsumerConfig,
    shutdown: &Shutdown,
) -> Result<BillingConsumer, StartError> {
    let metrics = Metrics::new();
    let links = consumer::Links::default();
    let server = {
        let (links, settings) = (links.clone(), config.clone());
        let service = consumer::operations();
        Server::start(&config.http, service, &metrics, shutdown, move || {
            consumer::Operations::new(&settings, links.clone())
        })?
    };
    let consumer = consumer::start(config, &metrics, links, shutdown)?;
    Ok(BillingConsumer { server, consumer })
}

impl BillingConsumer {
    /// Where it answers `/health`, `/ready` and `/metrics`.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Running for BillingConsumer {
    fn join(self) -> io::Result<()> {
        let outcome = self.server.join();
        self.consumer
            .join()
            .map_err(|_| io::Error::other("the consumer panicked"))?;
        outcome
    }
}
