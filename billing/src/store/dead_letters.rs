//! Dead letters, to be read and removed.

use std::sync::Arc;

use common::db::{Database, DatabaseConnection, DbError};
use common::http::Page;
use postgres::Row;
use postgres::types::{ToSql, Type};
use serde_json::value::RawValue;

use super::direction;
use crate::dead_letter::{DeadLetter, DeadLetterCounts, WholeDeadLetter};

/// The greatest count, so that counting takes a limited time however many dead letters there are.
pub(crate) const COUNT_MAX: i64 = 100_000;

/// Selects dead letters that have all of these properties; None stands for any value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
     AND ($4 IS NULL OR received_at < now() - $4 * interval '1 second') \
     AND ($5 IS NULL OR received_at > now() - $5 * interval '1 second')";

/// The bytes of a body that a list shows.
const START_BYTES: &str = "241";

const COLUMNS: &str = "id, message_id, request_id, reason, detail, exchange, routing_key, body_bytes, \
     body_bytes > octet_length(body) AS cut, \
     to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS received_at, \
     greatest(extract(epoch FROM now() - received_at), 0)::bigint AS age_seconds";

/// The dead letters, over the connection of one thread.
pub(crate) struct DeadLetterStore {
    connection: DatabaseConnection<()>,
}

impl DeadLetterStore {
    pub(crate) fn new(database: &Arc<Database>) -> Self {
        Self {
            connection: database.connection(),
        }
    }

    /// The ids of the dead letters after this id, the smallest first.
    pub(crate) fn ids(
        &mut self,
        filter: &Filter,
        after: i64,
        limit: Option<i64>,
    ) -> Result<Vec<i64>, DbError> {
        // As one array, since a row of its own for each id would take much memory.
        let sql = format!(
            "SELECT coalesce(array_agg(id ORDER BY id), '{{}}') AS ids FROM ( \
                 SELECT id FROM dead_letters WHERE {FILTER} AND id > $6 ORDER BY id LIMIT $7 \
             ) AS selected"
        );
        let params = [(&after as _, Type::INT8), (&limit as _, Type::INT8)];
        let rows = self.query(&sql, filter, &params)?;
        Ok(rows
            .iter()
            .flat_map(|row| row.get::<_, Vec<i64>>("ids"))
            .collect())
    }

    /// The dead letters of a page, without their messages.
    pub(crate) fn list(&mut self, filter: &Filter, page: Page) -> Result<Vec<DeadLetter>, DbError> {
        let (behind, order) = direction(page.newest_first);
        let sql = format!(
            "SELECT {COLUMNS}, substring(body FROM 1 FOR {START_BYTES}) AS start FROM dead_letters \
             WHERE {FILTER} AND id {behind} $6 ORDER BY id {order} LIMIT $7"
        );
        let limit = page.rows();
        let params = [(&page.after as _, Type::INT8), (&limit as _, Type::INT8)];
        let rows = self.query(&sql, filter, &params)?;
        Ok(rows.iter().map(DeadLetter::from).collect())
    }

    pub(crate) fn find(&mut self, id: i64) -> Result<Option<WholeDeadLetter>, DbError> {
        let sql = format!(
            "SELECT {COLUMNS}, ''::bytea AS start, properties::text AS properties, body \
             FROM dead_letters WHERE id = $1"
        );
        let row = self
            .connection
            .run(|client, ()| client.query_typed_opt(&sql, &[(&id, Type::INT8)]))?;
        Ok(row.map(|row| WholeDeadLetter {
            letter: DeadLetter::from(&row),
            properties: RawValue::from_string(row.get("properties")).unwrap_or_default(),
            body: row.get("body"),
        }))
    }

    /// Counts the dead letters, up to [`COUNT_MAX`]; the size is that of all.
    pub(crate) fn counts(&mut self, filter: &Filter) -> Result<DeadLetterCounts, DbError> {
        let sql = format!(
            "SELECT count(*) AS count, pg_total_relation_size('dead_letters') AS bytes \
             FROM (SELECT FROM dead_letters WHERE {FILTER} LIMIT {COUNT_MAX}) AS counted"
        );
        let rows = self.query(&sql, filter, &[])?;
        let row = rows.first().expect("an aggregate has one row");
        Ok(DeadLetterCounts {
            count: row.get("count"),
            bytes: row.get("bytes"),
        })
    }

    /// Deletes the dead letters that the filter selects now; returns how many there were.
    pub(crate) fn delete(&mut self, filter: &Filter) -> Result<usize, DbError> {
        let sql = format!("DELETE FROM dead_letters WHERE {FILTER} RETURNING id");
        Ok(self.query(&sql, filter, &[])?.len())
    }

    /// Runs a statement with [`FILTER`] in it; its further parameters begin with `$6`.
    fn query(
        &mut self,
        sql: &str,
        filter: &Filter,
        further: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, DbError> {
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&filter.ids, Type::INT8_ARRAY),
            (&filter.reason, Type::TEXT),
            (&filter.message_id, Type::TEXT),
            (&filter.older_than, Type::INT8),
            (&filter.newer_than, Type::INT8),
        ];
        params.extend_from_slice(further);
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
        }
    }
}
