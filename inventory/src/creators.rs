//! Movies are created by a few threads of their own, to which the workers hand them on with the
//! clients who wait. What has come together while a thread was at work goes to PostgreSQL in one
//! statement with one commit, so that it shares the ways there and back and the wait for the disk.

use std::iter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use common::db::{Database, DbError};
use common::http::{Exchange, Problem, Response, entity_tag_of};
use common::process::StartError;
use crossbeam_channel::{Receiver, Sender};

use crate::movie::{Movie, NewMovie};
use crate::store::MovieStore;

/// While some wait for the disk, another collects what comes next.
const CREATORS: usize = 4;

/// Movies that wait for a creator; the next one is refused.
const WAITING_MAX: usize = 1024;

/// The most movies in one statement.
const TOGETHER_MAX: usize = 256;

/// The workers' end; cheap to clone.
#[derive(Clone)]
pub(crate) struct Creators {
    waiting: Sender<Waiting>,
}

struct Waiting {
    new_movie: NewMovie,
    client: Exchange,
}

impl Creators {
    /// The client is answered when the movie is on disk.
    pub(crate) fn create(&self, new_movie: NewMovie, client: Exchange) {
        if let Err(error) = self.waiting.try_send(Waiting { new_movie, client }) {
            let Waiting { client, .. } = error.into_inner();
            client.answer(Err(Problem::overloaded("too many movies wait already")));
        }
    }
}

/// Starts the threads. They end when the last [`Creators`] is dropped and all is created.
pub(crate) fn start(
    database: &Arc<Database>,
) -> Result<(Creators, Vec<JoinHandle<()>>), StartError> {
    let (sender, waiting) = crossbeam_channel::bounded(WAITING_MAX);
    let threads = (1..=CREATORS).map(|number| {
        let (database, waiting) = (Arc::clone(database), waiting.clone());
        thread::Builder::new()
            .name(format!("creator-{number}"))
            .spawn(move || run(&waiting, &database))
            .map_err(|error| StartError::System("cannot start a thread".to_owned(), error))
    });
    let threads = threads.collect::<Result<_, _>>()?;
    Ok((Creators { waiting: sender }, threads))
}

fn run(waiting: &Receiver<Waiting>, database: &Arc<Database>) {
    let mut movies = MovieStore::new(database);
    while let Ok(first) = waiting.recv() {
        let together = iter::once(first).chain(waiting.try_iter());
        let together = together.take(TOGETHER_MAX).collect();
        // Those in it hear of a panic by its dropping their exchanges.
        if catch_unwind(AssertUnwindSafe(|| create(&mut movies, together))).is_err() {
            // What it left behind may be half done.
            movies = MovieStore::new(database);
        }
    }
}

fn create(movies: &mut MovieStore, together: Vec<Waiting>) {
    let (new_movies, clients): (Vec<_>, Vec<_>) = together
        .into_iter()
        .map(|Waiting { new_movie, client }| (new_movie, client))
        .unzip();
    match movies.create(&new_movies) {
        Ok(ids) => {
            for ((new_movie, id), client) in new_movies.into_iter().zip(ids).zip(clients) {
                client.answer(Ok(created(&new_movie.with_id(id))));
            }
        }
        // One that PostgreSQL does not take is no reason to refuse the others.
        Err(DbError::BadData(_)) if clients.len() > 1 => {
            for (new_movie, client) in new_movies.into_iter().zip(clients) {
                create(movies, vec![Waiting { new_movie, client }]);
            }
        }
        Err(error) => {
            for client in clients {
                client.answer(Err(error.clone().into()));
            }
        }
    }
}

fn created(movie: &Movie) -> Response<'static> {
    Response::json(201, movie)
        .with_header("location", format!("/api/movies/{}", movie.id))
        .with_header("etag", entity_tag_of(movie))
}
