//! Orders: `consumer` records them from the queue, `api` reads them out over HTTP, `store`
//! holds the SQL of both. Two programs, so that one can stop without the other. `dead_letters`
//! is the consumer's way to the dead queue, `dead_queue` the operator's, a third program.

mod config;
mod order;

mod api;
mod consumer;
mod dead_letters;
pub mod dead_queue;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use common::db::Database;
use common::http::{Dependency, Hall, Server};
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
    database.show_in(&metrics);
    let bring_up = OrderStore::new(&database).bring_up(shutdown)?;
    let orders = {
        let database = Arc::clone(&database);
        Hall::new("/api/orders", config.http.workers, api::ROUTES, move || {
            OrderStore::new(&database)
        })
    };
    let health = Hall::new("/api/health", 1, api::HEALTH, || ());
    let dependencies = move || {
        let mut orders = OrderStore::new(&database);
        move || {
            vec![Dependency {
                name: "postgresql",
                state: orders.is_up().into(),
            }]
        }
    };
    let server = Server::start(
        &config.http,
        vec![orders, health],
        dependencies,
        &metrics,
        shutdown,
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
    fn join(self) {
        self.server.join();
        let _ = self.bring_up.join();
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
    let links = consumer::Links::new(&metrics);
    let dependencies = {
        let (links, database) = (
            links.clone(),
            Database::new(&config.database, store::MIGRATIONS),
        );
        move || {
            let (links, mut orders) = (links.clone(), OrderStore::new(&database));
            move || links.dependencies(&mut orders)
        }
    };
    let server = Server::start(&config.http, Vec::new(), dependencies, &metrics, shutdown)?;
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
    fn join(self) {
        self.server.join();
        let _ = self.consumer.join();
    }
}
