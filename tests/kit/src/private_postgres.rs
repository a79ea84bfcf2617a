//! A PostgreSQL for one test, which may stop it, give it certificates, and make standbys of it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use postgres::{Client, NoTls};

use crate::{Folder, Signed, eventually, eventually_some};

/// The role of the service that is tested, its database, and its first password.
const ROLE: &str = "tests";

/// Who may log in: the superuser without a password, the role `certified` only with a certificate for it, and the
/// role `unencrypted` only without TLS.
const HBA: &str = "host all,replication postgres 127.0.0.1/32 trust
hostssl all certified 127.0.0.1/32 scram-sha-256 clientcert=verify-full
hostssl all unencrypted 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
";

/// A server with a superuser `postgres`, and a role and a database `tests`, which ends with its test.
pub struct PrivatePostgres {
    folder: Folder,
    address: SocketAddr,
    server: Child,
}

impl PrivatePostgres {
    /// Makes a server without TLS.
    ///
    /// # Panics
    /// When PostgreSQL is not installed, or does not start.
    #[must_use]
    pub fn create() -> Self {
        Self::create_with(None)
    }

    /// Makes a server with TLS that shows this certificate, and accepts client certificates of the authority in this
    /// file.
    ///
    /// # Panics
    /// When PostgreSQL is not installed, or does not start.
    #[must_use]
    pub fn create_with_tls(signed: &Signed, authority_file: &str) -> Self {
        Self::create_with(Some((signed, authority_file)))
    }

    fn create_with(tls: Option<(&Signed, &str)>) -> Self {
        let folder = Folder::create_for(owner());
        let data = folder.path().join("data");
        let mut initdb = command("initdb");
        initdb.arg("--pgdata").arg(&data);
        run(initdb.args(["--username=postgres", "--no-sync", "--locale=C.UTF-8"]));
        folder.write("data/pg_hba.conf", HBA, 0o600);
        let mut settings = String::from("fsync = off\nshared_buffers = 16MB\n");
        if let Some((signed, authority_file)) = tls {
            write_certificate(&folder, signed);
            let authority = fs::read_to_string(authority_file).expect("an authority");
            folder.write("data/ca.crt", &authority, 0o600);
            settings += "ssl = on\nssl_ca_file = 'ca.crt'\n";
        }
        folder.write("data/postgresql.conf", &settings, 0o600);
        let server = Self::start(folder);
        let mut client = server.connect("postgres");
        for sql in [
            "CREATE ROLE tests LOGIN PASSWORD 'tests'",
            "CREATE ROLE certified LOGIN PASSWORD 'certified'",
            "CREATE ROLE unencrypted LOGIN PASSWORD 'unencrypted'",
            "CREATE DATABASE tests OWNER tests",
        ] {
            client.batch_execute(sql).expect(sql);
        }
        server
    }

    /// Makes a standby that follows this server.
    ///
    /// # Panics
    /// When the standby does not start.
    #[must_use]
    pub fn standby(&self) -> Self {
        let folder = Folder::create_for(owner());
        let mut backup = command("pg_basebackup");
        backup.arg("--pgdata").arg(folder.path().join("data"));
        backup.args([
            "--host=127.0.0.1",
            "--username=postgres",
            "--write-recovery-conf",
        ]);
        backup.arg(format!("--port={}", self.address.port()));
        run(backup.args(["--checkpoint=fast", "--no-sync"]));
        Self::start(folder)
    }

    /// Makes every commit wait for the standby, as soon as it follows.
    ///
    /// # Panics
    /// When the standby does not follow.
    pub fn commit_on_standby(&self) {
        self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.execute("SELECT pg_reload_conf()");
        let sql = "SELECT count(*)::text FROM pg_stat_replication WHERE sync_state = 'sync'";
        eventually("the standby is synchronous", || self.text(sql) == "1");
    }

    fn start(folder: Folder) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("a bound socket has an address");
        drop(free);
        let log = fs::File::create(folder.path().join("log")).expect("a place for the log");
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(folder.path().join("data"));
        postgres.args(["-c", "listen_addresses=127.0.0.1"]);
        postgres.args(["-c", "unix_socket_directories="]);
        postgres.args(["-c", &format!("port={}", address.port())]);
        let server = postgres.stderr(log).spawn().expect("a PostgreSQL");
        let started = Self {
            folder,
            address,
            server,
        };
        eventually_some("the private PostgreSQL answers", || {
            started.try_connect("postgres").ok()
        });
        started
    }

    /// The address on which the server listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The variables of a service that uses the server.
    #[must_use]
    pub fn vars(&self) -> Vec<(String, String)> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        vec![
            pair("POSTGRES_HOST", &self.address.ip().to_string()),
            pair("POSTGRES_PORT", &self.address.port().to_string()),
            pair("POSTGRES_USER", ROLE),
            pair("POSTGRES_PASSWORD", ROLE),
            pair("INVENTORY_DB_NAME", ROLE),
            pair("BILLING_DB_NAME", ROLE),
        ]
    }

    /// Shows another certificate to the connections to come, soon.
    pub fn renew(&self, signed: &Signed) {
        write_certificate(&self.folder, signed);
        self.execute("SELECT pg_reload_conf()");
    }

    /// Runs statements as the superuser, in the database of the service.
    ///
    /// # Panics
    /// When the server refuses them.
    pub fn execute(&self, sql: &str) {
        self.connect(ROLE).batch_execute(sql).expect(sql);
    }

    /// The first column of the only row of a query, as text.
    ///
    /// # Panics
    /// When there is no row.
    #[must_use]
    pub fn text(&self, sql: &str) -> String {
        self.connect(ROLE).query(sql, &[]).expect(sql)[0].get(0)
    }

    /// Ends the server without a warning, as a power cut does.
    ///
    /// # Panics
    /// When the server has ended already.
    pub fn kill(&mut self) {
        self.server.kill().expect("it runs");
        self.server.wait().expect("a child can be waited for");
    }

    fn connect(&self, database: &str) -> Client {
        self.try_connect(database).expect("the private PostgreSQL")
    }

    fn try_connect(&self, database: &str) -> Result<Client, postgres::Error> {
        postgres::Config::new()
            .host(&self.address.ip().to_string())
            .port(self.address.port())
            .user("postgres")
            .dbname(database)
            .connect(NoTls)
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Ok(None) = self.server.try_wait() {
            // Its children still write to the folder until they end with it.
            let pid = self.server.id().to_string();
            let _ = Command::new("kill").args(["-s", "QUIT", &pid]).status();
            let _ = self.server.wait();
        }
    }
}

fn write_certificate(folder: &Folder, signed: &Signed) {
    folder.write("data/server.key", &signed.key, 0o600);
    folder.write("data/server.crt", &signed.certificate, 0o600);
}

/// PostgreSQL refuses to run as root; then its own user runs it.
pub(crate) fn owner() -> Option<(u32, u32)> {
    let id = |what: &str, of: &[&str]| -> u32 {
        let output = Command::new("id").arg(what).args(of).output().expect("id");
        let text = String::from_utf8(output.stdout).expect("a number");
        text.trim().parse().expect("a number")
    };
    (id("-u", &[]) == 0).then(|| (id("-u", &["postgres"]), id("-g", &["postgres"])))
}

/// One of PostgreSQL's programs, of the newest version.
fn command(program: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("a PostgreSQL");
    let newest: Option<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .max();
    command_as_owner(&newest.expect("a PostgreSQL"))
}

pub(crate) fn command_as_owner(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").env_clear().stdin(Stdio::null());
    command.stdout(Stdio::null());
    if let Some((user, group)) = owner() {
        command.uid(user).gid(group);
    }
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("a PostgreSQL");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
