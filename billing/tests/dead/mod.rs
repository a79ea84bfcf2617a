//! Dead letters as they stand in the table.

#![allow(dead_code, reason = "each test looks at some of them")]

use serde_json::Value;
use testkit::TestDatabase;

/// A row of `dead_letters`.
pub(crate) struct Dead {
    pub(crate) message_id: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) reason: String,
    pub(crate) detail: String,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: Value,
    pub(crate) body: Vec<u8>,
    pub(crate) body_bytes: i64,
    /// It was put aside in the last minutes.
    pub(crate) is_recent: bool,
}

/// The dead letters, the oldest first.
pub(crate) fn dead_letters(database: &TestDatabase) -> Vec<Dead> {
    let sql = "SELECT *, properties::text AS text, now() - received_at < '5 minutes' AS recent \
               FROM dead_letters ORDER BY id";
    let rows = database.query(sql, &[]);
    rows.iter()
        .map(|row| Dead {
            message_id: row.get("message_id"),
            request_id: row.get("request_id"),
            reason: row.get("reason"),
            detail: row.get("detail"),
            exchange: row.get("exchange"),
            routing_key: row.get("routing_key"),
            properties: serde_json::from_str(row.get("text")).expect("JSON"),
            body: row.get("body"),
            body_bytes: row.get("body_bytes"),
            is_recent: row.get("recent"),
        })
        .collect()
}

/// How many dead letters there are.
pub(crate) fn count_dead(database: &TestDatabase) -> i64 {
    database.count("SELECT count(*) FROM dead_letters")
}
