//! Movies: REST on PostgreSQL. `api` speaks HTTP, `store` speaks SQL, `movie` speaks neither.

mod config;
mod movie;

mod api;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use common::db::Database;
use common::http::{Bulkhead, Dependency, Server};
use common::metrics::Metrics;
use common::process::{Running, StartError};
use common::shutdown::Shutdown;

pub use config::Config;
use store::MovieStore;
pub use store::{search_pattern, search_sql};

/// The running service.
pub struct Inventory {
    server: Server,
    bring_up: JoinHandle<()>,
}

/// Starts the service; `main` and the tests call this function.
pub fn start(config: &Config, shutdown: &Shutdown) -> Result<Inventory, StartError> {
    let metrics = Metrics::new();
    let database = Database::new(&config.database, store::MIGRATIONS);
    database.show_in(&metrics);
    let bring_up = MovieStore::new(&database).bring_up(shutdown)?;
    let movies = {
        let database = Arc::clone(&database);
        let http = &config.http;
        Bulkhead::new(
            "/api/movies",
            http.workers,
            api::ROUTES,
            &http.limits,
            move || MovieStore::new(&database),
        )
    };
    let dependencies = move || {
        let mut movies = MovieStore::new(&database);
        move || {
            vec![Dependency {
                name: "postgresql",
                state: movies.is_up().into(),
            }]
        }
    };
    let server = Server::start(
        &config.http,
        vec![Arc::new(movies.with_guard(api::check_query))],
        dependencies,
        &metrics,
        shutdown,
    )?;
    Ok(Inventory { server, bring_up })
}

impl Inventory {
    /// The address on which the inventory listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

impl Running for Inventory {
    fn join(self) {
        self.server.join();
        let _ = self.bring_up.join();
    }
}
