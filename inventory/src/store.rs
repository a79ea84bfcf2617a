//! Movies in PostgreSQL. Only this file holds SQL.

use std::sync::Arc;
use std::thread::JoinHandle;

use common::db::{Connection, Database, DbError, Migrations};
use common::http::Page;
use common::process::StartError;
use common::shutdown::Shutdown;
use postgres::types::{ToSql, Type};
use postgres::{Client, Error, GenericClient, Row, Statement};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::movie::{Movie, MovieChanges, NewMovie};

pub(crate) const MIGRATIONS: Migrations =
    &[("0001_movies", include_str!("../migrations/0001_movies.sql"))];

/// Part of a title: a pattern of ILIKE, the id to begin behind, how many rows at most.
pub const SEARCH: &str = "SELECT id, title, description FROM movies \
                          WHERE title ILIKE $1 AND id > $2 ORDER BY id LIMIT $3";

/// The movies, seen through one worker's connection.
pub(crate) struct MovieStore {
    connection: Connection<Statements>,
}

struct Statements {
    list: Statement,
    find: Statement,
    lock: Statement,
    create: Statement,
    change: Statement,
    delete: Statement,
    delete_all: Statement,
}

fn prepare(client: &mut Client) -> Result<Statements, Error> {
    Ok(Statements {
        list: client.prepare(
            "SELECT id, title, description FROM movies WHERE id > $1 ORDER BY id LIMIT $2",
        )?,
        find: client.prepare(
            // One plan for all times, since a subquery hides from the planner how many ids there
            // are; and by the limit each is looked up by its id, however few movies there are.
            "SELECT found.* FROM unnest((SELECT $1::bigint[])) AS wanted (id), LATERAL ( \
                 SELECT id, title, description FROM movies WHERE id = wanted.id LIMIT 1 \
             ) AS found",
        )?,
        lock: client.prepare(
            "SELECT id, title, description FROM movies WHERE id = $1 FOR UPDATE",
        )?,
        create: client.prepare(
            "INSERT INTO movies (title, description) \
             SELECT title, description \
             FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS new (title, description, place) \
             ORDER BY place RETURNING id",
        )?,
        change: client.prepare(
            "UPDATE movies SET title = coalesce($2, title), description = coalesce($3, description) \
             WHERE id = $1 RETURNING id, title, description",
        )?,
        delete: client.prepare("DELETE FROM movies WHERE id = $1")?,
        delete_all: client.prepare("DELETE FROM movies")?,
    })
}

impl MovieStore {
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

    pub(crate) fn is_up(&mut self) -> bool {
        self.connection.is_up()
    }

    /// Movies in the order of their ids, as they arrive from the server.
    pub(crate) fn list(
        &mut self,
        page: Page,
    ) -> Result<impl Iterator<Item = Result<ListedMovie, DbError>>, DbError> {
        let rows = self.connection.stream(|client, statements| {
            let params: [Option<i64>; 2] = [Some(page.after), page.limit];
            client.query_raw(&statements.list, params)
        })?;
        Ok(rows.map(|row| row.map(ListedMovie)))
    }

    /// The same for those whose title contains `part`, in any case.
    pub(crate) fn search<'a>(
        &'a mut self,
        part: &str,
        page: Page,
    ) -> Result<impl Iterator<Item = Result<ListedMovie, DbError>> + use<'a>, DbError> {
        let pattern = search_pattern(part);
        let rows = self.connection.stream(|client, _| {
            // Planned anew for each pattern: a plan that serves all of them reads the table.
            let params: [(&(dyn ToSql + Sync), Type); 3] = [
                (&pattern, Type::TEXT),
                (&page.after, Type::INT8),
                (&page.limit, Type::INT8),
            ];
            client.query_typed_raw(SEARCH, params)
        })?;
        Ok(rows.map(|row| row.map(ListedMovie)))
    }

    /// Those that there are, in any order.
    pub(crate) fn find(&mut self, ids: &[i64]) -> Result<Vec<Movie>, DbError> {
        let found = self
            .connection
            .run(|client, statements| client.query(&statements.find, &[&ids]))?;
        Ok(found.into_iter().map(movie).collect())
    }

    /// The ids of the new movies, which are stored all together or not at all.
    pub(crate) fn create(&mut self, new_movies: &[&NewMovie]) -> Result<Vec<i64>, DbError> {
        let titles: Vec<&str> = new_movies.iter().map(|new| new.title.as_str()).collect();
        let descriptions: Vec<&str> = new_movies
            .iter()
            .map(|new| new.description.as_str())
            .collect();
        let rows = self.connection.run(|client, statements| {
            client.query(&statements.create, &[&titles, &descriptions])
        })?;
        // They are given out in order, and it is nowhere said that they are returned in it.
        let mut ids: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The movie after the change; None where there is none of that id.
    pub(crate) fn change(
        &mut self,
        id: i64,
        changes: &MovieChanges,
    ) -> Result<Option<Movie>, DbError> {
        self.connection
            .run(|client, statements| change(client, statements, id, changes))
    }

    /// The same if the movie, as it is now, passes the check; nobody changes it in between.
    pub(crate) fn change_if<E>(
        &mut self,
        id: i64,
        changes: &MovieChanges,
        check: impl FnOnce(&Movie) -> Result<(), E>,
    ) -> Result<Option<Result<Movie, E>>, DbError> {
        self.connection.run(|client, statements| {
            let mut transaction = client.transaction()?;
            let Some(row) = transaction.query_opt(&statements.lock, &[&id])? else {
                return Ok(None);
            };
            if let Err(error) = check(&movie(row)) {
                return Ok(Some(Err(error)));
            }
            let movie = change(&mut transaction, statements, id, changes)?;
            transaction.commit()?;
            Ok(movie.map(Ok))
        })
    }

    /// Whether there was such a movie.
    pub(crate) fn delete(&mut self, id: i64) -> Result<bool, DbError> {
        let deleted = self
            .connection
            .run(|client, statements| client.execute(&statements.delete, &[&id]))?;
        Ok(deleted > 0)
    }

    /// The same if the movie, as it is now, passes the check; nobody changes it in between.
    pub(crate) fn delete_if<E>(
        &mut self,
        id: i64,
        check: impl FnOnce(&Movie) -> Result<(), E>,
    ) -> Result<Option<Result<(), E>>, DbError> {
        self.connection.run(|client, statements| {
            let mut transaction = client.transaction()?;
            let Some(row) = transaction.query_opt(&statements.lock, &[&id])? else {
                return Ok(None);
            };
            if let Err(error) = check(&movie(row)) {
                return Ok(Some(Err(error)));
            }
            transaction.execute(&statements.delete, &[&id])?;
            transaction.commit()?;
            Ok(Some(Ok(())))
        })
    }

    /// How many there were.
    pub(crate) fn delete_all(&mut self) -> Result<u64, DbError> {
        self.connection
            .run(|client, statements| client.execute(&statements.delete_all, &[]))
    }
}

fn change(
    client: &mut impl GenericClient,
    statements: &Statements,
    id: i64,
    changes: &MovieChanges,
) -> Result<Option<Movie>, Error> {
    let params: [&(dyn ToSql + Sync); 3] = [&id, &changes.title, &changes.description];
    Ok(client.query_opt(&statements.change, &params)?.map(movie))
}

/// A movie among many, written from the row as it came.
pub(crate) struct ListedMovie(Row);

impl ListedMovie {
    pub(crate) fn id(&self) -> i64 {
        self.0.get(0)
    }
}

impl Serialize for ListedMovie {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut movie = serializer.serialize_struct("Movie", 3)?;
        movie.serialize_field("id", &self.id())?;
        movie.serialize_field("title", self.0.get::<_, &str>(1))?;
        movie.serialize_field("description", self.0.get::<_, &str>(2))?;
        movie.end()
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is what options of rows map with"
)]
fn movie(row: Row) -> Movie {
    Movie {
        id: row.get(0),
        title: row.get(1),
        description: row.get(2),
    }
}

/// The ILIKE pattern for "contains this": `%` and `_` stand for themselves.
#[must_use]
pub fn search_pattern(part: &str) -> String {
    let mut pattern = String::with_capacity(part.len() + 2);
    pattern.push('%');
    for character in part.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What LIKE does with a pattern, from PostgreSQL's documentation: `%` is any text, `_` any
    /// one character, `\` takes the next one as it is.
    fn like(text: &[char], pattern: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|skipped| like(&text[skipped..], rest)),
            ['_', rest @ ..] => !text.is_empty() && like(&text[1..], rest),
            ['\\', literal, rest @ ..] | [literal, rest @ ..] => {
                text.first() == Some(literal) && like(&text[1..], rest)
            }
        }
    }

    proptest! {
        #[test]
        fn a_pattern_finds_exactly_the_titles_that_contain_the_part(
            title in "[a%_\\\\]{0,8}",
            part in "[a%_\\\\]{0,4}",
        ) {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let found = like(&chars(&title), &chars(&search_pattern(&part)));
            prop_assert_eq!(found, title.contains(&part));
        }
    }
}
