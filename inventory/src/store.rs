//! Movies in PostgreSQL. Only this file contains SQL.

use std::iter;
use std::sync::Arc;

use common::db::{ChangeError, Database, DatabaseConnection, DbError, Migrations};
use common::http::Page;
use common::process::StartError;
use common::shutdown::Shutdown;
use postgres::types::{ToSql, Type};
use postgres::{Client, Error, GenericClient, Row, Statement};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::movie::{Movie, MovieChanges, NewMovie};

pub(crate) const MIGRATIONS: Migrations = &[
    ("0001_movies", include_str!("../migrations/0001_movies.sql")),
    (
        "0002_casefolded_titles",
        include_str!("../migrations/0002_casefolded_titles.sql"),
    ),
];

/// The columns of a list. A long description is read only when the movie is written to the client, so that
/// many rows fit in memory.
const LISTED: &str = "id, title, \
                      CASE WHEN octet_length(description) <= 2048 THEN description END AS description";

/// One movie with its whole description.
const FIND: &str = "SELECT id, title, description FROM movies WHERE id = $1";

/// New movies become visible in the order of their ids, so that a client that asks for the movies after the last
/// id it has seen misses none: an id is assigned after all smaller ones are committed. The advisory lock belongs
/// to this table, whatever other schemas the database has. It is released at the end of the transaction, which
/// is this statement.
const CREATE: &str = "WITH turn AS MATERIALIZED ( \
         SELECT pg_advisory_xact_lock('pg_class'::regclass::oid::integer, 'movies'::regclass::oid::integer) \
     ) \
     INSERT INTO movies (title, description) \
     SELECT new.title, new.description \
     FROM turn, unnest($1::text[], $2::text[]) WITH ORDINALITY AS new (title, description, place) \
     ORDER BY new.place RETURNING id";

/// Lists the movies whose title contains a text, in any case. The parameters are a pattern of LIKE, the id
/// after which the list begins, and the greatest number of rows.
#[must_use]
pub fn search_sql() -> String {
    format!(
        "SELECT {LISTED} FROM movies \
         WHERE casefolded(title) LIKE casefolded($1) AND id > $2 ORDER BY id LIMIT $3"
    )
}

/// The movies, over the connection of one slot.
pub(crate) struct MovieStore {
    connection: DatabaseConnection<Statements>,
}

struct Statements {
    /// Each stream prepares this statement.
    list: String,
    pages: Statement,
    /// The statement is not prepared, so that each pattern gets a plan of its own: a generic plan scans the table.
    search: String,
    find: Statement,
    find_listed: Statement,
    lock: Statement,
    create: Statement,
    change: Statement,
    delete: Statement,
    delete_all: Statement,
}

fn prepare(client: &mut Client) -> Result<Statements, Error> {
    Ok(Statements {
        list: format!("SELECT {LISTED} FROM movies WHERE id > $1 ORDER BY id"),
        pages: client.prepare(&format!(
            "SELECT listed.*, page.place \
             FROM unnest((SELECT $1::bigint[]), (SELECT $2::bigint[])) \
                  WITH ORDINALITY AS page (after, size, place), LATERAL ( \
                 SELECT {LISTED} FROM movies WHERE id > page.after ORDER BY id LIMIT page.size \
             ) AS listed ORDER BY page.place, listed.id"
        ))?,
        search: search_sql(),
        find: client.prepare(FIND)?,
        // A generic plan suffices, since the subquery hides the number of ids from the planner; with the limit
        // each movie is looked up by its id, however few movies there are.
        find_listed: client.prepare(&format!(
            "SELECT found.* FROM unnest((SELECT $1::bigint[])) AS wanted (id), LATERAL ( \
                 SELECT {LISTED} FROM movies WHERE id = wanted.id LIMIT 1 \
             ) AS found"
        ))?,
        lock: client.prepare(&format!("{FIND} FOR UPDATE"))?,
        create: client.prepare(CREATE)?,
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
            connection: DatabaseConnection::new(database, prepare),
        }
    }

    /// Brings the schema up to date as soon as the server answers.
    pub(crate) fn bring_up(self, shutdown: &Shutdown) -> Result<(), StartError> {
        self.connection.bring_up(shutdown)
    }

    pub(crate) fn is_up(&mut self) -> bool {
        self.connection.is_up()
    }

    /// The movies of each page, in the order of their ids.
    pub(crate) fn pages(&mut self, pages: &[Page]) -> Result<Vec<Vec<MovieRow>>, DbError> {
        let after: Vec<i64> = pages.iter().map(|page| page.after).collect();
        let limits: Vec<i64> = pages.iter().filter_map(|page| page.rows()).collect();
        let rows = self
            .connection
            .run(|client, statements| client.query(&statements.pages, &[&after, &limits]))?;
        let mut listed: Vec<Vec<MovieRow>> = pages.iter().map(|_| Vec::new()).collect();
        for row in rows {
            let place = usize::try_from(row.get::<_, i64>("place") - 1).ok();
            if let Some(page) = place.and_then(|place| listed.get_mut(place)) {
                page.push(MovieRow(row));
            }
        }
        Ok(listed)
    }

    /// One page of the movies whose title contains `part` in any case.
    pub(crate) fn search(&mut self, part: &str, page: Page) -> Result<Vec<MovieRow>, DbError> {
        let (pattern, limit) = (search_pattern(part), page.rows());
        let rows = self.connection.run(|client, statements| {
            let params: [(&(dyn ToSql + Sync), Type); 3] = [
                (&pattern, Type::TEXT),
                (&page.after, Type::INT8),
                (&limit, Type::INT8),
            ];
            client.query_typed(&statements.search, &params)
        })?;
        Ok(rows.into_iter().map(MovieRow).collect())
    }

    /// All movies with an id greater than `after` whose title contains `part`, in the order of their ids.
    pub(crate) fn all<'a>(
        &'a mut self,
        part: &str,
        after: i64,
    ) -> Result<impl Iterator<Item = Result<MovieRow, DbError>> + use<'a>, DbError> {
        let (mut rows, _) = self.connection.stream(|transaction, statements| {
            if part.is_empty() {
                transaction.bind(&*statements.list, &[&after])
            } else {
                let all: Option<i64> = None;
                transaction.bind(&*statements.search, &[&search_pattern(part), &after, &all])
            }
        })?;
        Ok(iter::from_fn(move || {
            let row = rows.next()?;
            let movie = row.map(MovieRow).and_then(|movie| {
                if movie.is_complete() {
                    return Ok(Some(movie));
                }
                let id = movie.id();
                rows.run(|transaction| transaction.query_typed_opt(FIND, &[(&id, Type::INT8)]))
                    .map(|row| row.map(MovieRow))
            });
            Some(movie)
        })
        .filter_map(Result::transpose))
    }

    /// Reads the long descriptions of listed movies; leaves out a movie that was deleted meanwhile.
    pub(crate) fn complete(
        &mut self,
        listed: Vec<MovieRow>,
    ) -> impl Iterator<Item = Result<MovieRow, DbError>> {
        listed.into_iter().filter_map(|movie| {
            if movie.is_complete() {
                return Some(Ok(movie));
            }
            let id = movie.id();
            let row = self
                .connection
                .run(|client, statements| client.query_opt(&statements.find, &[&id]));
            row.map(|row| row.map(MovieRow)).transpose()
        })
    }

    pub(crate) fn find(&mut self, id: i64) -> Result<Option<Movie>, DbError> {
        self.connection
            .run(|client, statements| client.query_opt(&statements.find, &[&id]))
            .map(|row| row.map(movie))
    }

    /// The movies with these ids that exist, in any order.
    pub(crate) fn find_listed(&mut self, ids: &[i64]) -> Result<Vec<MovieRow>, DbError> {
        let found = self
            .connection
            .run(|client, statements| client.query(&statements.find_listed, &[&ids]))?;
        Ok(found.into_iter().map(MovieRow).collect())
    }

    /// Stores all of the new movies or none; returns their ids.
    pub(crate) fn create(&mut self, new_movies: &[&NewMovie]) -> Result<Vec<i64>, ChangeError> {
        let titles: Vec<&str> = new_movies.iter().map(|new| new.title.as_str()).collect();
        let descriptions: Vec<&str> = new_movies
            .iter()
            .map(|new| new.description.as_str())
            .collect();
        let rows = self.connection.change(|client, statements| {
            client.query(&statements.create, &[&titles, &descriptions])
        })?;
        // The ids are assigned in order, but RETURNING promises no order.
        let mut ids: Vec<i64> = rows.iter().map(|row| row.get("id")).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Changes a movie; None if no movie has that id.
    pub(crate) fn change(
        &mut self,
        id: i64,
        changes: &MovieChanges,
    ) -> Result<Option<Movie>, ChangeError> {
        self.connection
            .change(|client, statements| change(client, statements, id, changes))
    }

    /// Changes the movie if it passes the check; its row is locked from the check to the commit. None if no
    /// movie has that id.
    pub(crate) fn change_if<E>(
        &mut self,
        id: i64,
        changes: &MovieChanges,
        check: impl Fn(&Movie) -> Result<(), E>,
    ) -> Result<Option<Result<Movie, E>>, ChangeError> {
        self.connection.change(|client, statements| {
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

    /// Deletes a movie; returns whether it existed.
    pub(crate) fn delete(&mut self, id: i64) -> Result<bool, ChangeError> {
        let deleted = self
            .connection
            .change(|client, statements| client.execute(&statements.delete, &[&id]))?;
        Ok(deleted > 0)
    }

    /// Deletes the movie if it passes the check; its row is locked from the check to the commit. None if no
    /// movie has that id.
    pub(crate) fn delete_if<E>(
        &mut self,
        id: i64,
        check: impl Fn(&Movie) -> Result<(), E>,
    ) -> Result<Option<Result<(), E>>, ChangeError> {
        self.connection.change(|client, statements| {
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

    /// Deletes all movies; returns their number.
    pub(crate) fn delete_all(&mut self) -> Result<u64, ChangeError> {
        self.connection
            .change(|client, statements| client.execute(&statements.delete_all, &[]))
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

/// A row of movies, which is written to the client without a copy.
pub(crate) struct MovieRow(Row);

/// Only this code names the columns of a row of movies.
impl MovieRow {
    pub(crate) fn id(&self) -> i64 {
        self.0.get("id")
    }

    fn title(&self) -> &str {
        self.0.get("title")
    }

    /// The description; None if it is long and was not read with the list.
    fn description(&self) -> Option<&str> {
        self.0.get("description")
    }

    /// Whether the description was read.
    pub(crate) fn is_complete(&self) -> bool {
        self.description().is_some()
    }
}

impl Serialize for MovieRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut movie = serializer.serialize_struct("Movie", 3)?;
        movie.serialize_field("id", &self.id())?;
        movie.serialize_field("title", self.title())?;
        movie.serialize_field("description", &self.description())?;
        movie.end()
    }
}

/// A movie from a row with its whole description.
fn movie(row: Row) -> Movie {
    let row = MovieRow(row);
    Movie {
        id: row.id(),
        title: row.title().to_owned(),
        description: row.description().unwrap_or_default().to_owned(),
    }
}

/// The pattern of LIKE for texts that contain `part`, in which `%`, `_` and `\` are escaped.
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
    use testkit::TestDatabase;

    use super::*;

    fn movies(listed: impl Iterator<Item = Result<MovieRow, DbError>>) -> Vec<i64> {
        listed.map(|movie| movie.expect("a movie").id()).collect()
    }

    #[test]
    fn a_long_movie_that_is_deleted_while_it_is_listed_is_left_out() {
        let database = TestDatabase::create();
        let mut store = MovieStore::new(&Database::new(&database.config(), MIGRATIONS));
        let long = |title: &str| NewMovie {
            title: title.to_owned(),
            description: "long ".repeat(1000),
        };
        let ids = store
            .create(&[&long("Alien"), &long("Brazil")])
            .expect("two movies");
        let page = Page {
            limit: Some(2),
            after: 0,
            newest_first: false,
        };
        let listed = store.pages(&[page]).expect("a page").remove(0);
        assert_eq!(listed.len(), 2);
        assert!(!listed.iter().any(MovieRow::is_complete));

        database.execute("DELETE FROM movies WHERE title = 'Alien'");

        assert_eq!(movies(store.complete(listed)), [ids[1]]);
        assert_eq!(movies(store.all("", 0).expect("a list")), [ids[1]]);
    }

    #[test]
    fn statements_that_the_server_has_forgotten_are_prepared_anew() {
        let database = TestDatabase::create();
        let mut store = MovieStore::new(&Database::new(&database.config(), MIGRATIONS));
        let alien = NewMovie {
            title: "Alien".to_owned(),
            description: "A film".to_owned(),
        };
        let forget = |store: &mut MovieStore| {
            let forgotten = store
                .connection
                .run(|client, _| client.batch_execute("DISCARD ALL"));
            forgotten.expect("statements are forgotten");
        };

        forget(&mut store);
        let ids = store.create(&[&alien]).expect("a movie");
        forget(&mut store);
        assert_eq!(movies(store.all("", 0).expect("a list")), ids);
        assert!(store.find(ids[0]).expect("an answer").is_some());
        forget(&mut store);
        let deleted = store.delete_if(ids[0], |_| Ok::<(), ()>(()));

        assert!(matches!(deleted, Ok(Some(Ok(())))));
        assert_eq!(database.count("SELECT count(*) FROM movies"), 0);
    }

    #[test]
    fn a_list_is_of_one_moment_however_long_it_takes() {
        let database = TestDatabase::create();
        let mut store = MovieStore::new(&Database::new(&database.config(), MIGRATIONS));
        assert!(store.is_up());
        database.execute(
            "INSERT INTO movies (title, description) \
             SELECT 'Film ' || n, 'x' FROM generate_series(1, 5000) n",
        );
        let mut listed = store.all("Film", 0).expect("a list");
        let first = listed.next().expect("a movie").expect("a movie").id();

        database.execute("DELETE FROM movies");

        assert_eq!(movies(listed).len(), 4999);
        assert_eq!(movies(store.all("", first).expect("a list")), [0_i64; 0]);
    }

    /// Matches a text against a pattern of LIKE by PostgreSQL's documentation: `%` matches any text, `_` any one
    /// character, and `\` makes the next character literal.
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
