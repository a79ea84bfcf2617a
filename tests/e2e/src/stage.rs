//! What the drill is played on: the programs that orders and movies pass, each behind relays that
//! can fail.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;

use testkit::{Client, Program, Relay, TestDatabase, TestQueue, eventually};

use crate::wait_until_ready;

/// The gateway sends movies to each in turn.
const INVENTORIES: usize = 2;

/// Orders are delivered to each in turn.
const CONSUMERS: usize = 2;

/// The programs, and what the clients share.
pub struct Stage {
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
    pub(crate) shared: Arc<Shared>,
}

/// What the clients share.
pub(crate) struct Shared {
    /// Where the gateway is.
    pub(crate) door: Mutex<SocketAddr>,
    /// Held for reading during each request that brings an order: whoever holds it for writing
    /// knows that none is under way.
    pub(crate) traffic: RwLock<()>,
    /// All that was sent.
    pub(crate) book: Mutex<Vec<Entry>>,
    /// How often a message was answered with 200 or a confirm, and otherwise or not at all.
    answers: [AtomicUsize; 2],
}

/// A message in the book.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) id: String,
    /// It can never be recorded.
    pub(crate) unreadable: bool,
    /// With 200 or a confirm, at the first try or at a later one.
    pub(crate) answered: bool,
}

impl Shared {
    /// Notes a message that is about to be sent; its place in the book.
    pub(crate) fn note(&self, id: &str, unreadable: bool) -> usize {
        let mut book = lock(&self.book);
        book.push(Entry {
            id: id.to_owned(),
            unreadable,
            answered: false,
        });
        book.len() - 1
    }

    pub(crate) fn note_outcome(&self, place: usize, answered: bool) {
        self.answers[usize::from(!answered)].fetch_add(1, Ordering::Relaxed);
        lock(&self.book)[place].answered |= answered;
    }

    /// How often a message was answered with 200 or a confirm, and otherwise or not at all.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let [answered, otherwise] = &self.answers;
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        (count(answered), count(otherwise))
    }
}

/// How often each message id is a row.
pub(crate) struct Rows {
    recorded: HashMap<String, i64>,
    dead: HashMap<String, i64>,
}

impl Rows {
    /// How often this message is a row where it belongs.
    pub(crate) fn of(&self, entry: &Entry) -> i64 {
        let rows = if entry.unreadable {
            &self.dead
        } else {
            &self.recorded
        };
        rows.get(&entry.id).copied().unwrap_or(0)
    }

    pub(crate) fn forget(&mut self, entry: &Entry) {
        let rows = if entry.unreadable {
            &mut self.dead
        } else {
            &mut self.recorded
        };
        rows.remove(&entry.id);
    }

    /// Those that were not forgotten, and what they are.
    pub(crate) fn left(self) -> impl Iterator<Item = (String, &'static str)> {
        let recorded = self.recorded.into_keys().map(|id| (id, "recorded"));
        let dead = self.dead.into_keys().map(|id| (id, "a dead letter"));
        recorded.chain(dead)
    }
}

impl Stage {
    /// Starts the programs that are in that folder.
    #[must_use]
    pub fn start(programs: &Path) -> Self {
        let (orders, queue) = (TestDatabase::create(), TestQueue::create());
        let postgresql = orders.config();
        let relay_to_postgresql = || Relay::up(&postgresql.host, postgresql.port);
        let mut stage = Self {
            programs: programs.to_owned(),
            gateway_to_rabbitmq: queue.relay_up(),
            // Each leads to its inventory as soon as that is there.
            gateway_to_inventories: std::array::from_fn(|_| Relay::up("127.0.0.1", 1)),
            inventories_to_postgresql: relay_to_postgresql(),
            consumers_to_rabbitmq: queue.relay_up(),
            consumers_to_postgresql: relay_to_postgresql(),
            orders,
            movies: TestDatabase::create(),
            queue,
            gateway: None,
            inventories: std::array::from_fn(|_| None),
            consumers: std::array::from_fn(|_| None),
            shared: Arc::new(Shared {
                door: Mutex::new(([127, 0, 0, 1], 0).into()),
                traffic: RwLock::new(()),
                book: Mutex::default(),
                answers: Default::default(),
            }),
        };
        for number in 0..INVENTORIES {
            stage.start_inventory(number);
        }
        stage.start_gateway();
        for number in 0..CONSUMERS {
            stage.start_consumer(number);
        }
        let programs = stage.inventories.iter().chain(&stage.consumers);
        for program in programs.chain([&stage.gateway]).flatten() {
            wait_until_ready(&Client::new(program.address()));
        }
        stage
    }

    pub(crate) fn start_gateway(&mut self) {
        let gateway = self.start_program("api-gateway", self.vars_of_gateway());
        self.open_the_door_of(gateway);
    }

    /// A gateway that has a line for each request in this file, and tells its metrics to nobody without a key,
    /// takes the place of the one before; where it is.
    pub(crate) fn start_gateway_with_log(&mut self, log: &Path) -> SocketAddr {
        self.gateway = None;
        let mut vars = self.vars_of_gateway();
        let own = [("RUST_LOG", "info"), ("OPERATIONS_KEY", "a-key")];
        vars.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let path = self.programs.join("api-gateway");
        let gateway = Program::start_with_log(&path.to_string_lossy(), log, vars);
        self.open_the_door_of(gateway)
    }

    fn open_the_door_of(&mut self, gateway: Program) -> SocketAddr {
        let address = gateway.address();
        *lock(&self.shared.door) = address;
        self.gateway = Some(gateway);
        address
    }

    fn vars_of_gateway(&self) -> Vec<(String, String)> {
        let inventories = self.gateway_to_inventories.each_ref();
        let inventories = inventories.map(|relay| format!("http://{}", relay.address()));
        // Nobody reads orders through the gateway, nor its status: nobody listens on these ports.
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

    /// What `/ready` of each consumer that runs says.
    pub(crate) fn consumers_say(&self) -> Vec<u16> {
        let running = self.consumers.iter().flatten();
        let asked = running.map(|consumer| Client::new(consumer.address()).get("/ready"));
        asked.map(|reply| reply.status).collect()
    }

    pub(crate) fn is_recorded(&self, id: &str) -> bool {
        let sql = "SELECT 1 FROM orders WHERE message_id = $1";
        !self.orders.query(sql, &[&id]).is_empty()
    }

    pub(crate) fn rows(&self) -> Rows {
        let count = |table: &str| {
            let sql =
                format!("SELECT coalesce(message_id, 'none'), count(*) FROM {table} GROUP BY 1");
            let rows = self.orders.query(&sql, &[]);
            rows.iter().map(|row| (row.get(0), row.get(1))).collect()
        };
        Rows {
            recorded: count("orders"),
            dead: count("dead_letters"),
        }
    }

    /// Waits until all that was answered is a row, and nothing is ready in the queue.
    pub(crate) fn wait_until_all_is_recorded(&self) {
        eventually("the queue is empty, and its consumers idle", || {
            let consumers = self.consumers.iter().flatten().count();
            self.queue.counts() == Some((0, u32::try_from(consumers).unwrap_or(0)))
        });
        let answered = |entry: &&Entry| entry.answered;
        let mut missing: Vec<Entry> = lock(&self.shared.book)
            .iter()
            .filter(answered)
            .cloned()
            .collect();
        eventually("the last messages are recorded", || {
            let rows = self.rows();
            missing.retain(|entry| rows.of(entry) == 0);
            missing.is_empty()
        });
    }
}

/// A drill that fails tells where everything stands, while the programs still run.
impl Drop for Stage {
    #[expect(clippy::print_stderr, reason = "a panic is told there")]
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
        for entry in lock(&self.shared.book).iter() {
            if entry.answered && rows.of(entry) == 0 {
                eprintln!("answered, and no row: {}", entry.id);
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

/// With what all programs are told, and `own`. The later win.
fn vars_with(mut vars: Vec<(String, String)>, own: &[(&str, &str)]) -> Vec<(String, String)> {
    let common = [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("RUST_LOG", "info,access=error,order=error"),
    ];
    let pairs = common.iter().chain(own);
    vars.extend(pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    vars
}

/// The variables that name a server which is reached by that relay.
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
