//! Movies: REST on PostgreSQL. `api` speaks HTTP, `store` speaks SQL, `movie` speaks neither.

mod config;
mod movie;

mod api;
mod store;

use std::sync::Arc;

use common::db::Database;
use common::http::{Bulkhead, Dependency, Server};
use common::metrics::Metrics;
use common::process::StartError;
use common::shutdown::Shutdown;

pub use config::Config;
use store::MovieStore;
pub use store::{search_pattern, search_sql};

/// The running service.
pub type Inventory = Server;

/// Starts the service; `main` and the tests call this function.
pub fn start(config: &Config, shutdown: &Shutdown) -> Result<Inventory, StartError> {
    let metrics = Metrics::new();
    let database = Database::new(&config.database, store::MIGRATIONS);
    database.show_in(&metrics);
    MovieStore::new(&database).bring_up(shutdown)?;
    let http = &config.http;
    let stores = database.for_each_slot(MovieStore::new);
    let movies = Bulkhead::new("/api/movies", http.slots, api::ROUTES, &http.limits, stores);
    let dependencies = move || {
        let mut movies = MovieStore::new(&database);
        move || vec![Dependency::new("postgresql", movies.is_up())]
    };
    let server = Server::start(
        http,
        vec![Arc::new(movies.with_guard(api::check_query))],
        dependencies,
        &metrics,
        shutdown,
    )?;
    Ok(server)
}
