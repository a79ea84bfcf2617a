//! From method and path to a route. What every resource answers alike (HEAD, OPTIONS, 404, 405)
//! is decided here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use percent_encoding::percent_decode_str;

use crate::http::connection::Decided;
use crate::http::message::head::{Head, Method, path_of};
use crate::http::message::problem::Problem;
use crate::http::message::request::Request;

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

/// What the requests of a path and of those below it are given to.
pub trait Submit: Send + Sync {
    /// Paths that are this one or below it belong here; empty takes the rest.
    fn prefix(&self) -> &'static str;
    /// Finds the route of a request, and asks whether it may be taken; None where it may.
    fn admit(&self, head: &mut Head) -> Option<Decided>;
    /// Takes a request that was admitted, and may work on others that wait.
    fn submit(self: Arc<Self>, request: Request);
    /// How many threads may wait here at the same time.
    fn slots(&self) -> usize;
    /// Answers those that have waited too long for a slot.
    fn sweep(&self, now: Instant);
    /// Works on what waits, where a slot is free.
    fn drain(self: Arc<Self>);
    /// Whether no slot is taken and nothing waits.
    #[cfg(feature = "shuttle")]
    fn is_at_rest(&self) -> bool;
}

/// All that a program answers.
pub(crate) struct Router {
    /// The first that takes a path has it.
    pub(crate) bulkheads: Vec<Arc<dyn Submit>>,
    /// The names that the service is known by; any, where there are none.
    pub(crate) hosts: Vec<String>,
}

impl Router {
    pub(crate) fn admit(&self, head: &mut Head) -> Option<Decided> {
        head.matched.pattern = "none";
        if let Err(problem) = head.require_singles() {
            return Some(Err(problem));
        }
        if !self.is_known(head.header("host")) {
            return Some(Err(Problem::misdirected()));
        }
        if head.target == "*" {
            return Some(Ok("GET, HEAD, POST, PUT, DELETE, OPTIONS".to_owned()));
        }
        let takes = |prefix: &str| {
            let rest = head.path().strip_prefix(prefix);
            rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
        };
        let found = self
            .bulkheads
            .iter()
            .position(|bulkhead| takes(bulkhead.prefix()));
        let Some(found) = found else {
            return Some(Err(nothing_at(head.path())));
        };
        head.matched.bulkhead = found;
        self.bulkheads[found].admit(head)
    }

    /// Whether a request for that host is for us: a page elsewhere that has its own name lead here
    /// (DNS rebinding) is not. An address is no name.
    fn is_known(&self, host: Option<&str>) -> bool {
        let Some(host) = host.filter(|_| !self.hosts.is_empty()) else {
            return true;
        };
        let (name, _) = host
            .rsplit_once(':')
            .filter(|_| !host.ends_with(']'))
            .unwrap_or((host, ""));
        name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self
                .hosts
                .iter()
                .any(|known| known.eq_ignore_ascii_case(name))
    }

    /// How many threads may wait at the same time.
    pub(crate) fn slots(&self) -> usize {
        self.bulkheads.iter().map(|bulkhead| bulkhead.slots()).sum()
    }

    /// Works on what waits wherever a slot is free.
    pub(crate) fn drain(&self) {
        for bulkhead in &self.bulkheads {
            Arc::clone(bulkhead).drain();
        }
    }

    /// Answers those that have waited too long for a slot.
    pub(crate) fn sweep(&self, now: Instant) {
        for bulkhead in &self.bulkheads {
            bulkhead.sweep(now);
        }
    }

    pub(crate) fn submit(&self, request: Request) {
        Arc::clone(&self.bulkheads[request.matched.bulkhead]).submit(request);
    }
}

fn nothing_at(path: &str) -> Problem {
    Problem::not_found(format!("there is nothing at {path}"))
}

/// Finds the route of a request in a table; None where there is one. A path with one
/// trailing slash is the path without it.
pub(crate) fn find(
    routes: impl Iterator<Item = (Verb, &'static str)> + Clone,
    head: &mut Head,
) -> Option<Decided> {
    let path = without_last_slash(path_of(&head.target));
    for (number, (verb, pattern)) in routes.clone().enumerate() {
        let Some(params) = matched(pattern, path) else {
            continue;
        };
        let matched = &mut head.matched;
        if !answers(verb, &head.method) {
            matched.pattern = pattern;
            continue;
        }
        (matched.pattern, matched.route, matched.params) = (pattern, number, params);
        return None;
    }
    if head.matched.pattern == "none" {
        return Some(Err(nothing_at(head.path())));
    }
    let allow = allowed(routes, path);
    Some(if head.method == Method::Options {
        Ok(allow)
    } else {
        Err(Problem::method_not_allowed(allow))
    })
}

fn without_last_slash(path: &str) -> &str {
    let shorter = path.strip_suffix('/').filter(|path| !path.is_empty());
    shorter.unwrap_or(path)
}

fn answers(verb: Verb, method: &Method) -> bool {
    match verb {
        Verb::Get => matches!(method, Method::Get | Method::Head),
        Verb::Post => *method == Method::Post,
        Verb::Put => *method == Method::Put,
        Verb::Delete => *method == Method::Delete,
        Verb::Any => true,
    }
}

/// The value of `Allow` for a path.
fn allowed(routes: impl Iterator<Item = (Verb, &'static str)>, path: &str) -> String {
    let mut methods = Vec::new();
    for (verb, _) in routes.filter(|(_, pattern)| matched(pattern, path).is_some()) {
        methods.extend_from_slice(match verb {
            Verb::Get => &["GET", "HEAD"][..],
            Verb::Post => &["POST"],
            Verb::Put => &["PUT"],
            Verb::Delete => &["DELETE"],
            Verb::Any => &[],
        });
    }
    methods.push("OPTIONS");
    methods.join(", ")
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
            params.push((
                name,
                percent_decode_str(segment).decode_utf8_lossy().into_owned(),
            ));
        } else if segment != expected {
            return None;
        }
    }
    segments.next().is_none().then_some(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &[(Verb, &str)] = &[
        (Verb::Get, "/api/movies"),
        (Verb::Post, "/api/movies"),
        (Verb::Get, "/api/movies/:id"),
        (Verb::Any, "/files/*"),
    ];

    fn destination(method: &str, path: &str) -> String {
        let (client, method) = ([127, 0, 0, 1].into(), Method::new(method));
        let mut head = Head::bare(
            method,
            path.to_owned(),
            String::new(),
            client,
            false,
            Instant::now(),
        );
        head.matched.pattern = "none";
        match find(ROUTES.iter().copied(), &mut head) {
            None => format!("{} {:?}", head.matched.pattern, head.matched.params),
            Some(Ok(allow)) => format!("204 {allow}"),
            Some(Err(problem)) => {
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
