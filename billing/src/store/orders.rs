//! Recorded orders, to be read.

use std::sync::Arc;

use common::db::{Database, DatabaseConnection, DbError};
use common::http::Page;
use postgres::Row;
use postgres::types::{ToSql, Type};

use super::direction;
use crate::order::Order;

const COLUMNS: &str = "id, message_id, user_id, number_of_items, total_amount::text AS total_amount, \
     to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') AS created_at";

/// Selects orders that have all of these properties; None stands for any value.
#[derive(Default)]
pub(crate) struct OrderFilter {
    pub(crate) user_id: Option<String>,
    pub(crate) message_id: Option<String>,
}

/// The orders, over the connection of one slot. PostgreSQL plans each statement with its values, so that a
/// filter which is not used costs nothing.
pub(crate) struct OrderStore {
    connection: DatabaseConnection<()>,
}

fn list_sql(newest_first: bool) -> String {
    let (behind, order) = direction(newest_first);
    format!(
        "SELECT {COLUMNS} FROM orders \
         WHERE id {behind} $1 AND ($3 IS NULL OR user_id = $3) AND ($4 IS NULL OR message_id = $4) \
         ORDER BY id {order} LIMIT $2"
    )
}

impl OrderStore {
    pub(crate) fn new(database: &Arc<Database>) -> Self {
        Self {
            connection: database.connection(),
        }
    }

    /// The orders of a page, and the one that follows them.
    pub(crate) fn list(&mut self, filter: &OrderFilter, page: Page) -> Result<Vec<Order>, DbError> {
        let (sql, limit) = (list_sql(page.newest_first), page.rows());
        let params: [(&(dyn ToSql + Sync), Type); 4] = [
            (&page.after, Type::INT8),
            (&limit, Type::INT8),
            (&filter.user_id, Type::TEXT),
            (&filter.message_id, Type::TEXT),
        ];
        let rows = self
            .connection
            .run(|client, ()| client.query_typed(&sql, &params))?;
        Ok(rows.iter().map(Order::from).collect())
    }

    /// The orders of a list without a limit, fetched while they are read.
    pub(crate) fn list_all<'a>(
        &'a mut self,
        filter: &OrderFilter,
        page: Page,
    ) -> Result<impl Iterator<Item = Result<Order, DbError>> + use<'a>, DbError> {
        let (sql, limit) = (list_sql(page.newest_first), None::<i64>);
        let (rows, ()) = self.connection.stream(|transaction, ()| {
            let types = [Type::INT8, Type::INT8, Type::TEXT, Type::TEXT];
            let statement = transaction.prepare_typed(&sql, &types)?;
            transaction.bind(
                &statement,
                &[&page.after, &limit, &filter.user_id, &filter.message_id],
            )
        })?;
        Ok(rows.map(|row| row.map(|row| Order::from(&row))))
    }

    pub(crate) fn find(&mut self, id: i64) -> Result<Option<Order>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM orders WHERE id = $1");
        let row = self
            .connection
            .run(|client, ()| client.query_typed_opt(&sql, &[(&id, Type::INT8)]))?;
        Ok(row.as_ref().map(Order::from))
    }
}

impl From<&Row> for Order {
    fn from(row: &Row) -> Self {
        Self {
            id: row.get("id"),
            message_id: row.get("message_id"),
            user_id: row.get("user_id"),
            number_of_items: row.get("number_of_items"),
            total_amount: row.get("total_amount"),
            created_at: row.get("created_at"),
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::TestDatabase;

    use super::*;
    use crate::store::MIGRATIONS;

    /// The plan of a page far behind the first. A bitmap of the few rows that there are in a test
    /// would be as good, and say nothing of many.
    fn plan(database: &TestDatabase, newest_first: bool, filters: &str) -> String {
        let mut client = database.connect();
        let sql = list_sql(newest_first);
        let prepare = format!(
            "SET enable_bitmapscan = off; SET plan_cache_mode = force_custom_plan; \
             PREPARE page (bigint, bigint, text, text) AS {sql}"
        );
        client.batch_execute(&prepare).expect(&sql);
        let explain = format!("EXPLAIN (COSTS OFF) EXECUTE page (15000, 101, {filters})");
        let lines = client.query(&explain, &[]).expect(&explain);
        let lines: Vec<String> = lines.iter().map(|line| line.get(0)).collect();
        lines.join("\n")
    }

    #[test]
    fn a_page_is_found_by_its_key_and_nothing_is_sorted() {
        let database = TestDatabase::create();
        for (_, sql) in MIGRATIONS {
            database.execute(sql);
        }
        database.execute(
            "INSERT INTO orders (user_id, number_of_items, total_amount) \
             SELECT 'user-' || n % 300, 1, 1 FROM generate_series(1, 30000) n",
        );
        database.execute("ANALYZE orders");

        let (all, of_user) = ("NULL, NULL", "'user-7', NULL");
        for (newest_first, filters, scan, condition) in [
            (false, all, "Index Scan using orders_pkey on", "(id > "),
            (
                true,
                all,
                "Index Scan Backward using orders_pkey on",
                "(id < ",
            ),
            (
                false,
                of_user,
                "Index Scan using orders_user_id on",
                "((user_id = ",
            ),
            (
                true,
                of_user,
                "Index Scan Backward using orders_user_id on",
                "((user_id = ",
            ),
        ] {
            let plan = plan(&database, newest_first, filters);
            assert!(
                plan.contains(scan)
                    && plan.contains(&format!("Index Cond: {condition}"))
                    && !plan.contains("Sort")
                    && !plan.contains("Filter"),
                "{plan}"
            );
        }
        let plan = plan(&database, false, "NULL, 'm-1'");
        assert!(plan.contains("using orders_message_id_key"), "{plan}");
    }
}
