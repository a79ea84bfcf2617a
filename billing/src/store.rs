//! Orders and dead letters in PostgreSQL. Only these files hold SQL: `record` writes messages of the queue,
//! `orders` and `dead_letters` read and delete.

mod dead_letters;
mod orders;
mod record;

use common::db::Migrations;

pub(crate) use dead_letters::{COUNT_MAX, DeadLetterStore, Filter};
pub(crate) use orders::{OrderFilter, OrderStore};
pub(crate) use record::{Fate, RecordStore};

/// The versions of the schema.
pub const MIGRATIONS: Migrations = &[
    ("0001_orders", include_str!("../migrations/0001_orders.sql")),
    (
        "0002_dead_letters",
        include_str!("../migrations/0002_dead_letters.sql"),
    ),
    ("0003_sent", include_str!("../migrations/0003_sent.sql")),
];

/// The operator that compares the ids of a page with the id before it, and the direction in which they are sorted.
fn direction(newest_first: bool) -> (&'static str, &'static str) {
    if newest_first {
        ("<", "DESC")
    } else {
        (">", "ASC")
    }
}
