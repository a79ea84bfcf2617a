//! Lists by key: `?limit=N&after=ID`. Unlike an offset, a key costs the same on every page and
//! misses nothing when rows are added or removed meanwhile.

use serde::Serialize;

use super::conditional::json_if_changed;
use super::problem::Problem;
use super::request::{Request, names};
use super::response::Response;
use super::router::HandlerResult;

/// The most rows on one page.
const LIMIT_MAX: i64 = 1000;

/// A list without a limit is held in memory up to so many rows; a longer one is streamed.
const ROWS_HELD_MAX: usize = 100;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many rows; None is all of them.
    pub limit: Option<i64>,
    /// Only rows behind this id, in the order of the list.
    pub after: i64,
    /// The greatest id first, instead of the smallest.
    pub newest_first: bool,
}

impl Page {
    /// From `limit` and `after` in the query.
    pub fn from_query(request: &Request) -> Result<Self, Problem> {
        Ok(Self {
            limit: request.query_number("limit", 1..=LIMIT_MAX)?,
            after: request.query_number("after", 0..=i64::MAX)?.unwrap_or(0),
            newest_first: false,
        })
    }

    /// The same for a list that is also read from its end, with `order=desc`.
    pub fn from_query_in_either_order(request: &Request) -> Result<Self, Problem> {
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
    /// (RFC 8288) leads on. Without a limit, what is more than a page is streamed, and has no
    /// entity tag: it would have to be read twice.
    pub fn respond<'a, T: Serialize + 'a, E: Into<Problem>>(
        self,
        rows: impl Iterator<Item = Result<T, E>> + 'a,
        id: fn(&T) -> i64,
        request: &Request,
    ) -> HandlerResult<'a> {
        let mut rows = rows.map(|row| row.map_err(E::into));
        let Some(limit) = self.limit else {
            let head: Vec<T> = rows
                .by_ref()
                .take(ROWS_HELD_MAX + 1)
                .collect::<Result<_, _>>()?;
            return Ok(if head.len() <= ROWS_HELD_MAX {
                json_if_changed(request, &head)
            } else {
                Response::json_array(200, head.into_iter().map(Ok).chain(rows))
            });
        };
        let mut page: Vec<T> = rows.collect::<Result<_, _>>()?;
        let held = usize::try_from(limit).unwrap_or(usize::MAX);
        if page.len() <= held {
            return Ok(json_if_changed(request, &page));
        }
        page.truncate(held);
        let response = json_if_changed(request, &page);
        Ok(match page.last() {
            Some(last) => response.with_header(
                "link",
                format!("<{}>; rel=\"next\"", next(request, id(last))),
            ),
            None => response,
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
        .filter(|pair| !pair.is_empty() && !names(pair, "after"));
    let pairs: Vec<&str> = kept.collect();
    format!("{}?{}&after={after}", request.path(), pairs.join("&")).replace('>', "%3E")
}
