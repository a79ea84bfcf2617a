//! The one door: `proxy` forwards movies to the inventory, `publisher` puts orders on the
//! queue, `api` says which is which; `status` and `console` are for people.

mod config;

mod access;
mod api;
mod documents;
mod keys;
mod link;
mod proxy;
mod publisher;
mod socket;
mod upstreams;

mod asker;
mod console;
mod queues;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use common::http::{Dependency, Hall, Server};
use common::metrics::Metrics;
use common::process::{Running, StartError};
use common::shutdown::Shutdown;

pub use access::AccessConfig;
pub use config::{Config, Limits};

use access::Access;
use api::{Billing, Movies, RecordedOrders};
use console::Console;
use proxy::Proxy;
use publisher::Publishing;
use status::{Onlookers, Services, Status};
use upstreams::Upstreams;

/// People who look on share what is asked for them once a second.
const STATUS_WORKERS: usize = 2;

/// As many as billing-api has to read orders with, and as many for dead letters.
const RECORDED_ORDERS_WORKERS: usize = 4;

/// The running service.
pub struct Gateway {
    server: Server,
    publishing: Publishing,
}

/// Starts the service: what `main` and the tests call alike.
pub fn start(config: &Config, shutdown: &Shutdown) -> Result<Gateway, StartError> {
    let metrics = Metrics::new();
    let (orders, publishing) = publisher::start(&config.queue, &metrics)?;
    let limits = config.limits;
    let services = |name, addresses: &[SocketAddr]| {
        Upstreams::new(name, addresses, config.http.operations_key.clone())
    };
    let upstreams = services("the inventory", &config.inventories);
    let no_thread = |error| StartError::System("cannot start a thread".to_owned(), error);
    upstreams.watch(limits, shutdown).map_err(no_thread)?;
    let billing_api = services("billing", &[config.billing_api]);
    let billing_consumer = services("the consumer", &[config.billing_consumer]);
    let exposed = config.expose_orders;
    let queues = queues::watch(&config.queue, &metrics).map_err(no_thread)?;
    let status = Status::new(
        &orders,
        &config.queue.queue,
        queues,
        &Services {
            inventory: &upstreams,
            billing_api: &billing_api,
            billing_consumer: &billing_consumer,
        },
        limits,
        exposed,
    );
    let status = Arc::new(status.map_err(no_thread)?);
    let workers = config.http.workers;
    // A hall for each: a dead inventory does not stop orders, nor a blocked broker movies.
    let access = Arc::new(Access::new(&config.access)?);
    let movies = {
        let (access, upstreams) = (Arc::clone(&access), Arc::clone(&upstreams));
        Hall::new("/api/movies", workers, api::MOVIES, move || Movies {
            access: Arc::clone(&access),
            inventory: Proxy::new(&upstreams, limits),
        })
    };
    let billing = {
        let billing = Billing {
            access: Arc::clone(&access),
            orders: orders.clone(),
        };
        Hall::new("/api/billing", workers, api::BILLING, move || {
            billing.clone()
        })
    };
    let status = {
        let onlookers = Onlookers {
            access: Arc::clone(&access),
            status,
        };
        Hall::new("/api/status", STATUS_WORKERS, status::ROUTES, move || {
            onlookers.clone()
        })
    };
    let read_from_billing = |prefix, routes| {
        let (access, billing_api) = (Arc::clone(&access), Arc::clone(&billing_api));
        Hall::new(prefix, RECORDED_ORDERS_WORKERS, routes, move || {
            RecordedOrders {
                access: Arc::clone(&access),
                billing: Proxy::new(&billing_api, limits),
            }
        })
    };
    let console = Console::new();
    let console = Hall::new("/", 1, console::ROUTES, move || console.clone());
    let dependencies = move || {
        let (inventory, orders) = (Proxy::new(&upstreams, limits), orders.clone());
        move || {
            vec![
                Dependency {
                    name: "inventory",
                    state: inventory.is_up().into(),
                },
                Dependency {
                    name: "rabbitmq",
                    state: orders.state(),
                },
            ]
        }
    };
    let openapi = Hall::new(documents::OPENAPI_PATH, 1, documents::OPENAPI_ROUTES, || ());
    let mut halls = vec![movies, billing, status, console, openapi];
    if exposed {
        halls.push(read_from_billing("/api/orders", api::RECORDED_ORDERS));
        halls.push(read_from_billing("/api/dead-letters", api::DEAD_LETTERS));
    }
    let server = Server::start(&config.http, halls, dependencies, &metrics, shutdown)?;
    Ok(Gateway { server, publishing })
}

impl Gateway {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Running for Gateway {
    /// The publisher ends when every client has an answer. Threads that only ask hold nothing that
    /// would have to be waited for.
    fn join(self) {
        self.server.join();
        self.publishing.end();
    }
}
