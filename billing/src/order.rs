//! A recorded order.

use serde::Serialize;

/// A row of `orders`.
#[derive(Debug, Serialize)]
pub(crate) struct Order {
    pub(crate) id: i64,
    /// None if the publisher of the message set none.
    pub(crate) message_id: Option<String>,
    pub(crate) user_id: String,
    pub(crate) number_of_items: i32,
    /// With two decimal places, as a string, since many readers convert a JSON number into a float.
    pub(crate) total_amount: String,
    /// RFC 3339, UTC.
    pub(crate) created_at: String,
}
