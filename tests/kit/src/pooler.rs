//! pgbouncer in front of the PostgreSQL of the tests.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Child;

use crate::private_postgres::{command_as_owner, owner};
use crate::{Folder, SETTINGS, eventually};

/// A running pgbouncer, which ends with its test.
pub struct Pooler {
    address: SocketAddr,
    process: Child,
    _folder: Folder,
}

impl Pooler {
    /// Starts pgbouncer with this `pool_mode`, for the role and the databases of the tests.
    ///
    /// # Panics
    /// When pgbouncer is not installed, or does not start.
    #[must_use]
    pub fn start(pool_mode: &str) -> Self {
        let text = |key| SETTINGS.text(key).expect("TEST_ENV_FILE is complete");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("a bound socket has an address");
        drop(free);
        let folder = Folder::create_for(owner());
        let (user, password) = (text("POSTGRES_USER"), text("POSTGRES_PASSWORD"));
        let users = format!("\"{user}\" \"{password}\"\n");
        let users = folder.write("users", &users, 0o600);
        let (host, port) = (text("POSTGRES_HOST"), text("POSTGRES_PORT"));
        let settings = format!(
            "[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {pool_mode}
",
            address.port()
        );
        let settings = folder.write("settings", &settings, 0o600);
        let mut command = command_as_owner(Path::new("/usr/sbin/pgbouncer"));
        let process = command.arg("--quiet").arg(settings).spawn();
        let pooler = Self {
            address,
            process: process.expect("a pgbouncer"),
            _folder: folder,
        };
        eventually("pgbouncer listens", || {
            TcpStream::connect(pooler.address).is_ok()
        });
        pooler
    }

    /// The address on which pgbouncer listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
