//! The whole system in one process: each service is started by the function that its `main` calls, with ports,
//! a schema and a queue of its own. This crate has the code that the tests of the whole system share.

pub mod drill;
pub mod faults;
pub mod flood;
pub mod history;
mod movie_clients;
mod order_client;
mod platform_processes;
mod raw_publisher;

pub use platform_processes::PlatformProcesses;

use std::path::PathBuf;
use std::process::Command;

use billing::{ApiConfig, BillingApi, BillingConsumer, ConsumerConfig};
use common::amqp::QueueConfig;
use common::http::HttpConfig;
use gateway::{AccessConfig, Gateway, UpstreamLimits};
use inventory::Inventory;
use serde_json::{Value, json};
use testkit::{Client, Relay, Service, TestDatabase, TestQueue, eventually};

/// The number of slots is small, since the test server has few connections.
const WORKERS: usize = 2;

/// An inventory with its movies.
pub struct TestInventory {
    /// The running service.
    pub service: Service<Inventory>,
    _database: TestDatabase,
}

impl TestInventory {
    /// Starts an inventory without movies.
    #[must_use]
    pub fn start() -> Self {
        let database = TestDatabase::create();
        let config = inventory::Config {
            http: http(),
            database: database.config(),
        };
        let service = Service::start(
            |shutdown| inventory::start(&config, shutdown),
            Inventory::address,
        );
        Self {
            service,
            _database: database,
        }
    }
}

/// The platform: gateway, inventory, and the two programs of billing.
pub struct Platform {
    /// The gateway.
    pub gateway: Service<Gateway>,
    /// The inventory.
    pub movies: TestInventory,
    /// billing-api, which lists recorded orders.
    pub billing_api: Service<BillingApi>,
    /// The relay between the gateway and the inventory.
    pub relay_to_inventory: Relay,
    /// The relay between the gateway and the broker.
    pub relay_to_broker: Relay,
    /// The queue between the gateway and billing.
    pub queue: TestQueue,
    /// The relay between the gateway and the consumer, which has another port after each start.
    relay_to_consumer: Relay,
    consumer: Option<Service<BillingConsumer>>,
    consumer_config: ConsumerConfig,
    _orders: TestDatabase,
}

impl Platform {
    /// Starts the whole platform, and returns when it is ready.
    #[must_use]
    pub fn start() -> Self {
        let mut platform = Self::start_without_consumer();
        platform.start_consumer();
        platform
    }

    /// Starts the platform without the consumer.
    #[must_use]
    pub fn start_without_consumer() -> Self {
        let movies = TestInventory::start();
        let orders = TestDatabase::create().migrated(billing::MIGRATIONS);
        let queue = TestQueue::create();
        let api_config = ApiConfig {
            http: http(),
            database: orders.reader(),
        };
        let billing_api = Service::start(
            |shutdown| billing::start_api(&api_config, shutdown),
            BillingApi::address,
        );
        let inventory = movies.service.client.address();
        let relay_to_inventory = Relay::up(&inventory.ip().to_string(), inventory.port());
        let relay_to_broker = queue.relay_up();
        let relay_to_consumer = Relay::up("127.0.0.1", 1);
        let gateway_config = gateway::Config {
            http: http(),
            inventories: vec![relay_to_inventory.address()],
            billing_api: billing_api.client.address(),
            billing_consumer: relay_to_consumer.address(),
            expose_orders: true,
            limits: UpstreamLimits::default(),
            access: AccessConfig::default(),
            queue: QueueConfig {
                brokers: relay_to_broker.address().into(),
                ..queue.config()
            },
        };
        let gateway = Service::start(
            |shutdown| gateway::start(&gateway_config, shutdown),
            Gateway::address,
        );
        wait_until_ready(&gateway.client);
        wait_until_ready(&billing_api.client);
        Self {
            gateway,
            movies,
            billing_api,
            relay_to_inventory,
            relay_to_broker,
            relay_to_consumer,
            consumer: None,
            consumer_config: ConsumerConfig {
                dead_letters_bytes_max: 1 << 30,
                http: http(),
                database: orders.config(),
                queue: queue.config(),
            },
            queue,
            _orders: orders,
        }
    }

    /// Starts the consumer, and returns when it consumes.
    pub fn start_consumer(&mut self) {
        let consumer = Service::start(
            |shutdown| billing::start_consumer(&self.consumer_config, shutdown),
            BillingConsumer::address,
        );
        wait_until_ready(&consumer.client);
        self.relay_to_consumer.lead_to(consumer.client.address());
        self.consumer = Some(consumer);
    }

    /// Stops the consumer, and waits for its end.
    pub fn stop_consumer(&mut self) {
        self.consumer = None;
    }

    /// Places an order at the gateway; returns its message id.
    ///
    /// # Panics
    /// If it is not confirmed.
    #[must_use]
    pub fn place(&self, order: &Value) -> String {
        let reply = self.gateway.client.post("/api/billing", order);
        let id = reply.json["message_id"].as_str().unwrap_or("none");
        let answer = json!({ "message": "Message posted", "message_id": id });
        assert_eq!((reply.status, &reply.json), (200, &answer));
        id.to_owned()
    }

    /// The recorded orders, as `billing-api` lists them.
    #[must_use]
    pub fn recorded(&self) -> Vec<Value> {
        let reply = self.billing_api.client.get("/api/orders");
        reply.json.as_array().cloned().unwrap_or_default()
    }

    /// Waits until this number of orders is recorded; returns them.
    #[must_use]
    pub fn wait_for_orders(&self, count: usize) -> Vec<Value> {
        eventually("the orders are recorded", || self.recorded().len() >= count);
        self.recorded()
    }
}

/// The folder of this workspace's programs, in the profile of the test.
///
/// # Panics
/// If they cannot be built.
#[must_use]
pub fn programs() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package=gateway", "--package=billing"])
        .arg("--package=inventory")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.expect("cargo").success());
    let test = std::env::current_exe().expect("a path");
    let folder = test.ancestors().nth(2).expect("target/debug/deps/NAME");
    folder.to_owned()
}

/// Waits until a service is ready.
pub fn wait_until_ready(client: &Client) {
    eventually("a service is ready", || client.get("/ready").status == 200);
}

fn http() -> HttpConfig {
    HttpConfig::on_loopback(WORKERS)
}
