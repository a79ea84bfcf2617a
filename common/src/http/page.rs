//! Lists by key: `?limit=N&after=ID`. Unlike an offset, a key costs the same on every page and
//! misses nothing when rows are added or removed meanwhile.

use serde::Serialize;

use super::problem::Problem;
use super::request::Request;
use super::response::Response;
use super::router::HandlerResult;

/// The most rows on one page.
const LIMIT_MAX: i64 = 1000;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many rows; None is all of them.
    pub limit: Option<i64>,
    /// Only rows whose id is greater.
    pub after: i64,
}

impl Page {
    /// From `limit` and `after` in the query.
    pub fn from_query(request: &Request) -> Result<Self, Problem> {
        Ok(Self {
            limit: request.query_number("limit", 1..=LIMIT_MAX)?,
            after: request.query_number("after", 0..=i64::MAX)?.unwrap_or(0),
        })
    }

    /// What to ask the database for: one row more than the page holds tells whether it is the
    /// last.
    #[must_use]
    pub fn with_one_more(self) -> Self {
        Self {
            limit: self.limit.map(|limit| limit + 1),
            ..self
        }
    }

    /// The rows of [`Page::with_one_more`] as an answer. While there is more to come, a `Link`
    /// (RFC 8288) leads on. Without a limit the rows are streamed.
    pub fn respond<'a, T: Serialize, E: Into<Problem>>(
        self,
        rows: impl Iterator<Item = Result<T, E>> + 'a,
        id: fn(&T) -> i64,
        request: &Request,
    ) -> HandlerResult<'a> {
        let Some(limit) = self.limit else {
            return Ok(Response::json_array(
                200,
                rows.map(|row| row.map_err(E::into)),
            ));
        };
        let mut rows: Vec<T> = rows.collect::<Result<_, E>>().map_err(E::into)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let response = Response::json(200, &rows);
        Ok(match rows.last() {
            Some(last) if more => response.with_header(
                "link",
                format!("<{}>; rel=\"next\"", next(request, id(last))),
            ),
            _ => response,
        })
    }
}

/// The same list from behind that id: the request's own target with another `after`.
fn next(request: &Request, after: i64) -> String {
    let query = request
        .target
        .split_once('?')
        .map_or("", |(_, query)| query);
    let kept = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("after="));
    let pairs: Vec<&str> = kept.collect();
    format!("{}?{}&after={after}", request.path(), pairs.join("&")).replace('>', "%3E")
}
