//! The worker threads. Each takes one request at a time and owns the state that its handlers
//! use, so a service has as many connections to its database as it has workers, and no lock.
//! Workers stand in halls, one for each kind of request, each with a tiny_http of its own: when
//! those of one hall all wait for something slow, the others go on.

use std::fs::DirBuilder;
use std::io;
use std::iter;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::edge::{self, Call, EdgeLimits, Feed, LineTerms};
use super::exchange::Exchange;
use super::problem::Problem;
use super::request::Request;
use super::response::Response;
use super::router::{self, AnsweredTogether, Destination, Handler, HandlerResult, Route};

/// What a worker needs of its stack, with room to spare.
const WORKER_STACK_BYTES: usize = 512 * 1024;

/// What the thread of the worker of that number does.
type Work = dyn Fn(&Context, usize) + Send + Sync;

/// The workers for one kind of request.
pub struct Hall {
    prefix: &'static str,
    pub(super) workers: usize,
    lines: Vec<LineTerms>,
    line_of: Box<dyn Fn(&Request) -> usize + Send + Sync>,
    work: Arc<Work>,
}

impl Hall {
    /// For `prefix` and all paths below it; the empty prefix takes what no other hall does.
    /// `state` makes what a worker owns, in that worker.
    pub fn new<S: 'static>(
        prefix: &'static str,
        workers: usize,
        routes: &'static [Route<S>],
        state: impl Fn() -> S + Send + Sync + 'static,
    ) -> Self {
        let work = move |context: &Context, number: usize| {
            let worker = Worker {
                routes,
                context,
                number,
                state: state(),
            };
            worker.run(&state);
        };
        let together = togethers(routes).map(|(_, together)| LineTerms {
            workers_max: together.workers,
            calls_max: together.requests_max,
        });
        Self {
            prefix,
            workers,
            lines: iter::once(LineTerms::ONE_BY_ONE).chain(together).collect(),
            line_of: Box::new(|request| line_of(routes, request)),
            work: Arc::new(work),
        }
    }

    /// Opens the hall; its workers are started as they are needed.
    pub(super) fn open(self, limits: &EdgeLimits) -> io::Result<(OpenHall, edge::Hall)> {
        let tiny = Arc::new(tiny_http_without_clients()?);
        let lines = self.lines.into_iter();
        let feed = Feed::new(Arc::clone(&tiny), self.workers, lines, limits);
        let context = Arc::new(Context {
            tiny,
            feed: Arc::new(feed),
        });
        let start_worker = {
            let (context, work, prefix) = (Arc::clone(&context), self.work, self.prefix);
            move |number: usize| {
                let (context, work) = (Arc::clone(&context), Arc::clone(&work));
                thread::Builder::new()
                    .name(format!("{prefix}-{number}"))
                    .stack_size(WORKER_STACK_BYTES)
                    .spawn(move || work(&context, number))
            }
        };
        let at_the_edge = edge::Hall {
            prefix: self.prefix,
            feed: Arc::clone(&context.feed),
            line_of: self.line_of,
            start_worker: Box::new(start_worker),
        };
        let prefix = self.prefix;
        Ok((OpenHall { prefix, context }, at_the_edge))
    }
}

/// What the workers of a hall share.
struct Context {
    tiny: Arc<tiny_http::Server>,
    feed: Arc<Feed>,
}

/// A hall whose workers can be told to end.
pub(super) struct OpenHall {
    prefix: &'static str,
    context: Arc<Context>,
}

impl OpenHall {
    /// When no request will come any more: waits for the workers, until `deadline` at most.
    pub(super) fn close(self, deadline: Instant) {
        for worker in self.context.feed.close() {
            // Each call wakes one worker, and one that wakes ends.
            while !worker.is_finished() && Instant::now() < deadline {
                self.context.tiny.unblock();
                thread::sleep(Duration::from_millis(1));
            }
            if !worker.is_finished() {
                log::warn!(hall = self.prefix; "a worker is still busy; it ends with the program");
            }
        }
    }
}

/// A tiny_http that nobody can reach: its socket is gone from the file system at once.
fn tiny_http_without_clients() -> io::Result<tiny_http::Server> {
    let directory = PrivateDirectory::create()?;
    let listener = UnixListener::bind(directory.path.join("tiny_http"))?;
    tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)
}

/// A worker with what it owns.
struct Worker<'c, S: 'static> {
    routes: &'static [Route<S>],
    context: &'c Context,
    number: usize,
    state: S,
}

impl<S> Worker<'_, S> {
    fn run(mut self, new_state: &dyn Fn() -> S) {
        let Context { tiny, feed } = self.context;
        loop {
            while let Some((line, calls)) = feed.next(self.number) {
                let served = match line
                    .checked_sub(1)
                    .and_then(|n| togethers(self.routes).nth(n))
                {
                    Some((pattern, together)) => self.serve_together(pattern, together, calls),
                    None => calls.into_iter().try_for_each(|call| self.serve(call)),
                };
                if served.is_err() {
                    // What the handler left behind may be half done.
                    self.state = new_state();
                }
            }
            if feed.is_closed() {
                return;
            }
            // There is never a request of its own: it returns when the feed unblocks it.
            let _ = tiny.recv();
        }
    }

    /// From the request to its answer, or to whoever will give it.
    fn serve(&mut self, call: Call) -> thread::Result<()> {
        let Call {
            mut request,
            exchange,
        } = call;
        let (routes, state) = (self.routes, &mut self.state);
        caught(exchange, "none", |exchange, route| {
            let result = dispatch(routes, state, &mut request, route);
            answer(exchange, route, result);
        })
    }

    /// The same for requests that are answered together.
    fn serve_together(
        &mut self,
        pattern: &'static str,
        together: &AnsweredTogether<S>,
        calls: Vec<Call>,
    ) -> thread::Result<()> {
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
        let state = &mut self.state;
        let answers = catch_unwind(AssertUnwindSafe(|| (together.answer)(state, &requests)));
        let answers = match answers {
            Ok(answers) => answers,
            Err(panic) => {
                for exchange in exchanges {
                    exchange.fail(pattern);
                }
                return Err(panic);
            }
        };
        let mut alone = Vec::new();
        for ((request, exchange), result) in requests.into_iter().zip(exchanges).zip(answers) {
            match result {
                Some(result) => caught(exchange, pattern, |exchange, route| {
                    answer(exchange, route, result);
                })?,
                None => alone.push(Call { request, exchange }),
            }
        }
        for mut call in alone {
            call.exchange.take_alone(self.number);
            self.serve(call)?;
        }
        Ok(())
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

/// Has an exchange answered; where that panics, its client hears so.
fn caught(
    exchange: Exchange,
    mut route: &'static str,
    act: impl FnOnce(&mut Option<Exchange>, &mut &'static str),
) -> thread::Result<()> {
    let mut exchange = Some(exchange);
    let acted = catch_unwind(AssertUnwindSafe(|| act(&mut exchange, &mut route)));
    if acted.is_err()
        && let Some(exchange) = exchange
    {
        exchange.fail(route);
    }
    acted
}

fn answer(exchange: &mut Option<Exchange>, route: &'static str, result: HandlerResult<'_>) {
    let Some(at_hand) = exchange else { return };
    at_hand.set_route(route);
    match result.map(Response::into_later) {
        Ok(Ok(take_over)) => {
            at_hand.leave_worker();
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
