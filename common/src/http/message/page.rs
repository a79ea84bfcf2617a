//! Lists by key: `?limit=N&after=ID`. Unlike an offset, a key costs the same on every page and
//! misses nothing when rows are added or removed meanwhile, where rows become visible in the order
//! of their ids.

use serde::Serialize;

use super::conditional::if_changed;
use super::head::{Head, names};
use super::problem::Problem;
use super::request::Request;
use super::response::{HandlerResult, Response};

/// The most rows on one page.
const LIMIT_MAX: u16 = 1000;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many rows; None is all of them.
    pub limit: Option<u16>,
    /// Only rows behind this id, in the order of the list.
    pub after: i64,
    /// The greatest id first, instead of the smallest.
    pub newest_first: bool,
}

impl Page {
    /// From `limit` and `after` in the query.
    pub fn from_query(request: &Head) -> Result<Self, Problem> {
        Ok(Self {
            limit: request.query_number("limit", 1..=LIMIT_MAX)?,
            after: request.query_number("after", 0..=i64::MAX)?.unwrap_or(0),
            newest_first: false,
        })
    }

    /// The page that a request asks for, of a list that is also read from its end, with `order=desc`.
    pub fn from_query_in_either_order(request: &Head) -> Result<Self, Problem> {
        let page = Self::from_query(request)?;
        match request.query("order")?.as_deref() {
            None | Some("asc") => Ok(page),
            Some("desc") => Ok(Self {
                // Where none is given: behind the greatest there can be.
                after: request
                    .query_number("after", 0..=i64::MAX)?
                    .unwrap_or(i64::MAX),
                newest_first: true,
                ..page
            }),
            Some(_) => Err(Problem::bad_request("order must be asc or desc")),
        }
    }

    /// The longest page, where no limit was asked for.
    #[must_use]
    pub fn with_limit(self) -> Self {
        Self {
            limit: self.limit.or(Some(LIMIT_MAX)),
            ..self
        }
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
        let last = self.limit.map(usize::from);
        let last = last.filter(|last| *last < rows.len());
        rows.truncate(last.unwrap_or(rows.len()));
        let link = last
            .and(rows.last())
            .map(|last| format!("<{}>; rel=\"next\"", next(request, id(last))));
        let response = content(rows)?;
        Ok(match link {
            Some(link) => response.with_header("link", link),
            None => response,
        })
    }
}

/// An answer with a whole list, which is read as it is sent. A short one has an entity tag; a
/// longer one would have to be read twice for it.
pub fn whole_list<'a, T: Serialize, E: Into<Problem>>(
    request: &Request,
    rows: impl Iterator<Item = Result<T, E>> + Send + 'a,
) -> HandlerResult<'a> {
    Ok(if_changed(
        request,
        Response::json_array(200, rows).begun()?,
    ))
}

/// A list from behind that id: the request's own target with another `after`.
fn next(request: &Request, after: i64) -> String {
    let kept = request.query_pairs().filter(|pair| !names(pair, "after"));
    let pairs: Vec<&str> = kept.collect();
    format!("{}?{}&after={after}", request.path(), pairs.join("&")).replace('>', "%3E")
}
