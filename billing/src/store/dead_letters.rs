//! Dead letters, to be read and removed.

use std::sync::Arc;

use common::db::{Database, DatabaseConnection, DbError};
use common::http::Page;
use postgres::Row;
use postgres::types::{ToSql, Type};
use serde_json::value::RawValue;

use crate::dead_letter::{Content, DeadLetter, DeadLetterCounts};

/// Counting ends here, so that a count of any number of dead letters costs a known time.
pub(crate) const COUNT_MAX: i64 = 100_000;

/// Which dead letters are meant; None is all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) ids: Option<Vec<i64>>,
    pub(crate) reason: Option<String>,
    pub(crate) message_id: Option<String>,
    /// In seconds.
    pub(crate) older_than: Option<i64>,
    /// In seconds.
    pub(crate) newer_than: Option<i64>,
}

const FILTER: &str = "($1 IS NULL OR id = ANY ($1)) AND ($2 IS NULL OR reason = $2) \
     AND ($3 IS NULL OR message_id = $3) \
     AND ($4 IS NULL OR received_at < now() - make_interval(secs => $4)) \
     AND ($5 IS NULL OR received_at > now() - make_interval(secs => $5))";

/// Bytes of a body that a list shows.
const START_BYTES: &str = "241";

const COLUMNS: &str = "id, message_id, request_id, reason, detail, exchange, routing_key, body_bytes, \
     body_bytes > octet_length(body) AS cut, \
     to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS received_at, \
     greatest(extract(epoch FROM now() - received_at), 0)::bigint AS age_seconds";

/// The dead letters, seen through one thread's connection.
pub(crate) struct DeadLetterStore {
    connection: DatabaseConnection<()>,
}

impl DeadLetterStore {
    pub(crate) fn new(database: &Arc<Database>) -> Self {
        Self {
            connection: DatabaseConnection::new(database, |_| Ok(())),
        }
    }

    /// Those of a page, without what they contain. A page without a limit has the longest that
    /// there may be.
    pub(crate) fn list(&mut self, filter: &Filter, page: Page) -> Result<Vec<DeadLetter>, DbError> {
        let (behind, order) = if page.newest_first {
            ("<", "DESC")
        } else {
            (">", "ASC")
        };
        let sql = format!(
            "SELECT {COLUMNS}, substring(body FROM 1 FOR {START_BYTES}) AS start FROM dead_letters \
             WHERE {FILTER} AND id {behind} $6 ORDER BY id {order} LIMIT $7"
        );
        let limit = page.rows();
        let page = [(&page.after as _, Type::INT8), (&limit as _, Type::INT8)];
        let rows = self.query(&sql, filter, &page)?;
        Ok(rows.iter().map(DeadLetter::from).collect())
    }

    /// One with what it contains.
    pub(crate) fn find(&mut self, id: i64) -> Result<Option<DeadLetter>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS}, ''::bytea AS start, properties::text AS properties, body \
             FROM dead_letters WHERE id = $1"
        );
        let row = self
            .connection
            .run(|client, ()| client.query_typed_opt(&sql, &[(&id, Type::INT8)]))?;
        Ok(row.map(|row| DeadLetter {
            content: Some(Content {
                properties: RawValue::from_string(row.get("properties")).unwrap_or_default(),
                body: row.get("body"),
            }),
            ..DeadLetter::from(&row)
        }))
    }

    /// How many there are, up to [`COUNT_MAX`], and what all of them take on disk.
    pub(crate) fn counts(&mut self, filter: &Filter) -> Result<DeadLetterCounts, DbError> {
        let sql = format!(
            "SELECT (SELECT count(*) FROM (SELECT FROM dead_letters WHERE {FILTER} LIMIT {COUNT_MAX}) \
                     AS counted) AS count, pg_total_relation_size('dead_letters') AS bytes"
        );
        let rows = self.query(&sql, filter, &[])?;
        Ok(rows
            .first()
            .map_or_else(DeadLetterCounts::default, |row| DeadLetterCounts {
                count: row.get("count"),
                bytes: row.get("bytes"),
            }))
    }

    /// Deletes those, and says how many.
    pub(crate) fn delete(&mut self, filter: &Filter) -> Result<usize, DbError> {
        let sql = format!("DELETE FROM dead_letters WHERE {FILTER} RETURNING id");
        Ok(self.query(&sql, filter, &[])?.len())
    }

    fn query(
        &mut self,
        sql: &str,
        filter: &Filter,
        more: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, DbError> {
        #[expect(clippy::cast_precision_loss, reason = "2^53 seconds are time enough")]
        let seconds = |age: Option<i64>| age.map(|age| age as f64);
        let (older_than, newer_than) = (seconds(filter.older_than), seconds(filter.newer_than));
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&filter.ids, Type::INT8_ARRAY),
            (&filter.reason, Type::TEXT),
            (&filter.message_id, Type::TEXT),
            (&older_than, Type::FLOAT8),
            (&newer_than, Type::FLOAT8),
        ];
        params.extend_from_slice(more);
        self.connection
            .run(|client, ()| client.query_typed(sql, &params))
    }
}

impl From<&Row> for DeadLetter {
    fn from(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            message_id: row.get("message_id"),
            request_id: row.get("request_id"),
            reason: row.get("reason"),
            detail: row.get("detail"),
            exchange: row.get("exchange"),
            routing_key: row.get("routing_key"),
            body_bytes: row.get("body_bytes"),
            cut: row.get("cut"),
            received_at: row.get("received_at"),
            age_seconds: row.get("age_seconds"),
            start: row.get("start"),
            content: None,
        }
    }
}
