//! Dead letters as they stand in the table.

use serde_json::Value;
use testkit::TestDatabase;

/// A row of `dead_letters`.
#[derive(Debug)]
pub struct Dead {
    pub message_id: Option<String>,
    pub request_id: Option<String>,
    pub reason: String,
    pub detail: String,
    pub exchange: String,
    pub routing_key: String,
    pub properties: Value,
    pub body: Vec<u8>,
    pub body_bytes: i64,
    /// It was put aside in the last minutes.
    pub is_recent: bool,
}

/// The dead letters, the oldest first.
pub fn dead_letters(database: &TestDatabase) -> Vec<Dead> {
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
pub fn count_dead(database: &TestDatabase) -> i64 {
    database.count("SELECT count(*) FROM dead_letters")
}
