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

/// A schema that is dropped with its last test.
pub struct TestDatabase {
    server: SocketAddr,
    config: DatabaseConfig,
}

impl TestDatabase {
    /// Makes an empty schema.
    ///
    /// # Panics
    /// When the test server is not there.
    #[must_use]
    pub fn create() -> Self {
        Self::create_in("")
    }

    /// Makes an empty schema in a database whose encoding is LATIN1.
    ///
    /// # Panics
    /// When the test server is not there.
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
    /// When the server refuses it.
    #[must_use]
    pub fn migrated(self, migrations: Migrations) -> Self {
        let mut connection =
            DatabaseConnection::new(&Database::new(&self.config, migrations), |_| Ok(()));
        let migrated = connection.run(|client, ()| client.batch_execute(""));
        migrated.expect("migrations that PostgreSQL takes");
        self
    }

    /// A relay in front of the server, up from the start.
    #[must_use]
    pub fn relay_up(&self) -> Relay {
        Relay::up(&self.server.ip().to_string(), self.server.port())
    }

    /// A relay in front of the server, down from the start.
    #[must_use]
    pub fn relay_down(&self) -> Relay {
        Relay::down(&self.server.ip().to_string(), self.server.port())
    }

    /// For the service that is tested.
    #[must_use]
    pub fn config(&self) -> DatabaseConfig {
        self.config.clone()
    }

    /// For a service that can only read, by a role as provisioning makes it.
    ///
    /// # Panics
    /// When `TEST_ENV_FILE` is not complete.
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

    /// Both roles as variables, for a program that is tested as a process; `name_key` is the
    /// variable by which it knows its database.
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
    /// When the server refuses them.
    pub fn execute(&self, sql: &str) {
        self.connect().batch_execute(sql).expect(sql);
    }

    /// The rows of a query in the schema.
    ///
    /// # Panics
    /// When the server refuses it.
    #[must_use]
    pub fn query(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.connect().query(sql, params).expect(sql)
    }

    /// The first column of the only row of a query.
    ///
    /// # Panics
    /// When there is no such row, or it is no `bigint`.
    #[must_use]
    pub fn count(&self, sql: &str) -> i64 {
        self.query(sql, &[])[0].get(0)
    }

    /// A connection to the schema, for a transaction or for an error to be looked at.
    ///
    /// # Panics
    /// When the test server is not there.
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
        // Also while a failed test unwinds, when a second panic would hide the first.
        let schema = &self.config.schema;
        let _ = self
            .connect()
            .batch_execute(&format!("DROP SCHEMA {schema} CASCADE"));
    }
}
