//! A drill: clients place orders, and read and change movies, without a pause while programs are
//! killed, servers stopped and links cut. At the end the books are compared: every order that was
//! answered 200 is recorded exactly once, and no order twice, whatever was answered; and each
//! movie is linearizable.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{Client, Program, Relay, TestDatabase, TestQueue, eventually};

use crate::history::{Answered, Asked, Operation, is_linearizable};
use crate::moviegoers::{Moviegoer, Movies};

/// Clients that place orders at the same time.
const CLIENTS: usize = 16;

/// Clients that read and change movies at the same time.
const MOVIEGOERS: usize = 6;

/// The gateway sends movies to each in turn.
const INVENTORIES: usize = 2;

/// How long a client rests after an order that was not confirmed.
const REST: Duration = Duration::from_millis(20);

/// How long the platform may take to be itself again after a fault.
const RECOVERY_LIMIT: Duration = Duration::from_mins(2);

/// The programs that orders and movies pass, each behind relays that can fail.
pub struct Stage {
    programs: PathBuf,
    database: TestDatabase,
    queue: TestQueue,
    movies: TestDatabase,
    gateway_to_inventories: [Relay; INVENTORIES],
    inventories_to_postgresql: Relay,
    inventories: [Option<Program>; INVENTORIES],
    gateway_to_rabbitmq: Relay,
    consumer_to_rabbitmq: Relay,
    consumer_to_postgresql: Relay,
    gateway: Option<Program>,
    consumer: Option<Program>,
    door: Arc<Mutex<SocketAddr>>,
}

impl Stage {
    /// Starts the programs that are in that folder.
    #[must_use]
    pub fn start(programs: &Path) -> Self {
        let (database, queue) = (TestDatabase::create(), TestQueue::create());
        let postgresql = database.config();
        let relay_to_postgresql = || Relay::up(&postgresql.host, postgresql.port);
        let mut stage = Self {
            programs: programs.to_owned(),
            movies: TestDatabase::create(),
            // Each leads to its inventory as soon as that is there.
            gateway_to_inventories: std::array::from_fn(|_| Relay::up("127.0.0.1", 1)),
            inventories_to_postgresql: relay_to_postgresql(),
            inventories: std::array::from_fn(|_| None),
            gateway_to_rabbitmq: queue.relay_up(),
            consumer_to_rabbitmq: queue.relay_up(),
            consumer_to_postgresql: relay_to_postgresql(),
            database,
            queue,
            gateway: None,
            consumer: None,
            door: Arc::new(Mutex::new(([127, 0, 0, 1], 0).into())),
        };
        for number in 0..INVENTORIES {
            stage.start_inventory(number);
        }
        stage.start_gateway();
        stage.start_consumer();
        stage.wait_until_all_are_ready();
        stage
    }

    fn wait_until_all_are_ready(&self) {
        let others = [&self.gateway, &self.consumer];
        for program in self.inventories.iter().chain(others).flatten() {
            let client = Client::new(program.address());
            eventually("a program is ready", || client.get("/ready").status == 200);
        }
    }

    fn start_gateway(&mut self) {
        let inventories = self.gateway_to_inventories.each_ref();
        let inventories = inventories.map(|relay| format!("http://{}", relay.address()));
        // Nobody reads orders through the gateway: the address is one where nobody listens.
        let vars = [
            ("API_GATEWAY_PORT", "0"),
            ("INVENTORY_URLS", &inventories.join(",")),
            ("BILLING_VM_IP", "127.0.0.1"),
            ("BILLING_API_PORT", "1"),
        ];
        let rabbitmq = vars_of("RABBITMQ", &self.gateway_to_rabbitmq);
        let servers = [self.queue.vars(), rabbitmq].concat();
        let gateway = self.start_program("api-gateway", servers, &vars);
        *lock(&self.door) = gateway.address();
        self.gateway = Some(gateway);
    }

    fn start_consumer(&mut self) {
        let servers = [
            self.database.vars("BILLING_DB_NAME"),
            vars_of("POSTGRES", &self.consumer_to_postgresql),
            self.queue.vars(),
            vars_of("RABBITMQ", &self.consumer_to_rabbitmq),
        ];
        let port = [("BILLING_CONSUMER_PORT", "0")];
        let consumer = self.start_program("billing-consumer", servers.concat(), &port);
        self.consumer = Some(consumer);
    }

    fn start_inventory(&mut self, number: usize) {
        let inventory = self.start_inventory_on(&self.movies);
        self.gateway_to_inventories[number].lead_to(inventory.address());
        self.inventories[number] = Some(inventory);
    }

    fn start_inventory_on(&self, movies: &TestDatabase) -> Program {
        let postgresql = vars_of("POSTGRES", &self.inventories_to_postgresql);
        let servers = [movies.vars("INVENTORY_DB_NAME"), postgresql].concat();
        self.start_program("inventory-api", servers, &[("INVENTORY_API_PORT", "0")])
    }

    /// Of the variables, the later win.
    fn start_program(
        &self,
        name: &str,
        mut vars: Vec<(String, String)>,
        own: &[(&str, &str)],
    ) -> Program {
        let common = [
            ("LISTEN_ADDRESS", "127.0.0.1"),
            ("RUST_LOG", "info,access=error,order=error"),
        ];
        let pairs = common.iter().chain(own);
        vars.extend(pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let path = self.programs.join(name);
        Program::start(&path.to_string_lossy(), vars)
    }

    /// How often each message id is recorded.
    fn recorded(&self) -> HashMap<String, i64> {
        let sql = "SELECT coalesce(message_id, 'none'), count(*) FROM orders GROUP BY 1";
        let rows = self.database.query(sql, &[]);
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    fn is_recorded(&self, id: &str) -> bool {
        let sql = "SELECT 1 FROM orders WHERE message_id = $1";
        !self.database.query(sql, &[&id]).is_empty()
    }
}

/// The variables that name a server which is reached by that relay.
fn vars_of(server: &str, relay: &Relay) -> Vec<(String, String)> {
    let address = relay.address();
    vec![
        (format!("{server}_HOST"), address.ip().to_string()),
        (format!("{server}_PORT"), address.port().to_string()),
    ]
}

/// Something that goes wrong, and how it ends.
pub struct Fault {
    /// What goes wrong, for the table.
    pub name: &'static str,
    /// How long it lasts.
    pub lasts: Duration,
    /// Makes it go wrong.
    pub strike: Box<dyn Fn(&mut Stage)>,
    /// Ends it, as a supervisor or an operator would.
    pub mend: Box<dyn Fn(&mut Stage)>,
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
            strike: Box::new(strike),
            mend: Box::new(mend),
        }
    }
}

/// The faults of the programs and of the links between them.
#[must_use]
pub fn faults_of_programs_and_links() -> Vec<Fault> {
    let mut faults = vec![
        Fault::new(
            "consumer: kill -9",
            1,
            |stage| drop(stage.consumer.take()),
            Stage::start_consumer,
        ),
        Fault::new(
            "gateway: kill -9",
            1,
            |stage| drop(stage.gateway.take()),
            Stage::start_gateway,
        ),
        Fault::new(
            "consumer: SIGINT",
            0,
            |stage| ended_in_good_order(stage.consumer.take()),
            Stage::start_consumer,
        ),
        Fault::new(
            "gateway: SIGINT",
            0,
            |stage| ended_in_good_order(stage.gateway.take()),
            Stage::start_gateway,
        ),
        Fault::new(
            "inventory: kill -9",
            1,
            |stage| drop(stage.inventories[0].take()),
            |stage| stage.start_inventory(0),
        ),
        Fault::new(
            "inventory: SIGINT",
            0,
            |stage| ended_in_good_order(stage.inventories[1].take()),
            |stage| stage.start_inventory(1),
        ),
    ];
    faults.extend(faults_of_link(
        ["gateway to inventory: cut", "gateway to inventory: mute"],
        |stage| &stage.gateway_to_inventories[0],
    ));
    faults.extend(faults_of_link(
        [
            "inventories to PostgreSQL: cut",
            "inventories to PostgreSQL: mute",
        ],
        |stage| &stage.inventories_to_postgresql,
    ));
    faults.extend(faults_of_link(
        ["gateway to RabbitMQ: cut", "gateway to RabbitMQ: mute"],
        |stage| &stage.gateway_to_rabbitmq,
    ));
    faults.extend(faults_of_link(
        ["consumer to RabbitMQ: cut", "consumer to RabbitMQ: mute"],
        |stage| &stage.consumer_to_rabbitmq,
    ));
    faults.extend(faults_of_link(
        [
            "consumer to PostgreSQL: cut",
            "consumer to PostgreSQL: mute",
        ],
        |stage| &stage.consumer_to_postgresql,
    ));
    faults
}

/// An inventory that does not know what the other one knows, as one on a replica that lags
/// behind. It breaks what the platform promises, and is none of the drill's faults.
#[must_use]
pub fn fault_of_a_lagging_inventory() -> Fault {
    let lagging = RefCell::new(None);
    Fault::new(
        "an inventory lags behind",
        1,
        move |stage| {
            let movies = TestDatabase::create();
            let inventory = stage.start_inventory_on(&movies);
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

/// A connection that is closed, and one that says nothing any more.
fn faults_of_link([cut, mute]: [&'static str; 2], link: fn(&Stage) -> &Relay) -> [Fault; 2] {
    let mend = move |stage: &mut Stage| link(stage).restore();
    [
        Fault::new(cut, 2, move |stage| link(stage).cut(), mend),
        Fault::new(mute, 8, move |stage| link(stage).freeze(), mend),
    ]
}

fn ended_in_good_order(program: Option<Program>) {
    let program = program.expect("it runs");
    program.signal("INT");
    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

/// What came of a fault.
pub struct Recovery {
    /// What went wrong.
    pub fault: &'static str,
    /// Orders that were answered 200 while it lasted, and otherwise.
    pub meanwhile: (usize, usize),
    /// From its end until an order was confirmed again.
    pub accepts_after: Duration,
    /// From its end until that order was recorded.
    pub records_after: Duration,
    /// From its end until a movie was created.
    pub creates_after: Duration,
}

/// What came of the whole drill.
pub struct Books {
    /// One for each fault.
    pub recoveries: Vec<Recovery>,
    /// Orders that were answered 200.
    pub answered: usize,
    /// Orders that were answered otherwise, or not at all, and not tried again.
    pub unsure: usize,
    /// Of those, how many were recorded all the same.
    pub unsure_recorded: usize,
    /// How many movies were asked for, and how often all together.
    pub movies: (usize, usize),
    /// What does not add up, in words; nothing, where all is well.
    pub wrong: Vec<String>,
}

/// Runs faults one after the other under a constant load, to the last or until `enough` says
/// so of how many faults there were and how many orders were answered 200. `tell` hears of each
/// fault when it is over.
///
/// # Panics
/// When the platform does not recover from one.
pub fn run<'f>(
    stage: &mut Stage,
    faults: impl IntoIterator<Item = &'f Fault>,
    enough: impl Fn(usize, usize) -> bool,
    tell: impl Fn(&Recovery),
) -> Books {
    let door = Arc::clone(&stage.door);
    let (stopped, counts) = (AtomicBool::new(false), Counts::default());
    let mut probe = Orders::new("probe", &door, &counts);
    let movies = Movies::new(&door);
    let mut disturbed = Vec::new();
    let mut books = thread::scope(|scope| {
        let moviegoers: Vec<_> = (0..MOVIEGOERS)
            .map(|_| scope.spawn(|| Moviegoer::new(&movies).ask_until(&stopped)))
            .collect();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let orders = Orders::new(&number.to_string(), &door, &counts);
                let stopped = &stopped;
                scope.spawn(move || orders.place_until(stopped))
            })
            .collect();
        // Also where a fault is never recovered from, which panics.
        let stop = StopOnDrop(&stopped);
        let mut recoveries = Vec::new();
        for fault in faults {
            let struck = movies.now();
            let recovery = recovery(stage, fault, &mut probe, &counts);
            disturbed.push((struck, movies.now()));
            tell(&recovery);
            recoveries.push(recovery);
            if enough(recoveries.len(), counts.both().0) {
                break;
            }
        }
        drop(stop);
        let ledgers = clients.into_iter().map(ScopedJoinHandle::join);
        let mut ledgers: Vec<_> = ledgers.map(|ledger| ledger.expect("a client")).collect();
        ledgers.push(probe.ledger);
        for moviegoer in moviegoers {
            moviegoer.join().expect("a client");
        }
        books(stage, recoveries, &ledgers.concat())
    });
    for (id, history) in movies.histories() {
        books.movies.0 += 1;
        books.movies.1 += history.len();
        if !is_linearizable(&with_repeats(&history, &disturbed)) {
            books
                .wrong
                .push(format!("movie {id} is not linearizable: {history:#?}"));
        }
    }
    books
}

/// A gateway repeats an idempotent request without a precondition when the connection to the
/// inventory ends before an answer begins (RFC 9110 §9.2.2). During a fault it was perhaps carried
/// out once more than its answer tells.
fn with_repeats(history: &[Operation], disturbed: &[(u64, u64)]) -> Vec<Operation> {
    let meets = |operation: &Operation, (struck, mended): (u64, u64)| {
        let (begun, ended) = operation.lasted;
        begun < mended && struck < ended
    };
    let repeatable = |asked| match asked {
        Asked::Create(_) | Asked::Read => false,
        Asked::Change { only_if, .. } | Asked::Delete { only_if } => only_if.is_none(),
    };
    let repeats = history
        .iter()
        .filter(|operation| repeatable(operation.asked))
        .filter(|operation| disturbed.iter().any(|fault| meets(operation, *fault)))
        .map(|operation| Operation {
            answered: Answered::Unknown,
            ..*operation
        });
    history.iter().copied().chain(repeats).collect()
}

struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn recovery(stage: &mut Stage, fault: &Fault, probe: &mut Orders, counts: &Counts) -> Recovery {
    let before = counts.both();
    (fault.strike)(stage);
    // For a fault to last, time must pass.
    thread::sleep(fault.lasts);
    (fault.mend)(stage);
    let mended = Instant::now();
    let during = counts.both();

    let id = probe.place_surely();
    let accepts_after = mended.elapsed();
    while !stage.is_recorded(&id) {
        assert!(
            mended.elapsed() < RECOVERY_LIMIT,
            "{}: {id} is not recorded",
            fault.name
        );
        thread::sleep(REST);
    }
    let records_after = mended.elapsed();
    probe.create_movie_surely();
    Recovery {
        fault: fault.name,
        meanwhile: (during.0 - before.0, during.1 - before.1),
        accepts_after,
        records_after,
        creates_after: mended.elapsed(),
    }
}

fn books(stage: &Stage, recoveries: Vec<Recovery>, ledger: &[Entry]) -> Books {
    eventually("the queue is empty, and its consumer idle", || {
        stage.queue.counts() == Some((0, 1))
    });
    let sure = ledger.iter().filter(|entry| entry.answered);
    eventually("the last orders are recorded", || {
        let recorded = stage.recorded();
        let last = sure.clone().rev().take(CLIENTS);
        last.into_iter()
            .all(|entry| recorded.contains_key(&entry.id))
    });
    let mut recorded = stage.recorded();
    let mut books = Books {
        recoveries,
        answered: sure.clone().count(),
        unsure: 0,
        unsure_recorded: 0,
        movies: (0, 0),
        wrong: Vec::new(),
    };
    for entry in ledger {
        let times = recorded.remove(&entry.id).unwrap_or(0);
        if !entry.answered {
            books.unsure += 1;
            books.unsure_recorded += usize::from(times > 0);
        }
        if times > 1 {
            books
                .wrong
                .push(format!("{} is recorded {times} times", entry.id));
        } else if times == 0 && entry.answered {
            books
                .wrong
                .push(format!("{} was answered 200 and is lost", entry.id));
        }
    }
    let nobodys = recorded.into_keys();
    let nobodys = nobodys.map(|id| format!("{id} is recorded, and nobody placed it"));
    books.wrong.extend(nobodys);
    if let Some(dead) = stage.queue.take_dead() {
        let body = String::from_utf8_lossy(&dead.body);
        books.wrong.push(format!("{body} is a dead letter"));
    }
    books
}

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    otherwise: AtomicUsize,
}

impl Counts {
    fn both(&self) -> (usize, usize) {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        (count(&self.answered), count(&self.otherwise))
    }
}

/// An order in the client's book.
#[derive(Clone)]
struct Entry {
    id: String,
    /// With 200, at the first try or at a later one.
    answered: bool,
}

/// One client's orders.
struct Orders<'d> {
    name: String,
    door: &'d Mutex<SocketAddr>,
    counts: &'d Counts,
    client: Client,
    ledger: Vec<Entry>,
}

impl<'d> Orders<'d> {
    fn new(name: &str, door: &'d Mutex<SocketAddr>, counts: &'d Counts) -> Self {
        Self {
            name: name.to_owned(),
            client: Client::new(*lock(door)),
            door,
            counts,
            ledger: Vec::new(),
        }
    }

    /// One after the other. Of those that were not confirmed every other one is tried again,
    /// with its id, and the rest is left: nobody knows whether they will be recorded.
    fn place_until(mut self, stopped: &AtomicBool) -> Vec<Entry> {
        while !stopped.load(Ordering::Relaxed) {
            let id = self.next_id();
            let mut answered = self.place(&id);
            while !answered
                && self.ledger.len().is_multiple_of(2)
                && !stopped.load(Ordering::Relaxed)
            {
                thread::sleep(REST);
                answered = self.place(&id);
            }
            if !answered {
                thread::sleep(REST);
            }
            self.ledger.push(Entry { id, answered });
        }
        self.ledger
    }

    /// A new one, until it is confirmed; its id.
    fn place_surely(&mut self) -> String {
        let id = self.next_id();
        let begun = Instant::now();
        while !self.place(&id) {
            assert!(begun.elapsed() < RECOVERY_LIMIT, "no order is confirmed");
            thread::sleep(REST);
        }
        self.ledger.push(Entry {
            id: id.clone(),
            answered: true,
        });
        id
    }

    /// A new movie, until it is created.
    fn create_movie_surely(&mut self) {
        let begun = Instant::now();
        let movie = json!({ "title": "probe", "description": "probe" }).to_string();
        while self.post("/api/movies", &[], &movie) != Some(201) {
            assert!(begun.elapsed() < RECOVERY_LIMIT, "no movie is created");
            thread::sleep(REST);
        }
    }

    fn next_id(&self) -> String {
        format!("{}-{}", self.name, self.ledger.len())
    }

    /// Whether it was answered 200.
    fn place(&mut self, id: &str) -> bool {
        let order = json!({ "user_id": self.name, "number_of_items": 1, "total_amount": "9.90" });
        let key = [("idempotency-key", id)];
        let answered = self.post("/api/billing", &key, &order.to_string()) == Some(200);
        let counter = if answered {
            &self.counts.answered
        } else {
            &self.counts.otherwise
        };
        counter.fetch_add(1, Ordering::Relaxed);
        answered
    }

    /// The status of the answer; None where there is none.
    fn post(&mut self, path: &str, headers: &[(&str, &str)], json: &str) -> Option<u16> {
        let address = *lock(self.door);
        if self.client.address() != address {
            self.client = Client::new(address);
        }
        let headers = [&[("content-type", "application/json")], headers].concat();
        let reply = self.client.try_send("POST", path, &headers, Some(json));
        Some(reply.ok()?.status)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The head of the table, and a line of it.
#[must_use]
pub fn table_line(recovery: Option<&Recovery>) -> String {
    let mut line = String::new();
    let written = match recovery {
        None => write!(
            line,
            "{:<30} {:>9} {:>9} {:>13} {:>13} {:>13}",
            "fault", "200", "otherwise", "accepts after", "records after", "creates after"
        ),
        Some(recovery) => write!(
            line,
            "{:<30} {:>9} {:>9} {:>11.2} s {:>11.2} s {:>11.2} s",
            recovery.fault,
            recovery.meanwhile.0,
            recovery.meanwhile.1,
            recovery.accepts_after.as_secs_f64(),
            recovery.records_after.as_secs_f64(),
            recovery.creates_after.as_secs_f64()
        ),
    };
    written.map_or_else(|_| String::new(), |()| line)
}
