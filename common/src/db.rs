//! A connection to PostgreSQL that is opened again after every failure: the failed connection is dropped, callers
//! get the error that the database is unavailable, and after a pause the next call dials. Each dial brings the
//! schema up to date, if the role owns it, and prepares the statements, so no program need be restarted after an
//! outage of the database or the restore of a backup.

mod tls;

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::vec;

use postgres::config::SslMode;
use postgres::error::{Severity, SqlState};
use postgres::{Client, Error, Portal, Row, SimpleQueryMessage, Transaction};

use crate::backoff::Backoff;
use crate::env::{ConfigError, Vars};
use crate::hosts::{Host, Hosts};
use crate::http::Problem;
use crate::metrics::{IntGauge, Metrics};
use crate::password::Password;
use crate::process::{self, CommandError, StartError};
use crate::shutdown::Shutdown;

use tls::Connector;
pub use tls::DatabaseTls;

/// Names the server, or several of which one can write.
const HOST: &str = "POSTGRES_HOST";

/// How long a server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How long a server may take until a session with it has begun. A suspended server accepts a connection and never
/// answers, and the `postgres` crate would wait for it without a limit.
const SESSION_LIMIT: Duration = Duration::from_secs(5);

/// A connection that was unused for longer is tested before its next use: the server may have been restarted,
/// and a write that failed on it could not be repeated.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// How long that test may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// The time after which the connection to a peer that acknowledges nothing is closed.
const DEAD_PEER: Duration = Duration::from_secs(20);

/// Limits that the server enforces. The programs hold locks for milliseconds, so a wait of seconds means that
/// another program holds the lock. The statement limit ends statements whose clients have long had their answer.
/// The limits are set in the session, since poolers refuse them among the startup parameters.
const SESSION: &str = "SET lock_timeout = '5s'; SET statement_timeout = '10min'; \
                       SET idle_in_transaction_session_timeout = '10min'";

/// The schema that is in every search path.
const DEFAULT_SCHEMA: &str = "public";

/// How long a stream may take. Until its end its snapshot keeps PostgreSQL from removing dead rows, and its lock
/// makes a migration wait.
const STREAM_LIMIT: Duration = Duration::from_mins(10);

/// How many rows of a stream are in memory at once.
const ROWS_FETCHED: u16 = 1000;

/// The advisory lock that a program holds while it brings a schema up to date, so that no two do so at once.
const MIGRATION_LOCK: i64 = 0x6d6f_7669_6573;

/// SQLSTATEs (PostgreSQL's manual, appendix A) of a conflict with another session.
const LOCK_NOT_AVAILABLE: &str = "55P03";
const DEADLOCK_DETECTED: &str = "40P01";
const SERIALIZATION_FAILURE: &str = "40001";

/// SQLSTATEs of a value that PostgreSQL cannot store.
const STRING_TOO_LONG: &str = "22001";
const NUMBER_OUT_OF_RANGE: &str = "22003";
const NOT_IN_REPERTOIRE: &str = "22021";
const UNTRANSLATABLE_CHARACTER: &str = "22P05";

/// The SQLSTATE of a read-only server, such as a standby.
const READ_ONLY_TRANSACTION: &str = "25006";

/// The errors of PostgreSQL for programs that share a session and overwrite or drop each other's prepared
/// statements.
const SHARED_STATEMENTS: [SqlState; 2] = [
    SqlState::DUPLICATE_PSTATEMENT,
    SqlState::INVALID_SQL_STATEMENT_NAME,
];

/// What an operator can do about them.
const SHARED_SESSION: &str = ": behind a pooler in transaction mode this takes pgbouncer 1.21 or later, with \
                              max_prepared_statements; otherwise set pool_mode = session";

/// What an operator can do about a pooler in transaction mode with prepared statements.
const LOST_SETTINGS: &str = "PostgreSQL is behind a pooler in transaction mode: set lock_timeout, statement_timeout, \
                             idle_in_transaction_session_timeout and search_path for the role, with ALTER ROLE";

/// The class of SQLSTATEs of violated constraints.
const INTEGRITY_CONSTRAINT_VIOLATION: &str = "23";

/// Classes of SQLSTATEs of temporary failures: connection exceptions, insufficient resources (a full disk, too
/// many connections), operator intervention (a shutdown, a cancelled statement).
const OUTAGES: [&str; 3] = ["08", "53", "57"];

/// The versions of a schema, oldest first: a name, which is recorded, and its SQL. A version that was released
/// is never changed; another one follows it.
pub type Migrations = &'static [(&'static str, &'static str)];

/// The role that a program has in its database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseRole {
    /// The role owns the tables, and brings the schema up to date.
    Owner,
    /// The role can only read, and waits until the owner has brought the schema up to date.
    Reader,
}

impl DatabaseRole {
    /// The variables with the name of the role and its password.
    const fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Owner => ["POSTGRES_USER", "POSTGRES_PASSWORD"],
            Self::Reader => ["POSTGRES_READER_USER", "POSTGRES_READER_PASSWORD"],
        }
    }
}

/// The settings of the connection to a service's database.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// The server, or several, of which the one that can write is used.
    pub hosts: Hosts,
    /// Whether connections are encrypted.
    pub tls: DatabaseTls,
    /// The role that the program has in the database.
    pub role: DatabaseRole,
    /// The name of the role to connect as.
    pub user: String,
    /// The password of the role.
    pub password: Password,
    /// The name of the database.
    pub name: String,
    /// The schema of the tables; `public` unless two services share a database.
    pub schema: String,
}

impl DatabaseConfig {
    /// Reads the `POSTGRES_…` variables; `name_key` is the variable that names the database.
    pub fn from_vars(vars: &Vars, role: DatabaseRole, name_key: &str) -> Result<Self, ConfigError> {
        let [user, password] = role.keys();
        Ok(Self {
            hosts: hosts(vars)?,
            tls: DatabaseTls::from_vars(vars)?,
            role,
            user: vars.text(user)?,
            password: Password::from_vars(vars, password)?,
            name: vars.text(name_key)?,
            schema: schema_name(vars)?,
        })
    }

    /// All but the host and the password.
    fn client_config(&self) -> postgres::Config {
        let mut config = postgres::Config::new();
        config
            .user(&self.user)
            .dbname(&self.name)
            .application_name("crud-master")
            .connect_timeout(CONNECT_LIMIT)
            .tcp_user_timeout(DEAD_PEER)
            .keepalives_idle(DEAD_PEER);
        config
    }
}

/// Reads the list of hosts. A host that begins with `/` is the folder of a Unix socket, which may have any name.
fn hosts(vars: &Vars) -> Result<Hosts, ConfigError> {
    const PORT: &str = "POSTGRES_PORT";
    let name = vars.text(HOST)?;
    if name.starts_with('/') {
        let port = vars.port(PORT)?;
        return Ok(Hosts::new(vec![Host { name, port }]));
    }
    Hosts::from_vars(vars, HOST, PORT)
}

/// The name of the schema. It is written into SQL, where only a plain name is safe.
fn schema_name(vars: &Vars) -> Result<String, ConfigError> {
    let name = vars.optional("POSTGRES_SCHEMA").unwrap_or(DEFAULT_SCHEMA);
    if name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    {
        return Ok(name.to_owned());
    }
    Err(ConfigError::malformed(
        "POSTGRES_SCHEMA",
        "a name of a-z, 0-9 and _",
    ))
}

/// Why a statement failed.
#[derive(Debug, Clone)]
pub enum DbError {
    /// The server is unreachable, starting, full or too busy; a later try may succeed.
    Unavailable(String),
    /// Another session holds a lock, or two transactions waited for each other. A later try may succeed; another
    /// statement may succeed at once.
    Locked(String),
    /// A value is too long, or out of range, for its column.
    BadData(String),
    /// PostgreSQL cannot hold this text in its encoding.
    Unencodable(String),
    /// These values break a constraint.
    Violated(String),
    /// The server refused the statement: a defect of the program, or a broken schema.
    Refused(String),
}

impl DbError {
    fn text(&self) -> &str {
        match self {
            Self::Unavailable(text)
            | Self::Locked(text)
            | Self::BadData(text)
            | Self::Unencodable(text)
            | Self::Violated(text)
            | Self::Refused(text) => text,
        }
    }

    fn new(error: &Error) -> Self {
        let text = describe(error);
        let Some(said) = error.as_db_error() else {
            // An error without an SQLSTATE is an outage only if the connection itself failed.
            let io = std::error::Error::source(error)
                .is_some_and(<dyn std::error::Error>::is::<std::io::Error>);
            return if io || error.is_closed() {
                Self::Unavailable(text)
            } else {
                Self::Refused(text)
            };
        };
        match (said.code().code(), said.constraint()) {
            (LOCK_NOT_AVAILABLE | DEADLOCK_DETECTED | SERIALIZATION_FAILURE, _) => {
                Self::Locked(text)
            }
            (STRING_TOO_LONG | NUMBER_OUT_OF_RANGE, _) => Self::BadData(text),
            (NOT_IN_REPERTOIRE | UNTRANSLATABLE_CHARACTER, _) => Self::Unencodable(text),
            (READ_ONLY_TRANSACTION, _) => Self::Unavailable(text),
            (code, _) if OUTAGES.iter().any(|class| code.starts_with(class)) => {
                Self::Unavailable(text)
            }
            (code, Some(_)) if code.starts_with(INTEGRITY_CONSTRAINT_VIOLATION) => {
                Self::Violated(text)
            }
            _ => Self::Refused(text),
        }
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(text) => write!(f, "PostgreSQL is unavailable: {text}"),
            Self::Locked(text) => write!(f, "another session holds a lock in PostgreSQL: {text}"),
            Self::BadData(text)
            | Self::Unencodable(text)
            | Self::Violated(text)
            | Self::Refused(text) => write!(f, "PostgreSQL refused: {text}"),
        }
    }
}

impl std::error::Error for DbError {}

impl From<DbError> for CommandError {
    fn from(error: DbError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Unavailable(_) => {
                Problem::unavailable("the database is unavailable; try again", error)
            }
            DbError::Locked(_) => Problem::unavailable("the database is busy; try again", error),
            // The encoding of the database is not UTF-8.
            DbError::Unencodable(_) => Problem::bad_request(
                "a text has characters that the encoding of the database does not have",
            ),
            // The service has checked its rules before, so an invalid value here is a defect.
            DbError::BadData(_) | DbError::Violated(_) | DbError::Refused(_) => {
                Problem::internal(error)
            }
        }
    }
}

/// Why a change failed, or may have failed.
#[derive(Debug, Clone)]
pub enum ChangeError {
    /// Nothing was changed: the statement never reached the server, or the server refused it.
    NotMade(DbError),
    /// The connection ended before the server had answered: the change may have been made.
    Unknown(DbError),
}

impl From<ChangeError> for DbError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotMade(error) | ChangeError::Unknown(error) => error,
        }
    }
}

/// Whether the server refused a statement and changed nothing. A fatal error is not a refusal: it ends the
/// session, perhaps just after the commit.
fn is_refusal(error: &Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|error| error.parsed_severity() == Some(Severity::Error))
}

/// Whether a prepared statement is no longer valid and changed nothing: the types of its columns have changed
/// (`cached plan must not change result type`), or the server has dropped it (`DISCARD ALL`, a pooler).
fn is_stale(error: &Error) -> bool {
    is_refusal(error)
        && [
            &SqlState::FEATURE_NOT_SUPPORTED,
            &SqlState::INVALID_SQL_STATEMENT_NAME,
        ]
        .map(Some)
        .contains(&error.code())
}

/// The error with the message of the server, for the log.
fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(db_error) => format!(
            "{} (SQLSTATE {}){}",
            db_error.message(),
            db_error.code().code(),
            if SHARED_STATEMENTS.contains(db_error.code()) {
                SHARED_SESSION
            } else {
                ""
            }
        ),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// A database, shared by all connections of a service.
pub struct Database {
    config: DatabaseConfig,
    migrations: Migrations,
    circuit_breaker: Mutex<CircuitBreaker>,
    connected: OnceLock<IntGauge>,
}

/// After a failed dial further callers fail at once until the backoff has passed; then one of them may dial.
/// After a successful dial all callers may dial.
struct CircuitBreaker {
    backoff: Backoff,
    next_dial: Instant,
    /// The error of the last dial, which callers get until the next dial.
    failure: Option<DbError>,
}

impl Database {
    /// Makes a database without a connection; the first use of a connection dials.
    #[must_use]
    pub fn new(config: &DatabaseConfig, migrations: Migrations) -> Arc<Self> {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        Arc::new(Self {
            config: config.clone(),
            migrations,
            circuit_breaker: Mutex::new(CircuitBreaker {
                backoff,
                next_dial: Instant::now(),
                failure: None,
            }),
            connected: OnceLock::new(),
        })
    }

    /// A connection without prepared statements.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> DatabaseConnection<()> {
        DatabaseConnection::new(self, |_| Ok(()))
    }

    /// A function that makes a store, with a connection of its own, for each slot.
    pub fn for_each_slot<S>(
        self: &Arc<Self>,
        new: fn(&Arc<Self>) -> S,
    ) -> impl Fn() -> S + Send + Sync + 'static + use<S>
    where
        S: 'static,
    {
        let database = Arc::clone(self);
        move || new(&database)
    }

    /// Adds a metric that shows whether the last use of the database reached it.
    pub fn show_in(&self, metrics: &Metrics) {
        let help = "1 if the last use of the database reached it.";
        let _ = self
            .connected
            .set(metrics.gauge("postgresql_connected", help));
    }

    fn set_connected(&self, connected: bool) {
        if let Some(gauge) = self.connected.get() {
            gauge.set(i64::from(connected));
        }
    }

    fn next_dial(&self) -> Instant {
        self.circuit_breaker().next_dial
    }

    fn dial<S>(&self, prepare: Prepare<S>) -> Result<OpenConnection<S>, DbError> {
        if let Some(failure) = self.recent_failure() {
            return Err(failure);
        }
        let dialled = dial(self, prepare);
        self.set_connected(dialled.is_ok());
        let mut circuit_breaker = self.circuit_breaker();
        circuit_breaker.failure = dialled.as_ref().err().cloned();
        if dialled.is_ok() {
            circuit_breaker.backoff.reset();
            circuit_breaker.next_dial = Instant::now();
        } else {
            circuit_breaker.next_dial = Instant::now() + circuit_breaker.backoff.delay();
        }
        dialled
    }

    /// The error of the last dial, until the next dial is due, which is then the caller's.
    fn recent_failure(&self) -> Option<DbError> {
        let mut circuit_breaker = self.circuit_breaker();
        let failure = circuit_breaker.failure.clone()?;
        if Instant::now() < circuit_breaker.next_dial {
            return Some(failure);
        }
        circuit_breaker.next_dial = Instant::now() + SESSION_LIMIT;
        None
    }

    fn circuit_breaker(&self) -> MutexGuard<'_, CircuitBreaker> {
        // A thread that panicked while it held the lock left no field half changed.
        self.circuit_breaker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prepares a service's statements on a new connection.
pub type Prepare<S> = fn(&mut Client) -> Result<S, Error>;

/// A connection and the statements `S` that were prepared on it. One thread owns it.
pub struct DatabaseConnection<S> {
    database: Arc<Database>,
    prepare: Prepare<S>,
    open: Option<OpenConnection<S>>,
    /// Whether a stream of rows ended in an error, after which the state of the connection is unknown.
    broken: bool,
}

struct OpenConnection<S> {
    client: Client,
    statements: S,
    last_used: Instant,
}

impl<S> DatabaseConnection<S> {
    /// Makes a connection that is not open; its first use dials.
    #[must_use]
    pub fn new(database: &Arc<Database>, prepare: Prepare<S>) -> Self {
        Self {
            database: Arc::clone(database),
            prepare,
            open: None,
            broken: false,
        }
    }

    /// Runs one statement or one transaction. It is repeated, on a new connection, only if its prepared statements
    /// were stale, since nothing was changed in that case. If the connection is lost meanwhile, the caller has to
    /// find out whether the statement was carried out.
    pub fn run<T>(
        &mut self,
        query: impl FnMut(&mut Client, &S) -> Result<T, Error>,
    ) -> Result<T, DbError> {
        self.change(query).map_err(DbError::from)
    }

    /// Runs one statement or one transaction by [`DatabaseConnection::run`]; the error shows whether the database
    /// may have changed.
    pub fn change<T>(
        &mut self,
        mut query: impl FnMut(&mut Client, &S) -> Result<T, Error>,
    ) -> Result<T, ChangeError> {
        let mut repeated = false;
        loop {
            let open = self.open_connection().map_err(ChangeError::NotMade)?;
            let result = query(&mut open.client, &open.statements);
            open.last_used = Instant::now();
            match result {
                Ok(result) => return Ok(result),
                Err(error) if is_stale(&error) && !mem::replace(&mut repeated, true) => {
                    self.open = None;
                }
                Err(error) if is_refusal(&error) => {
                    return Err(ChangeError::NotMade(self.lost(&error)));
                }
                Err(error) => return Err(ChangeError::Unknown(self.lost(&error))),
            }
        }
    }

    /// Begins a query whose rows are fetched in thousands, from one snapshot, so that memory does not grow with
    /// their number. The query, and those of [`RowStream::run`], are given as text: a statement that is prepared
    /// in the transaction of the stream cannot be stale.
    pub fn stream(
        &mut self,
        bind: impl FnOnce(&mut Transaction<'_>, &S) -> Result<Portal, Error>,
    ) -> Result<(RowStream<'_>, &S), DbError> {
        self.open_connection()?;
        let Some(open) = &mut self.open else {
            unreachable!("open_connection() sets it")
        };
        open.last_used = Instant::now();
        // The stream sets this to false after it has begun.
        self.broken = true;
        let statements = &open.statements;
        let schema = self.database.config.schema.as_str();
        let rows = RowStream::begin(&mut open.client, &mut self.broken, |transaction| {
            // A query that is given as text would not notice that somebody has reset the session.
            if schema != DEFAULT_SCHEMA {
                let sql = format!("SET LOCAL search_path = '{schema}', public");
                transaction.batch_execute(&sql)?;
            }
            bind(transaction, statements)
        });
        Ok((rows.map_err(|error| DbError::new(&error))?, statements))
    }

    /// Starts a thread that dials until the server answers, so that the schema is up to date before the first
    /// request, and then closes the connection. The end of the program does not wait for the thread.
    pub fn bring_up(mut self, shutdown: &Shutdown) -> Result<(), StartError>
    where
        S: Send + 'static,
    {
        let shutdown = shutdown.clone();
        process::spawn("bring-up", move || {
            let mut waiting = false;
            while let Err(error) = self.run(|client, _| client.batch_execute("")) {
                if !mem::replace(&mut waiting, true) {
                    log::warn!(cause = error.to_string().as_str(); "waiting for PostgreSQL");
                }
                let until_next_dial = self
                    .database
                    .next_dial()
                    .saturating_duration_since(Instant::now());
                if shutdown.wait_at_most(until_next_dial) {
                    return;
                }
            }
            match self.try_session() {
                Err(DbError::Refused(cause)) => {
                    log::error!(cause = cause.as_str(); "prepared statements do not last");
                }
                Ok(false) => {
                    log::error!(cause = LOST_SETTINGS; "settings of a session do not last");
                }
                _ => log::info!("PostgreSQL is up"),
            }
        })?;
        Ok(())
    }

    /// Whether what was set and prepared in a session lasts. Behind a pooler that gives each transaction another
    /// session it does not: a second connection holds the session in which the statement was prepared.
    fn try_session(&mut self) -> Result<bool, DbError> {
        let database = Arc::clone(&self.database);
        self.run(|client, _| {
            let statement = client.prepare(
                "SELECT current_setting('lock_timeout') = '5s' AND current_schema() = $1::text",
            )?;
            let mut other = connect(&database.config).ok();
            let held = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '1s'";
            let _begun = other.as_mut().map(|other| other.batch_execute(held));
            let row = client.query_one(&statement, &[&database.config.schema])?;
            Ok(row.get(0))
        })
    }

    /// Whether the database answers now.
    pub fn is_up(&mut self) -> bool {
        self.run(|client, _| client.batch_execute("")).is_ok()
    }

    /// The open connection, which is tested if it was idle, or a new one.
    fn open_connection(&mut self) -> Result<&mut OpenConnection<S>, DbError> {
        let usable = !mem::take(&mut self.broken)
            && self.open.as_mut().is_some_and(|open| {
                !open.client.is_closed()
                    && (open.last_used.elapsed() < TRUSTED_IDLE
                        || open.client.is_valid(PROBE_LIMIT).is_ok())
            });
        if !usable {
            self.open = None;
        }
        match &mut self.open {
            Some(open) => Ok(open),
            empty => Ok(empty.insert(self.database.dial(self.prepare)?)),
        }
    }

    fn lost(&mut self, error: &Error) -> DbError {
        let error = DbError::new(error);
        // The next dial checks the schema and brings it up to date if needed.
        if matches!(error, DbError::Unavailable(_) | DbError::Refused(_)) {
            self.open = None;
        }
        if matches!(error, DbError::Unavailable(_)) {
            self.database.set_connected(false);
        }
        error
    }
}

fn dial<S>(database: &Database, prepare: Prepare<S>) -> Result<OpenConnection<S>, DbError> {
    // A wrong password or a missing database counts as an outage, since an operator has to correct it.
    let mut client = connect(&database.config)?;
    match database.config.role {
        DatabaseRole::Owner => {
            let schema = &database.config.schema;
            migrate(&mut client, schema, database.migrations).map_err(|error| DbError::new(&error))
        }
        DatabaseRole::Reader => await_owner(&mut client, database.migrations),
    }?;
    let statements = prepare(&mut client).map_err(|error| DbError::new(&error))?;
    Ok(OpenConnection {
        client,
        statements,
        last_used: Instant::now(),
    })
}

/// Begins a session with the host that can write, trying first the host that served last; the error has the reason of
/// each host.
fn connect(config: &DatabaseConfig) -> Result<Client, DbError> {
    let unusable = |error: ConfigError| DbError::Unavailable(error.to_string());
    let mut client_config = config.client_config();
    client_config.password(config.password.read().map_err(unusable)?);
    let connector = config.tls.connector().map_err(unusable)?;
    let mut failures = Vec::new();
    for (number, host) in config.hosts.in_turn() {
        let started = Instant::now();
        let dial = (host.clone(), config.clone(), client_config.clone());
        let connector = connector.clone();
        let connect = move || connect_to(&dial.0, &dial.1, dial.2, &connector);
        let connected = config.hosts.connect_in_time(number, SESSION_LIMIT, connect);
        let failure = match connected {
            Ok(Some(Ok(client))) => {
                config.hosts.try_first(number);
                return Ok(client);
            }
            Ok(Some(Err(failure))) => failure,
            Ok(None) => DbError::Unavailable("it accepts connections and does not answer".into()),
            Err(failure) => DbError::Unavailable(failure.to_string()),
        };
        if started.elapsed() >= CONNECT_LIMIT {
            // The next dial begins with a host that may answer.
            config.hosts.try_first(number + 1);
        }
        failures.push((number, host, failure));
    }
    if let [(_, _, failure)] = &failures[..] {
        return Err(failure.clone());
    }
    // In the order of the setting, so that an outage has one text.
    failures.sort_by_key(|(number, ..)| *number);
    let texts = failures
        .iter()
        .map(|(_, host, failure)| format!("{HOST} {host}: {}", failure.text()));
    Err(DbError::Unavailable(texts.collect::<Vec<_>>().join("; ")))
}

fn connect_to(
    host: &Host,
    config: &DatabaseConfig,
    mut client_config: postgres::Config,
    connector: &Connector,
) -> Result<Client, DbError> {
    client_config
        .host(&host.name)
        .port(host.port)
        .ssl_mode(config.tls.ssl_mode(host.name.starts_with('/')));
    let explain = |error: &Error| config.tls.explain(error, &host.name);
    let text = |error: &Error| explain(error).unwrap_or_else(|| describe(error));
    let mut connected = client_config
        .connect(connector.clone())
        .map_err(|error| (text(&error), error));
    if let Err((encrypted, error)) = &connected
        && client_config.get_ssl_mode() == SslMode::Prefer
        && (explain(error).is_some()
            || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION))
    {
        client_config.ssl_mode(SslMode::Disable);
        let plain = client_config.connect(connector.clone());
        connected = plain.map_err(|error| {
            let plain = describe(&error);
            (format!("{encrypted}; without TLS: {plain}"), error)
        });
    }
    let mut client = connected.map_err(|(text, _)| DbError::Unavailable(text))?;
    begin_session(&mut client, config)?;
    Ok(client)
}

/// Sets the limits and the schema of a session. Without its own schema a service would create its tables in
/// `public`, which is in the search path too; on a standby it could create none.
fn begin_session(client: &mut Client, config: &DatabaseConfig) -> Result<(), DbError> {
    let schema = &config.schema;
    let answer = client
        .simple_query(&format!(
            "{SESSION}; SET search_path = '{schema}', public; \
             SELECT current_schema() = '{schema}', pg_is_in_recovery()"
        ))
        .map_err(|error| DbError::new(&error))?;
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let [found, standby] = [0, 1].map(|column| row.and_then(|row| row.get(column)) == Some("t"));
    if !found {
        let text = format!("there is no schema {schema} that this role may use");
        return Err(DbError::Refused(text));
    }
    if standby && (config.role == DatabaseRole::Owner || config.hosts.are_several()) {
        let text = if config.hosts.are_several() {
            "it is a standby, which cannot write".to_owned()
        } else {
            format!("{HOST} names a standby, which cannot write")
        };
        return Err(DbError::Unavailable(text));
    }
    Ok(())
}

/// Brings the schema up to date. Versions that this program does not have are ignored: a newer program has added
/// them.
fn migrate(client: &mut Client, schema: &str, migrations: Migrations) -> Result<(), Error> {
    if pending(client, migrations)?.is_empty() {
        return Ok(());
    }
    let mut transaction = client.transaction()?;
    // A pooler may give the transaction another session than the one whose schema was set.
    transaction.batch_execute(&format!(
        "SET LOCAL search_path = '{schema}', public; \
         SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"
    ))?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK])?;
    transaction.batch_execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations (
             name text PRIMARY KEY,
             applied_at timestamptz NOT NULL DEFAULT now()
         )",
    )?;
    for (name, sql) in pending(&mut transaction, migrations)? {
        transaction.batch_execute(sql)?;
        transaction.execute("INSERT INTO schema_migrations (name) VALUES ($1)", &[&name])?;
        log::info!(migration = name; "schema brought up to date");
    }
    transaction.commit()
}

/// Fails until the program of the owner has brought the schema up to date.
fn await_owner(client: &mut Client, migrations: Migrations) -> Result<(), DbError> {
    let pending = pending(client, migrations).map_err(|error| DbError::new(&error))?;
    match pending.first() {
        None => Ok(()),
        Some((name, _)) => Err(DbError::Unavailable(format!(
            "the schema does not have {name} yet, which the program of its owner adds"
        ))),
    }
}

/// The versions that the schema does not have yet.
fn pending(
    client: &mut impl postgres::GenericClient,
    migrations: Migrations,
) -> Result<Vec<(&'static str, &'static str)>, Error> {
    // Only the schema of the service counts: `public`, which is in the search path too, may have another's table.
    let known = client.query_one(
        "SELECT to_regclass(quote_ident(current_schema()) || '.schema_migrations') IS NOT NULL",
        &[],
    )?;
    let applied: Vec<String> = if known.get(0) {
        let rows = client.query("SELECT name FROM schema_migrations", &[])?;
        rows.iter().map(|row| row.get(0)).collect()
    } else {
        Vec::new()
    };
    Ok(migrations
        .iter()
        .filter(|(name, _)| !applied.iter().any(|done| done == name))
        .copied()
        .collect())
}

/// The rows of a portal, which are fetched in parts. If this value is dropped before its end, the other rows are
/// never fetched.
pub struct RowStream<'a> {
    transaction: Transaction<'a>,
    portal: Portal,
    fetched: vec::IntoIter<Row>,
    ended: bool,
    until: Instant,
    broken: &'a mut bool,
}

impl<'a> RowStream<'a> {
    fn begin(
        client: &'a mut Client,
        broken: &'a mut bool,
        bind: impl FnOnce(&mut Transaction<'_>) -> Result<Portal, Error>,
    ) -> Result<Self, Error> {
        let mut transaction = client.transaction()?;
        let portal = bind(&mut transaction)?;
        *broken = false;
        Ok(Self {
            transaction,
            portal,
            fetched: Vec::new().into_iter(),
            ended: false,
            until: Instant::now() + STREAM_LIMIT,
            broken,
        })
    }

    /// Runs another query in the transaction of the stream.
    pub fn run<T>(
        &mut self,
        query: impl FnOnce(&mut Transaction<'a>) -> Result<T, Error>,
    ) -> Result<T, DbError> {
        query(&mut self.transaction).map_err(|error| self.lost(&error))
    }

    fn lost(&mut self, error: &Error) -> DbError {
        self.ended = true;
        *self.broken = true;
        DbError::new(error)
    }
}

impl Iterator for RowStream<'_> {
    type Item = Result<Row, DbError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fetched.len() == 0 && !self.ended {
            if Instant::now() >= self.until {
                self.ended = true;
                let limit = "the rows were not read in time".to_owned();
                return Some(Err(DbError::Unavailable(limit)));
            }
            match self
                .transaction
                .query_portal(&self.portal, ROWS_FETCHED.into())
            {
                Ok(rows) => {
                    self.ended = rows.len() < usize::from(ROWS_FETCHED);
                    self.fetched = rows.into_iter();
                }
                Err(error) => return Some(Err(self.lost(&error))),
            }
        }
        self.fetched.next().map(Ok)
    }
}
