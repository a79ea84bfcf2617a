//! An order as it is recorded.

use serde::Serialize;

/// A row of `orders`.
#[derive(Debug, Serialize)]
pub(crate) struct Order {
    pub(crate) id: i64,
    /// None where the publisher of the message gave none.
    pub(crate) message_id: Option<String>,
    pub(crate) user_id: String,
    pub(crate) number_of_items: i32,
    /// With two places, as text: a JSON number would pass through a float at many a reader.
    pub(crate) total_amount: String,
    /// RFC 3339, UTC.
    pub(crate) created_at: String,
}
