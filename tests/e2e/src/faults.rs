//! What goes wrong in the drill, and how it ends: the faults of the programs, of the links between
//! them, and of what others do to their tables, sessions and queue.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use amiquip::QueueDeleteOptions;
use testkit::{Client, Program, Relay, TestDatabase};

use crate::orders::Orders;
use crate::stage::{Stage, lock};
use crate::wait_until_ready;

/// Something that goes wrong, and how it ends.
pub struct Fault {
    /// What goes wrong, for the table.
    pub name: &'static str,
    /// How long it lasts at least.
    pub lasts: Duration,
    /// What becomes of orders while it lasts.
    pub meanwhile: Meanwhile,
    /// Makes it go wrong.
    pub strike: Box<dyn Fn(&mut Stage)>,
    /// Ends it, as a supervisor or an operator would.
    pub mend: Box<dyn Fn(&mut Stage)>,
}

/// What becomes of orders while a fault lasts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// They may be recorded or not.
    Anything,
    /// None can be recorded, and every consumer says so.
    NoneIsRecorded,
    /// Some wait, the others are recorded, and the consumers say so.
    OthersAreRecorded,
}

impl Fault {
    /// A fault of two functions.
    pub fn new(
        name: &'static str,
        seconds: u64,
        strike: impl Fn(&mut Stage) + 'static,
        mend: impl Fn(&mut Stage) + 'static,
    ) -> Self {
        Self {
            name,
            lasts: Duration::from_secs(seconds),
            meanwhile: Meanwhile::Anything,
            strike: Box::new(strike),
            mend: Box::new(mend),
        }
    }

    /// Has something be looked at while the fault lasts.
    #[must_use]
    pub fn meanwhile(self, meanwhile: Meanwhile) -> Self {
        Self { meanwhile, ..self }
    }
}

/// All that need no power over the servers.
#[must_use]
pub fn faults() -> Vec<Fault> {
    let mut faults = faults_of_programs();
    faults.extend(faults_of_links());
    faults.extend(faults_of_others());
    faults
}

fn faults_of_programs() -> Vec<Fault> {
    vec![
        Fault::new(
            "a consumer: kill -9",
            1,
            |stage| drop(stage.consumers[0].take()),
            |stage| stage.start_consumer(0),
        ),
        Fault::new(
            "a consumer: SIGINT",
            0,
            |stage| ended_in_good_order(stage.consumers[1].take()),
            |stage| stage.start_consumer(1),
        ),
        Fault::new(
            "both consumers: kill -9",
            1,
            |stage| {
                stage
                    .consumers
                    .iter_mut()
                    .for_each(|consumer| drop(consumer.take()));
            },
            |stage| (0..stage.consumers.len()).for_each(|number| stage.start_consumer(number)),
        ),
        Fault::new(
            "gateway: kill -9",
            1,
            |stage| drop(stage.gateway.take()),
            Stage::start_gateway,
        ),
        Fault::new(
            "gateway: SIGINT",
            0,
            |stage| ended_in_good_order(stage.gateway.take()),
            Stage::start_gateway,
        ),
        Fault::new(
            "an inventory: kill -9",
            1,
            |stage| drop(stage.inventories[0].take()),
            |stage| stage.start_inventory(0),
        ),
        Fault::new(
            "an inventory: SIGINT",
            0,
            |stage| ended_in_good_order(stage.inventories[1].take()),
            |stage| stage.start_inventory(1),
        ),
    ]
}

fn ended_in_good_order(program: Option<Program>) {
    let program = program.expect("it runs");
    program.signal("INT");
    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

fn faults_of_links() -> Vec<Fault> {
    use Meanwhile::{Anything, NoneIsRecorded};
    [
        faults_of_link(
            ["gateway to inventory: cut", "gateway to inventory: mute"],
            Anything,
            |stage| &stage.gateway_to_inventories[0],
        ),
        faults_of_link(
            [
                "inventories to PostgreSQL: cut",
                "inventories to PostgreSQL: mute",
            ],
            Anything,
            |stage| &stage.inventories_to_postgresql,
        ),
        faults_of_link(
            ["gateway to RabbitMQ: cut", "gateway to RabbitMQ: mute"],
            Anything,
            |stage| &stage.gateway_to_rabbitmq,
        ),
        faults_of_link(
            ["consumers to RabbitMQ: cut", "consumers to RabbitMQ: mute"],
            Anything,
            |stage| &stage.consumers_to_rabbitmq,
        ),
        faults_of_link(
            [
                "consumers to PostgreSQL: cut",
                "consumers to PostgreSQL: mute",
            ],
            NoneIsRecorded,
            |stage| &stage.consumers_to_postgresql,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A connection that is closed, and one that says nothing any more.
fn faults_of_link(
    [cut, mute]: [&'static str; 2],
    meanwhile: Meanwhile,
    link: fn(&Stage) -> &Relay,
) -> [Fault; 2] {
    let mend = move |stage: &mut Stage| link(stage).restore();
    [
        Fault::new(cut, 2, move |stage| link(stage).cut(), mend),
        Fault::new(mute, 6, move |stage| link(stage).freeze(), mend),
    ]
    .map(|fault| fault.meanwhile(meanwhile))
}

/// What operators and other programs do to the tables, sessions and queue of the platform.
fn faults_of_others() -> Vec<Fault> {
    vec![
        fault_of_open_transaction("orders: LOCK TABLE", Meanwhile::NoneIsRecorded, |_| {
            "LOCK TABLE orders IN EXCLUSIVE MODE".to_owned()
        }),
        fault_of_open_transaction(
            "dead letters: LOCK TABLE",
            Meanwhile::OthersAreRecorded,
            |_| "LOCK TABLE dead_letters IN EXCLUSIVE MODE".to_owned(),
        ),
        fault_of_open_transaction(
            "one message id: open transaction",
            Meanwhile::OthersAreRecorded,
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
            |stage| {
                stage
                    .orders
                    .execute("REVOKE INSERT ON orders FROM current_user");
            },
            |stage| {
                stage
                    .orders
                    .execute("GRANT INSERT ON orders TO current_user");
            },
        )
        .meanwhile(Meanwhile::NoneIsRecorded),
        Fault::new("sessions: terminated", 0, terminate_sessions, |_| {}),
        Fault::new("the queue: deleted while empty", 0, delete_queue, |_| {}),
    ]
}

/// A transaction that an operator forgot, and meanwhile an order with the id that `statement` gets.
fn fault_of_open_transaction(
    name: &'static str,
    meanwhile: Meanwhile,
    statement: impl Fn(&str) -> String + 'static,
) -> Fault {
    let forgotten = Rc::new(RefCell::new(None));
    let ended = Rc::clone(&forgotten);
    Fault::new(
        name,
        0,
        move |stage| {
            let name = format!("held-{}", lock(&stage.shared.book).len());
            let mut client = stage.orders.connect();
            let begun =
                client.batch_execute(&format!("BEGIN; {}", statement(&format!("{name}-1"))));
            begun.expect("a transaction");
            *forgotten.borrow_mut() = Some(client);
            Orders::new(name, &stage.shared).place_surely();
        },
        move |_| drop(ended.borrow_mut().take()),
    )
    .meanwhile(meanwhile)
}

/// Those of the programs, which come to PostgreSQL from the ports of the relays.
fn terminate_sessions(stage: &mut Stage) {
    let relays = [
        &stage.consumers_to_postgresql,
        &stage.inventories_to_postgresql,
    ];
    let ports = relays.into_iter().flat_map(Relay::ports);
    let ports: Vec<i32> = ports.map(i32::from).collect();
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = ANY ($1)";
    assert!(!stage.orders.query(sql, &[&ports]).is_empty());
}

/// Where nothing is in it and no consumer has anything in hand, nothing goes with it.
fn delete_queue(stage: &mut Stage) {
    let shared = Arc::clone(&stage.shared);
    let _no_traffic = shared.traffic.write();
    stage.wait_until_all_is_recorded();
    stage.queue.on_channel(|channel| {
        let options = QueueDeleteOptions {
            if_unused: false,
            if_empty: true,
        };
        channel
            .queue_delete(stage.queue.name(), options)
            .expect("an empty queue");
    });
}

/// An inventory that does not know what the other one knows, as one on a replica that lags
/// behind. It breaks what the platform promises, and is none of the drill's faults.
#[must_use]
pub fn fault_of_a_lagging_inventory() -> Fault {
    let lagging = RefCell::new(None);
    Fault::new(
        "an inventory lags behind",
        2,
        move |stage| {
            let movies = TestDatabase::create();
            let inventory = stage.start_inventory_on(&movies);
            wait_until_ready(&Client::new(inventory.address()));
            let relay = &stage.gateway_to_inventories[0];
            relay.cut();
            relay.lead_to(inventory.address());
            relay.restore();
            *lagging.borrow_mut() = Some((inventory, movies));
        },
        |stage| {
            stage.gateway_to_inventories[0].cut();
            stage.start_inventory(0);
            stage.gateway_to_inventories[0].restore();
        },
    )
}
