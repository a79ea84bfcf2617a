//! The programs of the platform as processes, each behind relays that can fail, for the drill.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;

use testkit::{Client, Program, Relay, TestDatabase, TestQueue, eventually};

use crate::wait_until_ready;

/// The number of inventories, to which the gateway sends requests for movies in turn.
const INVENTORIES: usize = 2;

/// The number of consumers, to which RabbitMQ delivers orders in turn.
const CONSUMERS: usize = 2;

/// The programs, and the state that the clients share.
pub struct PlatformProcesses {
    programs: PathBuf,
    pub(crate) orders: TestDatabase,
    pub(crate) movies: TestDatabase,
    pub(crate) queue: TestQueue,
    pub(crate) gateway_to_rabbitmq: Relay,
    pub(crate) gateway_to_inventories: [Relay; INVENTORIES],
    pub(crate) inventories_to_postgresql: Relay,
    pub(crate) consumers_to_rabbitmq: Relay,
    pub(crate) consumers_to_postgresql: Relay,
    pub(crate) gateway: Option<Program>,
    pub(crate) inventories: [Option<Program>; INVENTORIES],
    pub(crate) consumers: [Option<Program>; CONSUMERS],
    pub(crate) shared: Arc<DrillState>,
}

/// The state that the clients of the drill share.
pub(crate) struct DrillState {
    /// The address of the gateway.
    pub(crate) gateway_address: Mutex<SocketAddr>,
    /// Locked for reading during each request for an order; while it is locked for writing, no order is in
    /// progress.
    pub(crate) traffic: RwLock<()>,
    /// All messages that were sent.
    pub(crate) sent_messages: Mutex<Vec<SentMessage>>,
    /// How often a message was answered with 200 or a confirm, and otherwise or not at all.
    answers: [AtomicUsize; 2],
}

/// A message that was sent.
#[derive(Clone)]
pub(crate) struct SentMessage {
    pub(crate) id: String,
    /// Whether the message can never be recorded.
    pub(crate) unreadable: bool,
    /// Whether it was answered with 200 or a confirm, at the first try or a later one.
    pub(crate) answered: bool,
}

impl DrillState {
    /// Adds a message that is about to be sent; returns its index.
    pub(crate) fn note(&self, id: &str, unreadable: bool) -> usize {
        let mut sent_messages = lock(&self.sent_messages);
        sent_messages.push(SentMessage {
            id: id.to_owned(),
            unreadable,
            answered: false,
        });
        sent_messages.len() - 1
    }

    pub(crate) fn note_outcome(&self, place: usize, answered: bool) {
        self.answers[usize::from(!answered)].fetch_add(1, Ordering::Relaxed);
        lock(&self.sent_messages)[place].answered |= answered;
    }

    /// How often a message was answered with 200 or a confirm, and otherwise or not at all.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let [answered, otherwise] = &self.answers;
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        (count(answered), count(otherwise))
    }
}

/// How many rows each message id has.
pub(crate) struct RowCounts {
    recorded: HashMap<String, i64>,
    dead: HashMap<String, i64>,
}

impl RowCounts {
    /// How many rows this message has in the table where it belongs.
    pub(crate) fn of(&self, message: &SentMessage) -> i64 {
        let rows = if message.unreadable {
            &self.dead
        } else {
            &self.recorded
        };
        rows.get(&message.id).copied().unwrap_or(0)
    }

    pub(crate) fn forget(&mut self, message: &SentMessage) {
        let rows = if message.unreadable {
            &mut self.dead
        } else {
            &mut self.recorded
        };
        rows.remove(&message.id);
    }

    /// The remaining message ids, and what their rows are.
    pub(crate) fn left(self) -> impl Iterator<Item = (String, &'static str)> {
        let recorded = self.recorded.into_keys().map(|id| (id, "recorded"));
        let dead = self.dead.into_keys().map(|id| (id, "a dead letter"));
        recorded.chain(dead)
    }
}

impl PlatformProcesses {
    /// Starts the programs in the folder.
    #[must_use]
    pub fn start(programs: &Path) -> Self {
        let (orders, queue) = (TestDatabase::create(), TestQueue::create());
        let mut platform = Self {
            programs: programs.to_owned(),
            gateway_to_rabbitmq: queue.relay_up(),
            // Each relay gets its inventory as target when the inventory has started.
            gateway_to_inventories: std::array::from_fn(|_| Relay::up("127.0.0.1", 1)),
            inventories_to_postgresql: orders.relay_up(),
            consumers_to_rabbitmq: queue.relay_up(),
            consumers_to_postgresql: orders.relay_up(),
            orders,
            movies: TestDatabase::create(),
            queue,
            gateway: None,
            inventories: std::array::from_fn(|_| None),
            consumers: std::array::from_fn(|_| None),
            shared: Arc::new(DrillState {
                gateway_address: Mutex::new(([127, 0, 0, 1], 0).into()),
                traffic: RwLock::new(()),
                sent_messages: Mutex::default(),
                answers: Default::default(),
            }),
        };
        for number in 0..INVENTORIES {
            platform.start_inventory(number);
        }
        platform.start_gateway();
        for number in 0..CONSUMERS {
            platform.start_consumer(number);
        }
        let programs = platform.inventories.iter().chain(&platform.consumers);
        for program in programs.chain([&platform.gateway]).flatten() {
            wait_until_ready(&Client::new(program.address()));
        }
        platform
    }

    pub(crate) fn start_gateway(&mut self) {
        let gateway = self.start_program("api-gateway", self.vars_of_gateway());
        self.set_gateway(gateway);
    }

    /// Replaces the gateway by one that logs each request to this file and whose metrics need a key; returns its
    /// address.
    pub(crate) fn start_gateway_with_log(&mut self, log: &Path) -> SocketAddr {
        self.gateway = None;
        let mut vars = self.vars_of_gateway();
        let own = [("RUST_LOG", "info"), ("OPERATIONS_KEY", "a-key")];
        vars.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let path = self.programs.join("api-gateway");
        let gateway = Program::start_with_log(&path.to_string_lossy(), log, vars);
        self.set_gateway(gateway)
    }

    fn set_gateway(&mut self, gateway: Program) -> SocketAddr {
        let address = gateway.address();
        *lock(&self.shared.gateway_address) = address;
        self.gateway = Some(gateway);
        address
    }

    fn vars_of_gateway(&self) -> Vec<(String, String)> {
        let inventories = self.gateway_to_inventories.each_ref();
        let inventories = inventories.map(|relay| format!("http://{}", relay.address()));
        // Nothing listens on these ports: the drill neither reads orders through the gateway nor its status.
        let vars = [
            ("API_GATEWAY_PORT", "0"),
            ("INVENTORY_URLS", &inventories.join(",")),
            ("BILLING_VM_IP", "127.0.0.1"),
            ("BILLING_API_PORT", "1"),
            ("BILLING_CONSUMER_PORT", "1"),
        ];
        let rabbitmq = vars_of("RABBITMQ", &self.gateway_to_rabbitmq);
        let servers = [self.queue.vars(), rabbitmq].concat();
        vars_with(servers, &vars)
    }

    pub(crate) fn start_consumer(&mut self, number: usize) {
        let servers = [
            self.orders.vars("BILLING_DB_NAME"),
            vars_of("POSTGRES", &self.consumers_to_postgresql),
            self.queue.vars(),
            vars_of("RABBITMQ", &self.consumers_to_rabbitmq),
        ];
        let port = [("BILLING_CONSUMER_PORT", "0")];
        let vars = vars_with(servers.concat(), &port);
        let consumer = self.start_program("billing-consumer", vars);
        self.consumers[number] = Some(consumer);
    }

    pub(crate) fn start_inventory(&mut self, number: usize) {
        let inventory = self.start_inventory_on(&self.movies);
        self.gateway_to_inventories[number].lead_to(inventory.address());
        self.inventories[number] = Some(inventory);
    }

    pub(crate) fn start_inventory_on(&self, movies: &TestDatabase) -> Program {
        let postgresql = vars_of("POSTGRES", &self.inventories_to_postgresql);
        let servers = [movies.vars("INVENTORY_DB_NAME"), postgresql].concat();
        let vars = vars_with(servers, &[("INVENTORY_API_PORT", "0")]);
        self.start_program("inventory-api", vars)
    }

    fn start_program(&self, name: &str, vars: Vec<(String, String)>) -> Program {
        let path = self.programs.join(name);
        Program::start(&path.to_string_lossy(), vars)
    }

    /// The status of the `/ready` of each consumer that runs.
    pub(crate) fn consumer_readiness(&self) -> Vec<u16> {
        let running = self.consumers.iter().flatten();
        let asked = running.map(|consumer| Client::new(consumer.address()).get("/ready"));
        asked.map(|reply| reply.status).collect()
    }

    pub(crate) fn is_recorded(&self, id: &str) -> bool {
        let sql = "SELECT 1 FROM orders WHERE message_id = $1";
        !self.orders.query(sql, &[&id]).is_empty()
    }

    pub(crate) fn rows(&self) -> RowCounts {
        let count = |table: &str| {
            let sql =
                format!("SELECT coalesce(message_id, 'none'), count(*) FROM {table} GROUP BY 1");
            let rows = self.orders.query(&sql, &[]);
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        };
        RowCounts {
            recorded: count("orders"),
            dead: count("dead_letters"),
        }
    }

    /// Waits until every message that was answered has a row, and the queue is empty.
    pub(crate) fn wait_until_all_is_recorded(&self) {
        eventually("the queue is empty, and its consumers idle", || {
            let consumers = self.consumers.iter().flatten().count();
            self.queue.counts() == Some((0, u32::try_from(consumers).unwrap_or(0)))
        });
        let answered = |message: &&SentMessage| message.answered;
        let mut missing: Vec<SentMessage> = lock(&self.shared.sent_messages)
            .iter()
            .filter(answered)
            .cloned()
            .collect();
        eventually("the last messages are recorded", || {
            let rows = self.rows();
            missing.retain(|message| rows.of(message) == 0);
            missing.is_empty()
        });
    }
}

/// Prints the state of the platform if the drill fails, while the programs still run.
impl Drop for PlatformProcesses {
    #[expect(clippy::print_stderr, reason = "a panic is printed there")]
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let programs = self.consumers.iter().chain([&self.gateway]).flatten();
        for program in programs {
            let metrics = Client::new(program.address()).try_send("GET", "/metrics", &[], None);
            let metrics = metrics.map_or_else(|error| error.to_string(), |reply| reply.text);
            eprintln!("{}\n{metrics}", program.log());
        }
        let rows = self.rows();
        eprintln!(
            "rows: {} orders, {} dead letters",
            rows.recorded.len(),
            rows.dead.len()
        );
        for message in lock(&self.shared.sent_messages).iter() {
            if message.answered && rows.of(message) == 0 {
                eprintln!("answered, but without a row: {}", message.id);
            }
        }
        let sql = "SELECT concat_ws(' ', pid, pg_blocking_pids(pid), application_name, state,
                          wait_event, now() - state_change, left(query, 200))
                     FROM pg_stat_activity WHERE datname = current_database()";
        for session in self.orders.query(sql, &[]) {
            eprintln!("session: {}", session.get::<_, String>(0));
        }
        eprintln!("queue: {:?} ready and consumers", self.queue.counts());
    }
}

/// Adds the variables of all programs, and `own`. Later variables override earlier ones.
fn vars_with(mut vars: Vec<(String, String)>, own: &[(&str, &str)]) -> Vec<(String, String)> {
    let common = [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("RUST_LOG", "info,access=error,order=error"),
    ];
    let pairs = common.iter().chain(own);
    vars.extend(pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    vars
}

/// The variables of a server that is reached through this relay.
fn vars_of(server: &str, relay: &Relay) -> Vec<(String, String)> {
    let address = relay.address();
    vec![
        (format!("{server}_HOST"), address.ip().to_string()),
        (format!("{server}_PORT"), address.port().to_string()),
    ]
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
