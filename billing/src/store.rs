//! Orders in PostgreSQL. Only this file holds SQL.

use std::sync::Arc;
use std::thread::JoinHandle;

use common::db::{Connection, Database, DbError, Migrations};
use common::http::Page;
use common::order::NewOrder;
use common::process::StartError;
use common::shutdown::Shutdown;
use postgres::{Client, Error, Row, Statement};

use crate::order::Order;

pub(crate) const MIGRATIONS: Migrations =
    &[("0001_orders", include_str!("../migrations/0001_orders.sql"))];

const COLUMNS: &str = "id, message_id, user_id, number_of_items, total_amount::text, \
                       to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";

/// The orders, seen through one thread's connection.
pub(crate) struct OrderStore {
    connection: Connection<Statements>,
}

struct Statements {
    list: InEitherOrder<Statement>,
    list_of_user: InEitherOrder<Statement>,
    find: Statement,
    record: Statement,
}

/// A list is read from its begin or from its end.
struct InEitherOrder<T> {
    oldest_first: T,
    newest_first: T,
}

impl<T> InEitherOrder<T> {
    fn of(&self, page: Page) -> &T {
        if page.newest_first {
            &self.newest_first
        } else {
            &self.oldest_first
        }
    }
}

fn list_sql() -> InEitherOrder<String> {
    InEitherOrder {
        oldest_first: format!("SELECT {COLUMNS} FROM orders WHERE id > $1 ORDER BY id LIMIT $2"),
        newest_first: format!(
            "SELECT {COLUMNS} FROM orders WHERE id < $1 ORDER BY id DESC LIMIT $2"
        ),
    }
}

fn list_of_user_sql() -> InEitherOrder<String> {
    InEitherOrder {
        oldest_first: format!(
            "SELECT {COLUMNS} FROM orders WHERE user_id = $3 AND id > $1 ORDER BY id LIMIT $2"
        ),
        newest_first: format!(
            "SELECT {COLUMNS} FROM orders WHERE user_id = $3 AND id < $1 ORDER BY id DESC LIMIT $2"
        ),
    }
}

fn prepare(client: &mut Client) -> Result<Statements, Error> {
    let find = format!("SELECT {COLUMNS} FROM orders WHERE id = $1");
    let mut in_either_order = |sql: InEitherOrder<String>| {
        Ok::<_, Error>(InEitherOrder {
            oldest_first: client.prepare(&sql.oldest_first)?,
            newest_first: client.prepare(&sql.newest_first)?,
        })
    };
    Ok(Statements {
        list: in_either_order(list_sql())?,
        list_of_user: in_either_order(list_of_user_sql())?,
        find: client.prepare(&find)?,
        record: client.prepare(
            "INSERT INTO orders (message_id, user_id, number_of_items, total_amount) \
             SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::text[]::numeric[]) \
             ON CONFLICT (message_id) DO NOTHING RETURNING id, message_id",
        )?,
    })
}

/// An order with the id of the message that brought it.
pub(crate) struct Recordable {
    pub(crate) message_id: Option<String>,
    pub(crate) order: NewOrder,
}

impl OrderStore {
    pub(crate) fn new(database: &Arc<Database>) -> Self {
        Self {
            connection: Connection::new(database, prepare),
        }
    }

    /// Puts the schema in place as soon as the server is there.
    pub(crate) fn bring_up(self, shutdown: &Shutdown) -> Result<JoinHandle<()>, StartError> {
        self.connection
            .bring_up(shutdown)
            .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))
    }

    /// An error where the server does not answer.
    pub(crate) fn probe(&mut self) -> Result<(), DbError> {
        self.connection.run(|client, _| client.batch_execute(""))
    }

    pub(crate) fn is_up(&mut self) -> bool {
        self.probe().is_ok()
    }

    /// Records all of these or, on an error, none. The answer is the id that each has got, in
    /// their order; None for one whose message id is there already, which is passed over.
    pub(crate) fn record<'a>(
        &mut self,
        batch: impl Iterator<Item = &'a Recordable> + Clone,
    ) -> Result<Vec<Option<i64>>, DbError> {
        let message_ids: Vec<_> = batch.clone().map(|new| new.message_id.as_deref()).collect();
        let user_ids: Vec<_> = batch
            .clone()
            .map(|new| new.order.user_id.as_str())
            .collect();
        let numbers: Vec<_> = batch.clone().map(|new| new.order.number_of_items).collect();
        let amounts: Vec<_> = batch
            .map(|new| new.order.total_amount.to_string())
            .collect();
        let rows = self.connection.run(|client, statements| {
            // A single statement is a transaction of its own: it is committed when this returns.
            client.query(
                &statements.record,
                &[&message_ids, &user_ids, &numbers, &amounts],
            )
        })?;
        // One row after the other is inserted and returned, so they come in the order of the batch.
        let mut rows = rows.iter().peekable();
        let order_id = |message_id: Option<&str>| {
            let row = rows.next_if(|row| row.get::<_, Option<&str>>(1) == message_id)?;
            Some(row.get(0))
        };
        Ok(message_ids.into_iter().map(order_id).collect())
    }

    /// The orders of a page, as many as it wants read, of one user or of all.
    pub(crate) fn list(
        &mut self,
        user_id: Option<&str>,
        page: Page,
    ) -> Result<Vec<Order>, DbError> {
        let limit = page.rows();
        let rows = self.connection.run(|client, statements| {
            let after = page.after;
            match user_id {
                None => client.query(statements.list.of(page), &[&after, &limit]),
                Some(user_id) => client.query(
                    statements.list_of_user.of(page),
                    &[&after, &limit, &user_id],
                ),
            }
        })?;
        Ok(rows.into_iter().map(order).collect())
    }

    /// The same without an end.
    pub(crate) fn list_all<'a>(
        &'a mut self,
        user_id: Option<&str>,
        page: Page,
    ) -> Result<impl Iterator<Item = Result<Order, DbError>> + use<'a>, DbError> {
        let (rows, _) = self.connection.stream(|transaction, statements| {
            let (after, limit) = (page.after, None::<i64>);
            match user_id {
                None => transaction.bind(statements.list.of(page), &[&after, &limit]),
                Some(user_id) => transaction.bind(
                    statements.list_of_user.of(page),
                    &[&after, &limit, &user_id],
                ),
            }
        })?;
        Ok(rows.map(|row| row.map(order)))
    }

    pub(crate) fn find(&mut self, id: i64) -> Result<Option<Order>, DbError> {
        self.connection
            .run(|client, statements| Ok(client.query_opt(&statements.find, &[&id])?.map(order)))
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what iterators over rows map with"
)]
fn order(row: Row) -> Order {
    Order {
        id: row.get(0),
        message_id: row.get(1),
        user_id: row.get(2),
        number_of_items: row.get(3),
        total_amount: row.get(4),
        created_at: row.get(5),
    }
}

#[cfg(test)]
mod tests {
    use testkit::TestDatabase;

    use super::*;

    /// The plan of a page far behind the first, as PostgreSQL makes it for a prepared statement:
    /// with the values at hand (`force_custom_plan`) and, later, without. A bitmap of the few
    /// rows that there are in a test would be as good, and say nothing of many.
    fn plan(database: &TestDatabase, sql: &str, mode: &str) -> String {
        let mut client = database.connect();
        let prepare = format!(
            "SET enable_bitmapscan = off; SET plan_cache_mode = {mode}; PREPARE page (bigint, bigint, text) AS {sql}"
        );
        client.batch_execute(&prepare).expect(sql);
        let explain = "EXPLAIN (COSTS OFF) EXECUTE page (15000, 101, 'user-7')";
        let lines = client.query(explain, &[]).expect(explain);
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

        let (all, of_user) = (list_sql(), list_of_user_sql());
        for (sql, scan, condition) in [
            (
                all.oldest_first,
                "Index Scan using orders_pkey on",
                "(id > ",
            ),
            (
                all.newest_first,
                "Index Scan Backward using orders_pkey on",
                "(id < ",
            ),
            (
                of_user.oldest_first,
                "Index Scan using orders_user_id on",
                "((user_id = ",
            ),
            (
                of_user.newest_first,
                "Index Scan Backward using orders_user_id on",
                "((user_id = ",
            ),
        ] {
            for mode in ["force_custom_plan", "force_generic_plan"] {
                let plan = plan(&database, &sql, mode);
                assert!(
                    plan.contains(scan)
                        && plan.contains(&format!("Index Cond: {condition}"))
                        && !plan.contains("Sort")
                        && !plan.contains("Filter"),
                    "{mode}\n{plan}"
                );
            }
        }
    }
}
