//! Finds the route of a method and a path, and decides what every resource answers alike (HEAD, OPTIONS, 404,
//! 405).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::Method;
use percent_encoding::percent_decode_str;

use super::access_log;
use crate::http::message::head::{Head, path_of};
use crate::http::message::problem::Problem;
use crate::http::message::request::Request;
use crate::http::message::response::Response;

/// The methods that a table can name. HEAD and OPTIONS follow from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Verb {
    Get,
    Post,
    Put,
    Delete,
    /// Every method, HEAD and OPTIONS too, as the client sent it.
    Any,
}

impl Verb {
    fn methods(self) -> &'static [&'static str] {
        match self {
            Self::Get => &["GET", "HEAD"],
            Self::Post => &["POST"],
            Self::Put => &["PUT"],
            Self::Delete => &["DELETE"],
            Self::Any => &[],
        }
    }
}

/// Whether a request is accepted (None), or what its head alone decides: an answer or a problem.
pub type Admission = Result<Option<Response<'static>>, Problem>;

/// Takes the requests of a path and of the paths below it.
pub trait AnyBulkhead: Send + Sync {
    /// The path; the empty one takes the requests that no other takes.
    fn prefix(&self) -> &'static str;
    /// Finds the route of a request, and decides whether it is accepted.
    fn admit(&self, head: &mut Head) -> Admission;
    /// Takes a request that was admitted, and may serve others that wait.
    fn submit(self: Arc<Self>, request: Request);
    /// Serves requests until none waits that may have a slot.
    fn work(self: Arc<Self>);
    /// The number of slots, for each of which a thread may wait.
    fn slots(&self) -> usize;
    /// Answers the requests that have waited too long for a slot.
    fn sweep(&self, now: Instant);
}

/// All bulkheads of a program.
pub(crate) struct Router {
    /// A path belongs to the first bulkhead that takes it.
    pub(crate) bulkheads: Vec<Arc<dyn AnyBulkhead>>,
    /// The names that `Host` may have; if there are none, every name is allowed.
    pub(crate) hosts: Vec<String>,
}

impl Router {
    pub(crate) fn admit(&self, head: &mut Head) -> Admission {
        head.matched.pattern = "none";
        head.require_singles()?;
        if !self.is_known(head.header("host")) {
            return Err(Problem::new(
                421,
                "this service is not known by the name that Host has",
            ));
        }
        if head.target == "*" {
            return Ok(Some(allowing(
                "GET, HEAD, POST, PUT, DELETE, OPTIONS".into(),
            )));
        }
        let takes = |bulkhead: &Arc<dyn AnyBulkhead>| {
            let rest = head.path().strip_prefix(bulkhead.prefix());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let found = self.bulkheads.iter().position(takes);
        head.matched.bulkhead = found.ok_or_else(|| nothing_at(head.path()))?;
        self.bulkheads[head.matched.bulkhead].admit(head)
    }

    /// Whether a request for that host is meant for this service. A page of another site whose name resolves to
    /// this machine (DNS rebinding) sends another name. Addresses are always allowed.
    fn is_known(&self, host: Option<&str>) -> bool {
        let Some(host) = host.filter(|_| !self.hosts.is_empty()) else {
            return true;
        };
        let without_port = host.trim_end_matches(|c: char| c.is_ascii_digit());
        let name = without_port.strip_suffix(':').unwrap_or(host);
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        is("localhost")
            || self.hosts.iter().any(|known| is(known))
            || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
    }

    /// The number of slots of all bulkheads, for each of which a thread may wait.
    pub(crate) fn slots(&self) -> usize {
        self.bulkheads.iter().map(|bulkhead| bulkhead.slots()).sum()
    }

    /// Serves requests until none waits that may have a slot.
    pub(crate) fn work(&self) {
        for bulkhead in &self.bulkheads {
            Arc::clone(bulkhead).work();
        }
    }

    /// Is called several times a second, and answers the requests that have waited too long.
    pub(crate) fn sweep(&self, now: Instant) {
        for bulkhead in &self.bulkheads {
            bulkhead.sweep(now);
        }
        access_log::log_refusals(now);
    }

    pub(crate) fn submit(&self, request: Request) {
        Arc::clone(&self.bulkheads[request.matched.bulkhead]).submit(request);
    }
}

fn nothing_at(path: &str) -> Problem {
    Problem::not_found(format!("there is nothing at {path}"))
}

fn allowing(methods: String) -> Response<'static> {
    Response::empty(204).with_header("allow", methods)
}

/// Finds the route of a request in a table. A path with one trailing slash is the path without it.
pub(crate) fn find<H>(routes: &[(Verb, &'static str, H)], head: &mut Head) -> Admission {
    let path = path_of(&head.target);
    let path = path
        .strip_suffix('/')
        .filter(|path| !path.is_empty())
        .unwrap_or(path);
    let mut allowed = Vec::new();
    for (number, (verb, pattern, _)) in routes.iter().enumerate() {
        let Some(params) = matched(pattern, path) else {
            continue;
        };
        head.matched.pattern = pattern;
        if *verb == Verb::Any || verb.methods().contains(&head.method.as_str()) {
            (head.matched.route, head.matched.params) = (number, params);
            return Ok(None);
        }
        allowed.extend_from_slice(verb.methods());
    }
    if allowed.is_empty() {
        return Err(nothing_at(head.path()));
    }
    allowed.push("OPTIONS");
    let allowed = allowed.join(", ");
    if head.method == Method::OPTIONS {
        Ok(Some(allowing(allowed)))
    } else {
        Err(Problem::method_not_allowed(allowed))
    }
}

/// The named segments, decoded, if the path fits the pattern.
fn matched(pattern: &'static str, path: &str) -> Option<Vec<(&'static str, String)>> {
    let mut params = Vec::new();
    let mut segments = path.split('/');
    for expected in pattern.split('/') {
        if expected == "*" {
            return Some(params);
        }
        let segment = segments.next()?;
        if let Some(name) = expected.strip_prefix(':') {
            let decoded = percent_decode_str(segment).decode_utf8_lossy();
            params.push((name, decoded.into_owned()));
        } else if segment != expected {
            return None;
        }
    }
    segments.next().is_none().then_some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &[(Verb, &str, ())] = &[
        (Verb::Get, "/api/movies", ()),
        (Verb::Post, "/api/movies", ()),
        (Verb::Get, "/api/movies/:id", ()),
        (Verb::Any, "/files/*", ()),
    ];

    fn destination(method: &str, path: &str) -> String {
        let client = [127, 0, 0, 1].into();
        let mut head = Head::new(method, path, client, false, Instant::now());
        head.matched.pattern = "none";
        match find(ROUTES, &mut head) {
            Ok(None) => format!("{} {:?}", head.matched.pattern, head.matched.params),
            Ok(Some(response)) => {
                let mut lines = Vec::new();
                response.write_head(&mut lines, "", false, "");
                let lines = String::from_utf8(lines).expect("text");
                let allow = lines.lines().find_map(|line| line.strip_prefix("allow: "));
                format!("{} {}", response.status, allow.unwrap_or(""))
            }
            Err(problem) => {
                let allow = problem.detail.strip_prefix("this resource allows ");
                format!("{} {}", problem.status, allow.unwrap_or(""))
                    .trim_end()
                    .to_owned()
            }
        }
    }

    #[test]
    fn a_path_leads_to_the_pattern_it_fits() {
        assert_eq!(destination("GET", "/api/movies"), "/api/movies []");
        assert_eq!(
            destination("GET", "/api/movies/7"),
            r#"/api/movies/:id [("id", "7")]"#
        );
        assert_eq!(
            destination("GET", "/api/movies/a%20b"),
            r#"/api/movies/:id [("id", "a b")]"#
        );
        for path in [
            "/",
            "",
            "/api",
            "/api/moviesx",
            "/api/movies/7/cast",
            "//api/movies",
            "*",
        ] {
            assert_eq!(destination("GET", path), "404", "{path}");
        }
    }

    #[test]
    fn one_trailing_slash_makes_no_difference() {
        assert_eq!(destination("GET", "/api/movies/"), "/api/movies []");
        assert_eq!(
            destination("GET", "/api/movies/7/"),
            r#"/api/movies/:id [("id", "7")]"#
        );
        assert_eq!(destination("GET", "/api/movies/7//"), "404");
    }

    #[test]
    fn head_goes_where_get_goes() {
        assert_eq!(destination("HEAD", "/api/movies"), "/api/movies []");
    }

    #[test]
    fn options_lists_what_the_resource_has() {
        assert_eq!(
            destination("OPTIONS", "/api/movies"),
            "204 GET, HEAD, POST, OPTIONS"
        );
    }

    #[test]
    fn another_method_is_told_which_there_are() {
        for method in ["PATCH", "get", "TRACE"] {
            assert_eq!(
                destination(method, "/api/movies/7"),
                "405 GET, HEAD, OPTIONS",
                "{method}"
            );
        }
    }

    #[test]
    fn a_route_for_any_method_takes_the_rest_of_the_path_too() {
        for method in ["OPTIONS", "PATCH", "HEAD"] {
            assert_eq!(destination(method, "/files/a/b"), "/files/* []", "{method}");
        }
        assert_eq!(destination("GET", "/files/"), "/files/* []");
        assert_eq!(destination("GET", "/filesystem"), "404");
    }
}
