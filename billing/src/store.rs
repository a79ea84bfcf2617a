//! Orders and dead letters in PostgreSQL. Only `store` holds SQL: `record` writes what comes from
//! the queue, `orders` and `dead_letters` read and remove.

mod dead_letters;
mod orders;
mod record;

use common::db::Migrations;

pub(crate) use dead_letters::{COUNT_MAX, DeadLetterStore, Filter};
pub(crate) use orders::{OrderFilter, OrderStore};
pub(crate) use record::{Fate, RecordStore};

/// The versions of the schema of orders and dead letters.
pub const MIGRATIONS: Migrations = &[
    ("0001_orders", include_str!("../migrations/0001_orders.sql")),
    (
        "0002_dead_letters",
        include_str!("../migrations/0002_dead_letters.sql"),
    ),
    ("0003_sent", include_str!("../migrations/0003_sent.sql")),
];
