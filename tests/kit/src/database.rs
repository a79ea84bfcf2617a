//! A schema of PostgreSQL for one test.

use std::net::SocketAddr;

use common::db::{
    Database, DatabaseConfig, DatabaseConnection, DatabaseRole, DatabaseTls, Migrations,
};
use postgres::types::ToSql;
use postgres::{Client, NoTls, Row};

use crate::{Relay, SETTINGS, unique_name};

const READER: &str = "POSTGRES_READER_USER";
const READER_PASSWORD: &str = "POSTGRES_READER_PASSWORD";

/// A schema that is dropped after its test.
pub struct TestDatabase {
    server: SocketAddr,
    config: DatabaseConfig,
}

impl TestDatabase {
    /// Makes an empty schema.
    ///
    /// # Panics
    /// If the test server cannot be reached.
    #[must_use]
    pub fn create() -> Self {
        Self::create_in("")
    }

    /// Makes an empty schema in a database whose encoding is LATIN1.
    ///
    /// # Panics
    /// If the test server cannot be reached.
    #[must_use]
    pub fn create_in_latin1() -> Self {
        Self::create_in("_latin1")
    }

    fn create_in(which: &str) -> Self {
        let text = |key| SETTINGS.text(key).expect("TEST_ENV_FILE is complete");
        let host = text("POSTGRES_HOST").parse().expect("an IP address");
        let port = SETTINGS.port("POSTGRES_PORT");
        let server = SocketAddr::new(host, port.expect("TEST_ENV_FILE is complete"));
        let config = DatabaseConfig {
            hosts: server.into(),
            tls: DatabaseTls::default(),
            role: DatabaseRole::Owner,
            user: text("POSTGRES_USER"),
            password: text("POSTGRES_PASSWORD").into(),
            name: text("POSTGRES_DB") + which,
            schema: unique_name("test"),
        };
        let (schema, reader) = (config.schema.clone(), text(READER));
        let database = Self { server, config };
        database.execute(&format!(
            "CREATE SCHEMA {schema};
             GRANT USAGE ON SCHEMA {schema} TO {reader};
             ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {reader}"
        ));
        database
    }

    /// Brings the schema up to date, as the program of its owner does.
    ///
    /// # Panics
    /// If the server refuses it.
    #[must_use]
    pub fn migrated(self, migrations: Migrations) -> Self {
        let mut connection =
            DatabaseConnection::new(&Database::new(&self.config, migrations), |_| Ok(()));
        let migrated = connection.run(|client, ()| client.batch_execute(""));
        migrated.expect("migrations that PostgreSQL takes");
        self
    }

    /// Starts a relay in front of the server that is up.
    #[must_use]
    pub fn relay_up(&self) -> Relay {
        Relay::up(&self.server.ip().to_string(), self.server.port())
    }

    /// Starts a relay in front of the server that is down.
    #[must_use]
    pub fn relay_down(&self) -> Relay {
        Relay::down(&self.server.ip().to_string(), self.server.port())
    }

    /// The settings for the tested service.
    #[must_use]
    pub fn config(&self) -> DatabaseConfig {
        self.config.clone()
    }

    /// The settings for a service that can only read, with a role like that of provisioning.
    ///
    /// # Panics
    /// If `TEST_ENV_FILE` is not complete.
    #[must_use]
    pub fn reader(&self) -> DatabaseConfig {
        let text = |key| SETTINGS.text(key).expect("TEST_ENV_FILE is complete");
        DatabaseConfig {
            role: DatabaseRole::Reader,
            user: text(READER),
            password: text(READER_PASSWORD).into(),
            ..self.config()
        }
    }

    /// Both roles as variables, for a program that is tested as a process; `name_key` is the variable that names its
    /// database.
    #[must_use]
    pub fn vars(&self, name_key: &str) -> Vec<(String, String)> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let setting = |key| pair(key, SETTINGS.optional(key).unwrap_or_default());
        vec![
            setting("POSTGRES_HOST"),
            setting("POSTGRES_PORT"),
            setting("POSTGRES_USER"),
            setting("POSTGRES_PASSWORD"),
            setting(READER),
            setting(READER_PASSWORD),
            pair("POSTGRES_SCHEMA", &self.config.schema),
            pair(name_key, &self.config.name),
        ]
    }

    /// Runs statements in the schema.
    ///
    /// # Panics
    /// If the server refuses them.
    pub fn execute(&self, sql: &str) {
        self.connect().batch_execute(sql).expect(sql);
    }

    /// The rows of a query in the schema.
    ///
    /// # Panics
    /// If the server refuses it.
    #[must_use]
    pub fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.connect().query(sql, params).expect(sql)
    }

    /// The first column of the only row of a query.
    ///
    /// # Panics
    /// If there is no such row, or the column is not a `bigint`.
    #[must_use]
    pub fn count(&self, sql: &str) -> i64 {
        self.query(sql, &[])[0].get(0)
    }

    /// A connection to the schema, for a transaction or for an error that a test inspects.
    ///
    /// # Panics
    /// If the test server cannot be reached.
    #[must_use]
    pub fn connect(&self) -> Client {
        let DatabaseConfig {
            user, name, schema, ..
        } = &self.config;
        let mut client = postgres::Config::new()
            .host(&self.server.ip().to_string())
            .port(self.server.port())
            .user(user)
            .password(SETTINGS.optional("POSTGRES_PASSWORD").unwrap_or_default())
            .dbname(name)
            .connect(NoTls)
            .expect("the PostgreSQL that TEST_ENV_FILE names");
        // In the session, since a pooler takes no startup options.
        let session =
            format!("SET search_path = '{schema}', public; SET client_min_messages = warning");
        client.batch_execute(&session).expect("a session");
        client
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        // This may run while a failed test unwinds, and a second panic would hide the first.
        let schema = &self.config.schema;
        let _ = self
            .connect()
            .batch_execute(&format!("DROP SCHEMA {schema} CASCADE"));
    }
}
