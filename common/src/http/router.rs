//! From method and path to a handler, by one literal table per service. What every resource
//! answers alike (HEAD, OPTIONS, 404, 405) is decided here.

use percent_encoding::percent_decode_str;

use super::problem::Problem;
use super::request::{Method, Request};
use super::response::Response;

/// Who answers: plain functions over the state that their place owns.
pub enum Handler<S: 'static> {
    /// Each request for itself.
    One(for<'a> fn(&'a mut S, &Request) -> HandlerResult<'a>),
    /// What waits together is answered together.
    Together(&'static AnsweredTogether<S>),
}

/// An answer, or why there is none; the answer may still read from that state.
pub type HandlerResult<'a> = Result<Response<'a>, Problem>;

/// How requests that wait at the same time are answered together, in fewer ways to and from
/// the database than there are requests. One that comes alone does not wait for others.
pub struct AnsweredTogether<S> {
    /// Which of the requests; the others are for the next route that fits.
    pub when: fn(&Request) -> bool,
    /// At how many places at the same time: the fewer, the more is together.
    pub places: usize,
    /// How many requests there are at once, at most.
    pub requests_max: usize,
    /// Makes the answers to the requests, in their order.
    pub answer: fn(&mut S, &[Request]) -> Answers,
}

/// Answers to requests, in their order. None is for one that had better be answered for itself,
/// by the next route that fits.
pub type Answers = Vec<Option<HandlerResult<'static>>>;

/// One line of a service's table: `(Verb::Get, "/api/movies/:id", One(get_movie))`. A segment
/// that begins with `:` stands for any one segment; a last segment `*` for any rest,
/// or none.
pub type Route<S> = (Verb, &'static str, Handler<S>);

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

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Destination<H> {
    /// A handler, with the pattern that matched and the segments that it names.
    Handler {
        pattern: &'static str,
        handler: H,
        params: Vec<(&'static str, String)>,
    },
    /// OPTIONS: the methods that the resource has.
    Options {
        pattern: &'static str,
        allow: String,
    },
    /// A resource without that method.
    MethodNotAllowed {
        pattern: &'static str,
        allow: String,
    },
    /// No such resource.
    Unknown,
}

/// Finds where a request goes: to the first handler for it that `suits`, as what that makes of
/// it. A path with one trailing slash is the path without it.
pub(super) fn find<S, H>(
    routes: &'static [Route<S>],
    method: &Method,
    path: &str,
    suits: impl Fn(&'static Handler<S>) -> Option<H>,
) -> Destination<H> {
    let path = without_last_slash(path);
    let mut found: Option<&'static str> = None;
    for (verb, pattern, handler) in routes {
        let Some(params) = matched(pattern, path) else {
            continue;
        };
        found = found.or(Some(pattern));
        if answers(*verb, method)
            && let Some(handler) = suits(handler)
        {
            return Destination::Handler {
                pattern,
                handler,
                params,
            };
        }
    }
    match found {
        None => Destination::Unknown,
        Some(pattern) if *method == Method::Options => Destination::Options {
            pattern,
            allow: allowed(routes, path),
        },
        Some(pattern) => Destination::MethodNotAllowed {
            pattern,
            allow: allowed(routes, path),
        },
    }
}

/// The named segments of a path that fits the pattern, decoded.
pub(super) fn params(pattern: &'static str, path: &str) -> Vec<(&'static str, String)> {
    matched(pattern, without_last_slash(path)).unwrap_or_default()
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
fn allowed<S>(routes: &[Route<S>], path: &str) -> String {
    let mut methods = Vec::new();
    for (verb, pattern, _) in routes {
        if matched(pattern, path).is_some() {
            methods.extend_from_slice(match verb {
                Verb::Get if methods.contains(&"GET") => &[][..],
                Verb::Get => &["GET", "HEAD"],
                Verb::Post => &["POST"],
                Verb::Put => &["PUT"],
                Verb::Delete => &["DELETE"],
                Verb::Any => &[],
            });
        }
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

    #[expect(
        clippy::unnecessary_wraps,
        reason = "a handler may fail; this one does not"
    )]
    fn answer<'a>(_: &'a mut (), _: &Request) -> HandlerResult<'a> {
        Ok(Response::empty(204))
    }

    const ROUTES: &[Route<()>] = &[
        (Verb::Get, "/api/movies", Handler::One(answer)),
        (Verb::Post, "/api/movies", Handler::One(answer)),
        (Verb::Get, "/api/movies/:id", Handler::One(answer)),
        (Verb::Any, "/files/*", Handler::One(answer)),
    ];

    fn destination(method: &str, path: &str) -> String {
        match find(ROUTES, &Method::new(method), path, Some) {
            Destination::Handler {
                pattern, params, ..
            } => format!("{pattern} {params:?}"),
            Destination::Options { allow, .. } => format!("204 {allow}"),
            Destination::MethodNotAllowed { allow, .. } => format!("405 {allow}"),
            Destination::Unknown => "404".to_owned(),
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
