//! The faults of the drill: faults of the programs, of the connections between them, and changes that others
//! make to their tables, sessions and queue.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use amiquip::QueueDeleteOptions;
use testkit::{Client, Program, Relay, TestDatabase};

use crate::order_client::OrderClient;
use crate::platform_processes::{PlatformProcesses, lock};
use crate::wait_until_ready;

/// A fault: how it begins and how it ends.
pub struct Fault {
    /// Its name in the table.
    pub name: &'static str,
    /// The shortest time that it lasts.
    pub lasts: Duration,
    /// What must be true of orders while it lasts.
    pub expectation: Expectation,
    /// Begins the fault.
    pub inject: Box<dyn Fn(&mut PlatformProcesses)>,
    /// Ends the fault, as a supervisor or an operator would.
    pub repair: Box<dyn Fn(&mut PlatformProcesses)>,
}

/// What must be true of orders while a fault lasts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expectation {
    /// Orders may be recorded or not.
    Anything,
    /// No order can be recorded, and no consumer is ready.
    NoneIsRecorded,
    /// Some orders wait, the others are recorded, and the consumers are ready.
    OthersAreRecorded,
}

impl Fault {
    /// Makes a fault of two functions.
    pub fn new(
        name: &'static str,
        seconds: u64,
        inject: impl Fn(&mut PlatformProcesses) + 'static,
        repair: impl Fn(&mut PlatformProcesses) + 'static,
    ) -> Self {
        Self {
            name,
            lasts: Duration::from_secs(seconds),
            expectation: Expectation::Anything,
            inject: Box::new(inject),
            repair: Box::new(repair),
        }
    }

    /// Adds what must be true while the fault lasts.
    #[must_use]
    pub fn expecting(self, expectation: Expectation) -> Self {
        Self {
            expectation,
            ..self
        }
    }
}

/// All faults that can be made without stopping the servers.
#[must_use]
pub fn faults() -> Vec<Fault> {
    let mut faults = faults_of_programs();
    faults.extend(faults_of_connections());
    faults.extend(faults_of_others());
    faults
}

fn faults_of_programs() -> Vec<Fault> {
    vec![
        Fault::new(
            "a consumer: kill -9",
            1,
            |platform| drop(platform.consumers[0].take()),
            |platform| platform.start_consumer(0),
        ),
        Fault::new(
            "a consumer: SIGINT",
            0,
            |platform| ended_in_good_order(platform.consumers[1].take()),
            |platform| platform.start_consumer(1),
        ),
        Fault::new(
            "both consumers: kill -9",
            1,
            |platform| {
                platform
                    .consumers
                    .iter_mut()
                    .for_each(|consumer| drop(consumer.take()));
            },
            |platform| {
                (0..platform.consumers.len()).for_each(|number| platform.start_consumer(number));
            },
        ),
        Fault::new(
            "gateway: kill -9",
            1,
            |platform| drop(platform.gateway.take()),
            PlatformProcesses::start_gateway,
        ),
        Fault::new(
            "gateway: SIGINT",
            0,
            |platform| ended_in_good_order(platform.gateway.take()),
            PlatformProcesses::start_gateway,
        ),
        Fault::new(
            "an inventory: kill -9",
            1,
            |platform| drop(platform.inventories[0].take()),
            |platform| platform.start_inventory(0),
        ),
        Fault::new(
            "an inventory: SIGINT",
            0,
            |platform| ended_in_good_order(platform.inventories[1].take()),
            |platform| platform.start_inventory(1),
        ),
    ]
}

fn ended_in_good_order(program: Option<Program>) {
    let program = program.expect("it runs");
    program.signal("INT");
    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

fn faults_of_connections() -> Vec<Fault> {
    use Expectation::{Anything, NoneIsRecorded};
    [
        faults_of_connection(
            ["gateway to inventory: cut", "gateway to inventory: mute"],
            Anything,
            |platform| &platform.gateway_to_inventories[0],
        ),
        faults_of_connection(
            [
                "inventories to PostgreSQL: cut",
                "inventories to PostgreSQL: mute",
            ],
            Anything,
            |platform| &platform.inventories_to_postgresql,
        ),
        faults_of_connection(
            ["gateway to RabbitMQ: cut", "gateway to RabbitMQ: mute"],
            Anything,
            |platform| &platform.gateway_to_rabbitmq,
        ),
        faults_of_connection(
            ["consumers to RabbitMQ: cut", "consumers to RabbitMQ: mute"],
            Anything,
            |platform| &platform.consumers_to_rabbitmq,
        ),
        faults_of_connection(
            [
                "consumers to PostgreSQL: cut",
                "consumers to PostgreSQL: mute",
            ],
            NoneIsRecorded,
            |platform| &platform.consumers_to_postgresql,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A connection that is closed, and one on which no more bytes arrive.
fn faults_of_connection(
    [cut, mute]: [&'static str; 2],
    expectation: Expectation,
    relay: fn(&PlatformProcesses) -> &Relay,
) -> [Fault; 2] {
    let repair = move |platform: &mut PlatformProcesses| relay(platform).restore();
    [
        Fault::new(cut, 2, move |platform| relay(platform).cut(), repair),
        Fault::new(mute, 6, move |platform| relay(platform).freeze(), repair),
    ]
    .map(|fault| fault.expecting(expectation))
}

/// Changes that operators and other programs make to the tables, sessions and queue of the platform.
fn faults_of_others() -> Vec<Fault> {
    vec![
        fault_of_open_transaction("orders: LOCK TABLE", Expectation::NoneIsRecorded, |_| {
            "LOCK TABLE orders IN EXCLUSIVE MODE".to_owned()
        }),
        fault_of_open_transaction(
            "dead letters: LOCK TABLE",
            Expectation::OthersAreRecorded,
            |_| "LOCK TABLE dead_letters IN EXCLUSIVE MODE".to_owned(),
        ),
        fault_of_open_transaction(
            "one message id: open transaction",
            Expectation::OthersAreRecorded,
            |id| {
                format!(
                    "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
                     VALUES ('{id}', 'nobody', 1, 1)"
                )
            },
        ),
        Fault::new(
            "orders: REVOKE INSERT",
            0,
            |platform| {
                platform
                    .orders
                    .execute("REVOKE INSERT ON orders FROM current_user");
            },
            |platform| {
                platform
                    .orders
                    .execute("GRANT INSERT ON orders TO current_user");
            },
        )
        .expecting(Expectation::NoneIsRecorded),
        Fault::new("sessions: terminated", 0, terminate_sessions, |_| {}),
        Fault::new("the queue: deleted while empty", 0, delete_queue, |_| {}),
    ]
}

/// A transaction that an operator left open, and meanwhile an order with the id that `statement` gets.
fn fault_of_open_transaction(
    name: &'static str,
    expectation: Expectation,
    statement: impl Fn(&str) -> String + 'static,
) -> Fault {
    let forgotten = Rc::new(RefCell::new(None));
    let ended = Rc::clone(&forgotten);
    Fault::new(
        name,
        0,
        move |platform| {
            let name = format!("held-{}", lock(&platform.shared.sent_messages).len());
            let mut client = platform.orders.connect();
            let begun =
                client.batch_execute(&format!("BEGIN; {}", statement(&format!("{name}-1"))));
            begun.expect("a transaction");
            *forgotten.borrow_mut() = Some(client);
            OrderClient::new(name, &platform.shared).place_surely();
        },
        move |_| drop(ended.borrow_mut().take()),
    )
    .expecting(expectation)
}

/// Terminates the sessions of the programs, which connect to PostgreSQL from the ports of the relays.
fn terminate_sessions(platform: &mut PlatformProcesses) {
    let relays = [
        &platform.consumers_to_postgresql,
        &platform.inventories_to_postgresql,
    ];
    let ports = relays.into_iter().flat_map(Relay::ports);
    let ports: Vec<i32> = ports.map(i32::from).collect();
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = ANY ($1)";
    assert!(!platform.orders.query(sql, &[&ports]).is_empty());
}

/// Deletes the queue while it is empty and no consumer has an unacknowledged message.
fn delete_queue(platform: &mut PlatformProcesses) {
    let shared = Arc::clone(&platform.shared);
    let _no_traffic = shared.traffic.write();
    platform.wait_until_all_is_recorded();
    platform.queue.on_channel(|channel| {
        let options = QueueDeleteOptions {
            if_unused: false,
            if_empty: true,
        };
        channel
            .queue_delete(platform.queue.name(), options)
            .expect("an empty queue");
    });
}

/// An inventory whose database lacks rows of the other one, as a replica that lags behind. It breaks the promise of the
/// platform, and is not a fault of the drill.
#[must_use]
pub fn fault_of_a_lagging_inventory() -> Fault {
    let lagging = RefCell::new(None);
    Fault::new(
        "an inventory lags behind",
        2,
        move |platform| {
            let movies = TestDatabase::create();
            let inventory = platform.start_inventory_on(&movies);
            wait_until_ready(&Client::new(inventory.address()));
            let relay = &platform.gateway_to_inventories[0];
            relay.cut();
            relay.lead_to(inventory.address());
            relay.restore();
            *lagging.borrow_mut() = Some((inventory, movies));
        },
        |platform| {
            platform.gateway_to_inventories[0].cut();
            platform.start_inventory(0);
            platform.gateway_to_inventories[0].restore();
        },
    )
}
