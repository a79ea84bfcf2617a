//! Halls, one for each kind of request, each with a number of places at which requests are
//! answered and a tiny_http of its own in which its workers rest: when all places of one hall wait
//! for something slow, the others go on. A place owns the state that handlers use, so a service
//! has as many connections to its database as it has places, and no pool.

use std::fs::DirBuilder;
use std::io;
use std::iter;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use super::edge::{self, Call, EdgeLimits, Feed, LineTerms, Serve, Taken};
use super::exchange::Exchange;
use super::problem::Problem;
use super::request::Request;
use super::response::Response;
use super::router::{self, AnsweredTogether, Destination, Handler, HandlerResult, Route};

/// The places for one kind of request.
pub struct Hall {
    prefix: &'static str,
    pub(super) places: usize,
    lines: Vec<LineTerms>,
    line_of: Box<dyn Fn(&Request) -> usize + Send + Sync>,
    serve: Serve,
}

impl Hall {
    /// For `prefix` and all paths below it; the empty prefix takes what no other hall does.
    /// `state` makes what a place owns, when it is first taken.
    pub fn new<S: Send + 'static>(
        prefix: &'static str,
        places: usize,
        routes: &'static [Route<S>],
        state: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        let together = togethers(routes).map(|(_, together)| LineTerms {
            places_max: together.places,
            calls_max: together.requests_max,
        });
        let states: Vec<Mutex<Option<S>>> = (0..places).map(|_| Mutex::new(None)).collect();
        let serve = move |taken: Taken| {
            // Whoever has taken the place is alone with its state.
            let mut own = states[taken.place]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let mut place = Place {
                routes,
                state: own.get_or_insert_with(&state),
                panicked: false,
            };
            let alone = place.serve(taken);
            if place.panicked {
                // What the handler left behind may be half done.
                *own = None;
            }
            alone
        };
        Self {
            prefix,
            places,
            lines: iter::once(LineTerms::ONE_BY_ONE).chain(together).collect(),
            line_of: Box::new(|request| line_of(routes, request)),
            serve: Box::new(serve),
        }
    }

    /// Opens the hall; its workers are started as they are needed.
    pub(super) fn open(self, limits: &EdgeLimits) -> io::Result<edge::Hall> {
        let tiny = Arc::new(tiny_http_without_clients()?);
        let lines = self.lines.into_iter();
        let feed = Feed::new(self.prefix, tiny, self.places, lines, self.serve, limits);
        Ok(edge::Hall {
            prefix: self.prefix,
            feed: Arc::new(feed),
            line_of: self.line_of,
        })
    }
}

/// A tiny_http that nobody can reach: its socket is gone from the file system at once.
fn tiny_http_without_clients() -> io::Result<tiny_http::Server> {
    let directory = PrivateDirectory::create()?;
    let listener = UnixListener::bind(directory.path.join("tiny_http"))?;
    tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)
}

/// A place with what it owns.
struct Place<'s, S: 'static> {
    routes: &'static [Route<S>],
    state: &'s mut S,
    panicked: bool,
}

impl<S> Place<'_, S> {
    /// Those that come back had better be answered for themselves.
    fn serve(&mut self, taken: Taken) -> Vec<Call> {
        let Taken { line, calls, .. } = taken;
        let mut togethers = togethers(self.routes);
        if let Some((pattern, together)) = line.checked_sub(1).and_then(|n| togethers.nth(n)) {
            return self.serve_together(pattern, together, calls);
        }
        for call in calls {
            self.serve_one(call);
        }
        Vec::new()
    }

    /// From the request to its answer, or to whoever will give it.
    fn serve_one(&mut self, call: Call) {
        let Call {
            mut request,
            exchange,
        } = call;
        let (routes, state) = (self.routes, &mut *self.state);
        let panicked = panics(exchange, "none", |exchange, route| {
            let result = dispatch(routes, state, &mut request, route);
            if let Some(exchange) = exchange {
                exchange.set_caller(request.caller.take());
            }
            answer(exchange, route, result);
        });
        self.panicked |= panicked;
    }

    /// From requests that are answered together to their answers.
    fn serve_together(
        &mut self,
        pattern: &'static str,
        together: &AnsweredTogether<S>,
        calls: Vec<Call>,
    ) -> Vec<Call> {
        let (mut requests, mut exchanges) = (Vec::new(), Vec::new());
        for call in calls {
            let Call {
                mut request,
                exchange,
            } = call;
            request.params = router::params(pattern, request.path());
            requests.push(request);
            exchanges.push(exchange);
        }
        let state = &mut *self.state;
        let answers = catch_unwind(AssertUnwindSafe(|| (together.answer)(state, &requests)));
        let Ok(answers) = answers else {
            self.panicked = true;
            for exchange in exchanges {
                exchange.fail(pattern);
            }
            return Vec::new();
        };
        let mut alone = Vec::new();
        for ((request, exchange), result) in requests.into_iter().zip(exchanges).zip(answers) {
            match result {
                Some(result) => {
                    self.panicked |= panics(exchange, pattern, |exchange, route| {
                        answer(exchange, route, result);
                    });
                }
                None => alone.push(Call { request, exchange }),
            }
        }
        alone
    }
}

/// The routes whose requests are answered together, each of which has a line of its own.
fn togethers<S>(
    routes: &'static [Route<S>],
) -> impl Iterator<Item = (&'static str, &'static AnsweredTogether<S>)> {
    routes
        .iter()
        .filter_map(|(_, pattern, handler)| match handler {
            Handler::Together(together) => Some((*pattern, *together)),
            Handler::One(_) => None,
        })
}

/// The first line is for what is answered one by one.
fn line_of<S>(routes: &'static [Route<S>], request: &Request) -> usize {
    let suits = |handler: &'static Handler<S>| match handler {
        Handler::Together(together) => (together.when)(request).then_some(Some(together)),
        Handler::One(_) => Some(None),
    };
    match router::find(routes, &request.method, request.path(), suits) {
        Destination::Handler {
            handler: Some(found),
            ..
        } => togethers(routes)
            .position(|(_, together)| ptr::eq(together, *found))
            .map_or(0, |place| place + 1),
        _ => 0,
    }
}

/// Has an exchange answered; true where that panics, and its client hears so.
fn panics(
    exchange: Exchange,
    mut route: &'static str,
    act: impl FnOnce(&mut Option<Exchange>, &mut &'static str),
) -> bool {
    let mut exchange = Some(exchange);
    let acted = catch_unwind(AssertUnwindSafe(|| act(&mut exchange, &mut route)));
    if acted.is_err()
        && let Some(exchange) = exchange
    {
        exchange.fail(route);
    }
    acted.is_err()
}

fn answer(exchange: &mut Option<Exchange>, route: &'static str, result: HandlerResult<'_>) {
    let Some(at_hand) = exchange else { return };
    at_hand.set_route(route);
    match result.map(Response::into_later) {
        Ok(Ok(take_over)) => {
            at_hand.leave_place();
            if let Some(exchange) = exchange.take() {
                take_over(exchange);
            }
        }
        Ok(Err(response)) => at_hand.write(Ok(response)),
        Err(problem) => at_hand.write(Err(problem)),
    }
}

/// To the handler, or to what every resource answers alike.
fn dispatch<'a, S>(
    routes: &'static [Route<S>],
    state: &'a mut S,
    request: &mut Request,
    route: &mut &'static str,
) -> HandlerResult<'a> {
    let for_one = |handler: &'static Handler<S>| match handler {
        Handler::One(answer) => Some(answer),
        Handler::Together(_) => None,
    };
    match router::find(routes, &request.method, request.path(), for_one) {
        Destination::Handler {
            pattern,
            handler,
            params,
        } => {
            *route = pattern;
            request.params = params;
            handler(state, request)
        }
        Destination::Options { pattern, allow } => {
            *route = pattern;
            Ok(Response::empty(204).with_header("allow", allow))
        }
        Destination::MethodNotAllowed { pattern, allow } => {
            *route = pattern;
            Err(Problem::method_not_allowed(allow))
        }
        Destination::Unknown => Err(Problem::not_found(format!(
            "there is nothing at {}",
            request.path()
        ))),
    }
}

/// A directory that nobody else may enter, removed when it is dropped.
struct PrivateDirectory {
    path: PathBuf,
}

impl PrivateDirectory {
    fn create() -> io::Result<Self> {
        let name = format!("crud-master-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
