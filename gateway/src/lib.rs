//! The API gateway: `forward` and `proxy` pass requests on to services, `publisher` publishes orders, `api` has
//! the routes; `status` and `console` are for operators.

mod config;

mod access;
mod api;
mod connection;
mod documents;
mod forward;
mod idempotency_keys;
mod probe;
mod proxy;
mod publisher;
mod rate_limit;
mod upstreams;

mod console;
mod probe_thread;
mod queue_monitor;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use common::http::{AnyBulkhead, Bulkhead, Dependency, Server};
use common::metrics::Metrics;
use common::process::StartError;
use common::shutdown::Shutdown;

pub use access::AccessConfig;
pub use config::{Config, UpstreamLimits};

use access::Access;
use console::Console;
use forward::Forwarder;
use probe::Probe;
use publisher::OrderSender;
use status::{PlatformStatus, ProbedServices};
use upstreams::Upstreams;

/// Two slots suffice, since all requests for the status share one snapshot a second.
const STATUS_SLOTS: usize = 2;

/// Billing-api has this number of slots for orders, and for dead letters.
const RECORDED_ORDERS_SLOTS: usize = 4;

/// The running service.
pub type Gateway = Server;

/// Starts the service; `main` and the tests call this function.
pub fn start(config: &Config, shutdown: &Shutdown) -> Result<Gateway, StartError> {
    let metrics = Metrics::new();
    let (orders, publisher) = publisher::start(&config.queue, &metrics)?;
    let services = |name, addresses: &[SocketAddr]| {
        Upstreams::new(name, addresses, config.http.operations_key.clone())
    };
    let upstreams = services("the inventory", &config.inventories);
    probe::start_health_checks(&upstreams, shutdown)?;
    let billing_api = services("billing", &[config.billing_api]);
    let billing_consumer = services("the consumer", &[config.billing_consumer]);
    let exposed = config.expose_orders;
    let queue_monitor = queue_monitor::start(&config.queue, &metrics)?;
    let status = Arc::new(PlatformStatus::new(
        &orders,
        &config.queue.queue,
        queue_monitor,
        &ProbedServices {
            inventory: &upstreams,
            billing_api: &billing_api,
            billing_consumer: &billing_consumer,
        },
        exposed,
    )?);
    let access = Arc::new(Access::new(&config.access)?);
    let bulkheads = bulkheads(
        config,
        &access,
        &orders,
        &status,
        [&upstreams, &billing_api],
    );
    let dependencies = move || {
        let (inventory, orders) = (Probe::new(&upstreams), orders.clone());
        move || {
            vec![
                Dependency::new("inventory", inventory.is_up()),
                Dependency::new("rabbitmq", orders.state()),
            ]
        }
    };
    let server = Server::start(&config.http, bulkheads, dependencies, &metrics, shutdown)?;
    // A shutdown does not wait for the threads that probe.
    Ok(server.with_end(|| publisher.end()))
}

/// Makes a bulkhead for each kind of request, so that an outage of the inventory stops no order, and an alarm
/// of the broker stops no movie.
fn bulkheads(
    config: &Config,
    access: &Arc<Access>,
    orders: &OrderSender,
    status: &Arc<PlatformStatus>,
    [inventory, billing]: [&Arc<Upstreams>; 2],
) -> Vec<Arc<dyn AnyBulkhead>> {
    let (slots, limits) = (config.http.slots, &config.http.limits);
    let forwarding = |prefix, slots, routes, services: &Arc<Upstreams>| {
        let (services, limits_behind) = (Arc::clone(services), config.limits);
        Bulkhead::new(prefix, slots, routes, limits, move || {
            Forwarder::new(&services, limits_behind)
        })
    };
    let movies = forwarding("/api/movies", slots, api::MOVIES, inventory);
    let movies = movies.with_guard({
        let access = Arc::clone(access);
        move |head| access.check(head)
    });
    let placing = {
        let (orders, access) = (orders.clone(), Arc::clone(access));
        Bulkhead::new("/api/billing", slots, api::BILLING, limits, move || {
            orders.clone()
        })
        .with_guard(move |head| api::may_place_order(&access, head))
    };
    let status = Arc::clone(status);
    let status = Bulkhead::new(
        "/api/status",
        STATUS_SLOTS,
        status::ROUTES,
        limits,
        move || Arc::clone(&status),
    );
    let status = status.with_guard({
        let access = Arc::clone(access);
        move |head| {
            access.check_status(head)?;
            head.require_query_of(&[])
        }
    });
    // Where keys are in force, only administrators may read recorded orders.
    let read_from_billing = |prefix, routes| {
        let access = Arc::clone(access);
        forwarding(prefix, RECORDED_ORDERS_SLOTS, routes, billing)
            .with_guard(move |head| access.check_administrator(head))
    };
    let console = Console::new();
    let console = Bulkhead::new("/", 1, console::ROUTES, limits, move || console.clone());
    let documents = Bulkhead::new(
        documents::OPENAPI_PATH,
        1,
        documents::OPENAPI_ROUTES,
        limits,
        || (),
    );
    let mut bulkheads: Vec<Arc<dyn AnyBulkhead>> = vec![
        Arc::new(movies),
        Arc::new(placing),
        Arc::new(status),
        Arc::new(console),
        Arc::new(documents),
    ];
    if config.expose_orders {
        let dead_letters = read_from_billing("/api/dead-letters", api::DEAD_LETTERS);
        bulkheads.push(Arc::new(read_from_billing(
            "/api/orders",
            api::RECORDED_ORDERS,
        )));
        bulkheads.push(Arc::new(dead_letters));
    }
    bulkheads
}
