//! Lists by key: `?limit=N&after=ID`. Unlike an offset, a key costs the same on every page and
//! misses nothing when rows are added or removed meanwhile, where rows become visible in the order
//! of their ids.

use serde::Serialize;

use super::conditional::if_changed;
use super::head::Head;
use super::problem::Problem;
use super::request::Request;
use super::response::{HandlerResult, Response};

/// The most rows on one page.
const LIMIT_MAX: u16 = 1000;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// At most so many rows; None is all of them.
    pub limit: Option<u16>,
    /// Only rows behind this id, in the order of the list.
    pub after: i64,
    /// The greatest id first, instead of the smallest.
    pub newest_first: bool,
}

impl Page {
    /// From `limit`, `after` and `order` in the query.
    pub fn from_query(request: &Head) -> Result<Self, Problem> {
        let limit = request.query_number("limit", 1..=LIMIT_MAX)?;
        let after = request.query_number("after", 0..=i64::MAX)?;
        let newest_first = match request.query("order")?.as_deref() {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(_) => return Err(Problem::bad_request("order must be asc or desc")),
        };
        // Where none is given: behind the greatest there can be, or before the first.
        let after = after.unwrap_or(if newest_first { i64::MAX } else { 0 });
        Ok(Self {
            limit,
            after,
            newest_first,
        })
    }

    /// The longest page, where no limit was asked for.
    #[must_use]
    pub fn with_limit(mut self) -> Self {
        self.limit = self.limit.or(Some(LIMIT_MAX));
        self
    }

    /// How many rows to read: one more than the page holds tells whether it is the last.
    #[must_use]
    pub fn rows(self) -> Option<i64> {
        self.limit.map(|limit| i64::from(limit) + 1)
    }

    /// An answer with the rows that are on this page, of those that were read. While there is
    /// more to come, a `Link` (RFC 8288) leads on.
    pub fn respond<'a, T>(
        self,
        mut rows: Vec<T>,
        id: fn(&T) -> i64,
        request: &Request,
        content: impl FnOnce(Vec<T>) -> HandlerResult<'a>,
    ) -> HandlerResult<'a> {
        let limit = self.limit.map_or(usize::MAX, usize::from);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| has_more).map(id);
        let response = content(rows)?;
        Ok(match last.map(|last| next(request, last)) {
            Some(next) => response.with_header("link", format!("<{next}>; rel=\"next\"")),
            None => response,
        })
    }
}

/// An answer with a whole list, which is read as it is sent. A short one has an entity tag; a
/// longer one would have to be read twice for it.
pub fn whole_list<'a, T: Serialize + Send + 'a, E: Into<Problem> + Send + 'a>(
    request: &Request,
    rows: impl Iterator<Item = Result<T, E>> + Send + 'a,
) -> HandlerResult<'a> {
    let response = Response::json_array(200, rows).begun()?;
    Ok(if_changed(request, response))
}

/// A list from behind that id: the request's own target with another `after`.
fn next(request: &Request, after: i64) -> String {
    let pairs = request.query_pairs().filter(|(name, _)| name != "after");
    let pairs: Vec<&str> = pairs.map(|(_, pair)| pair).collect();
    format!("{}?{}&after={after}", request.path(), pairs.join("&")).replace('>', "%3E")
}
