//! Clients that create, read, change and delete a few movies at the same time, and record the answers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Client, Reply};

use crate::history::{MovieContent, MovieRequest, MovieResponse, Operation};
use crate::platform_processes::lock;

/// How many movies are used at a time; there are so few that several clients use one.
const MOVIES: usize = 2;

/// The number of requests after which a movie is replaced by a new one.
const REQUESTS_MAX: usize = 40;

/// The number of requests of unknown outcome after which a movie is replaced, since each of them doubles the possible
/// histories.
const UNKNOWN_MAX: usize = 2;

/// The movies, which the clients share.
pub(crate) struct SharedMovies<'d> {
    gateway_address: &'d Mutex<SocketAddr>,
    clock: AtomicU64,
    current: [Mutex<Option<Arc<MovieHistory>>>; MOVIES],
    all: Mutex<Vec<Arc<MovieHistory>>>,
}

/// A movie and its history so far.
struct MovieHistory {
    id: i64,
    operations: Mutex<Vec<Operation>>,
}

impl MovieHistory {
    fn can_go_on(&self) -> bool {
        let operations = lock(&self.operations);
        let unknown = operations
            .iter()
            .filter(|done| done.answered == MovieResponse::Unknown);
        operations.len() < REQUESTS_MAX && unknown.count() < UNKNOWN_MAX
    }
}

impl<'d> SharedMovies<'d> {
    pub(crate) fn new(gateway_address: &'d Mutex<SocketAddr>) -> Self {
        Self {
            gateway_address,
            clock: AtomicU64::new(0),
            current: std::array::from_fn(|_| Mutex::default()),
            all: Mutex::default(),
        }
    }

    /// A reading of the clock that orders the actions of all clients; later readings are greater.
    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// The history of each movie, by its id.
    pub(crate) fn histories(self) -> Vec<(i64, Vec<Operation>)> {
        let all = self
            .all
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let history = |movie: Arc<MovieHistory>| (movie.id, lock(&movie.operations).clone());
        all.into_iter().map(history).collect()
    }
}

/// One client.
pub(crate) struct MovieClient<'m> {
    movies: &'m SharedMovies<'m>,
    client: Client,
    /// The movie that it read last: its id, its content, and the entity tag.
    seen: Option<(i64, MovieContent, String)>,
}

impl<'m> MovieClient<'m> {
    pub(crate) fn new(movies: &'m SharedMovies<'m>) -> Self {
        Self {
            movies,
            client: Client::new(*lock(movies.gateway_address)),
            seen: None,
        }
    }

    /// Sends one request after the other.
    pub(crate) fn ask_until(mut self, stopped: &AtomicBool) {
        while !stopped.load(Ordering::Relaxed) {
            // The pause leaves processor time to the orders.
            thread::sleep(Duration::from_millis(fastrand::u64(..5)));
            if let Some(movie) = self.current_movie() {
                self.ask_of(&movie);
            }
        }
    }

    /// One of the current movies. None if a new one was needed and the outcome of its creation, and so its id, is not
    /// known.
    fn current_movie(&mut self) -> Option<Arc<MovieHistory>> {
        let mut current = lock(&self.movies.current[fastrand::usize(..MOVIES)]);
        if let Some(movie) = current.as_ref().filter(|movie| movie.can_go_on()) {
            return Some(Arc::clone(movie));
        }
        let movie = Arc::new(self.create()?);
        lock(&self.movies.all).push(Arc::clone(&movie));
        Some(Arc::clone(current.insert(movie)))
    }

    fn create(&mut self) -> Option<MovieHistory> {
        let begun = self.movies.now();
        let content = MovieContent {
            title: begun,
            description: begun,
        };
        let body = json!({ "title": text(begun), "description": text(begun) });
        let reply = self.send("POST", "/api/movies", None, Some(&body))?;
        assert_eq!(reply.status, 201, "{}", reply.text);
        let create = Operation {
            asked: MovieRequest::Create(content),
            answered: MovieResponse::Movie(content_of(&reply.json)),
            lasted: (begun, self.movies.now()),
        };
        Some(MovieHistory {
            id: reply.json["id"].as_i64().expect("an id"),
            operations: Mutex::new(vec![create]),
        })
    }

    fn ask_of(&mut self, movie: &MovieHistory) {
        let begun = self.movies.now();
        let (asked, answered) = match fastrand::u8(..40) {
            0 => self.delete(movie.id),
            1..15 => self.change(movie.id, begun),
            15..20 => self.read_as_page(movie.id),
            _ => self.read(movie.id),
        };
        let operation = Operation {
            asked,
            answered,
            lasted: (begun, self.movies.now()),
        };
        // A read without an answer shows nothing.
        if (asked, answered) != (MovieRequest::Read, MovieResponse::Unknown) {
            lock(&movie.operations).push(operation);
        }
    }

    /// Reads the movie; at random only if it differs from the last read.
    fn read(&mut self, id: i64) -> (MovieRequest, MovieResponse) {
        let tag = self.precondition(id);
        let header = tag.as_ref().map(|(_, tag)| ("if-none-match", tag.as_str()));
        let answered = match (self.send("GET", &path(id), header, None), &tag) {
            (Some(reply), Some((content, _))) if reply.status == 304 => {
                MovieResponse::Movie(*content)
            }
            (reply, _) => self.answered(id, reply),
        };
        (MovieRequest::Read, answered)
    }

    /// Reads the page of the list that begins with the movie, if it exists.
    fn read_as_page(&mut self, id: i64) -> (MovieRequest, MovieResponse) {
        let target = format!("/api/movies?after={}&limit=1", id - 1);
        let answered = match self.send("GET", &target, None, None) {
            None => MovieResponse::Unknown,
            Some(reply) if reply.json[0]["id"] == id => {
                MovieResponse::Movie(content_of(&reply.json[0]))
            }
            Some(reply) => {
                assert_eq!(reply.status, 200, "{}", reply.text);
                MovieResponse::NoSuchMovie
            }
        };
        (MovieRequest::Read, answered)
    }

    fn change(&mut self, id: i64, number: u64) -> (MovieRequest, MovieResponse) {
        let (title, description) =
            [(true, false), (false, true), (true, true)][fastrand::usize(..3)];
        let mut body = json!({});
        for (field, changes) in [("title", title), ("description", description)] {
            if changes {
                body[field] = text(number).into();
            }
        }
        let tag = self.precondition(id);
        let header = tag.as_ref().map(|(_, tag)| ("if-match", tag.as_str()));
        let reply = self.send("PUT", &path(id), header, Some(&body));
        let asked = MovieRequest::Change {
            title: title.then_some(number),
            description: description.then_some(number),
            only_if: tag.map(|(content, _)| content),
        };
        (asked, self.answered(id, reply))
    }

    fn delete(&mut self, id: i64) -> (MovieRequest, MovieResponse) {
        let tag = self.precondition(id);
        let header = tag.as_ref().map(|(_, tag)| ("if-match", tag.as_str()));
        let answered = match self.send("DELETE", &path(id), header, None) {
            Some(reply) if reply.status == 200 => MovieResponse::Deleted,
            reply => self.answered(id, reply),
        };
        let only_if = tag.map(|(content, _)| content);
        (MovieRequest::Delete { only_if }, answered)
    }

    /// The content and the entity tag of the movie at its last read; None at random, and for another movie.
    fn precondition(&self, id: i64) -> Option<(MovieContent, String)> {
        let seen = self.seen.as_ref().filter(|(seen, _, _)| *seen == id)?;
        fastrand::bool().then(|| (seen.1, seen.2.clone()))
    }

    fn answered(&mut self, id: i64, reply: Option<Reply>) -> MovieResponse {
        let Some(reply) = reply else {
            return MovieResponse::Unknown;
        };
        match reply.status {
            200 => {
                let content = content_of(&reply.json);
                self.seen = Some((id, content, reply.header("etag").to_owned()));
                MovieResponse::Movie(content)
            }
            404 => MovieResponse::NoSuchMovie,
            412 => MovieResponse::PreconditionFailed,
            status => panic!("movie {id} is answered {status}: {}", reply.text),
        }
    }

    /// The answer; None if the outcome is not known: no answer, or a status 5xx.
    fn send(
        &mut self,
        method: &str,
        target: &str,
        precondition: Option<(&str, &str)>,
        body: Option<&Value>,
    ) -> Option<Reply> {
        let address = *lock(self.movies.gateway_address);
        if self.client.address() != address {
            self.client = Client::new(address);
        }
        let json = body.map(|_| ("content-type", "application/json"));
        let headers: Vec<_> = json.into_iter().chain(precondition).collect();
        let body = body.map(Value::to_string);
        let reply = self
            .client
            .try_send(method, target, &headers, body.as_deref());
        reply.ok().filter(|reply| reply.status < 500)
    }
}

fn path(id: i64) -> String {
    format!("/api/movies/{id}")
}

fn text(number: u64) -> String {
    format!("text {number}")
}

/// The content of a movie in an answer.
fn content_of(movie: &Value) -> MovieContent {
    let number = |field: &str| {
        let text = movie[field]
            .as_str()
            .and_then(|text| text.strip_prefix("text "));
        let number = text.and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{movie} is none of the movies that were created"))
    };
    MovieContent {
        title: number("title"),
        description: number("description"),
    }
}
