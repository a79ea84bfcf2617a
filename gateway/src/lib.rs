//! The one door: `proxy` forwards movies to the inventory, `publisher` puts orders on the
//! queue, `api` says which is which.

mod config;

mod access;
mod api;
mod documents;
mod proxy;
mod publisher;
mod upstreams;
mod waiting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use common::http::{Dependency, Hall, Server};
use common::metrics::Metrics;
use common::process::{Running, StartError};
use common::shutdown::Shutdown;

pub use access::AccessConfig;
pub use config::{Config, Limits};

use access::Access;
use api::{Billing, Movies};
use proxy::Inventory;
use upstreams::Upstreams;

/// The running service.
pub struct Gateway {
    server: Server,
    publisher: JoinHandle<()>,
    watch: JoinHandle<()>,
}

/// Starts the service: what `main` and the tests call alike.
pub fn start(config: &Config, shutdown: &Shutdown) -> Result<Gateway, StartError> {
    let metrics = Metrics::new();
    let (orders, publisher) = publisher::start(&config.queue, &metrics)?;
    let limits = config.limits;
    let upstreams = Upstreams::new(&config.inventories);
    let watch = upstreams
        .watch(limits, shutdown)
        .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))?;
    let workers = config.http.workers;
    // Two halls: a dead inventory does not stop orders, nor a blocked broker movies.
    let access = Arc::new(Access::new(&config.access));
    let movies = {
        let (access, upstreams) = (Arc::clone(&access), Arc::clone(&upstreams));
        Hall::new("/api/movies", workers, api::MOVIES, move || Movies {
            access: Arc::clone(&access),
            inventory: Inventory::new(&upstreams, limits),
        })
    };
    let billing = {
        let billing = Billing {
            access,
            orders: orders.clone(),
        };
        Hall::new("/api/billing", workers, api::BILLING, move || {
            billing.clone()
        })
    };
    let dependencies = move || {
        let (inventory, orders) = (Inventory::new(&upstreams, limits), orders.clone());
        move || {
            vec![
                Dependency {
                    name: "inventory",
                    up: inventory.is_up(),
                },
                Dependency {
                    name: "rabbitmq",
                    up: orders.is_open(),
                },
            ]
        }
    };
    let openapi = Hall::new(documents::OPENAPI_PATH, 1, documents::OPENAPI_ROUTES, || ());
    let halls = vec![movies, billing, openapi];
    let server = Server::start(&config.http, halls, dependencies, &metrics, shutdown)?;
    waiting::start(&config.queue, &metrics, shutdown)?;
    Ok(Gateway {
        server,
        publisher,
        watch,
    })
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
    fn join(self) {
        self.server.join();
        let _ = self.publisher.join();
        let _ = self.watch.join();
    }
}
