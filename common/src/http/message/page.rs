//! Lists by key: `?limit=N&after=ID`. Unlike an offset, a key costs the same on every page. If rows become
//! visible in the order of their ids, the pages miss none that are added or removed meanwhile.

use serde::Serialize;

use super::conditional::if_changed;
use super::head::Head;
use super::problem::Problem;
use super::request::Request;
use super::response::{HandlerResult, Response};

/// The most rows on one page.
const LIMIT_MAX: u16 = 1000;

/// The part of a list that a client asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// The most rows; None if the client asks for all of them.
    pub limit: Option<u16>,
    /// The page begins behind this id, in the order of the list.
    pub after: i64,
    /// Whether the list begins with the greatest id.
    pub newest_first: bool,
}

impl Page {
    /// The page that `limit`, `after` and `order` in the query ask for.
    pub fn from_query(request: &Head) -> Result<Self, Problem> {
        let limit = request.query_number("limit", 1..=LIMIT_MAX)?;
        let after = request.query_number("after", 0..=i64::MAX)?;
        let newest_first = match request.query("order")?.as_deref() {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(_) => return Err(Problem::bad_request("order must be asc or desc")),
        };
        // Without `after`, the page begins at the begin of the list.
        let after = after.unwrap_or(if newest_first { i64::MAX } else { 0 });
        Ok(Self {
            limit,
            after,
            newest_first,
        })
    }

    /// The page, with the greatest limit if the client asks for none.
    #[must_use]
    pub fn with_limit(mut self) -> Self {
        self.limit = self.limit.or(Some(LIMIT_MAX));
        self
    }

    /// How many rows to read: one more than the page has, which shows whether there is a next page.
    #[must_use]
    pub fn rows(self) -> Option<i64> {
        self.limit.map(|limit| i64::from(limit) + 1)
    }

    /// An answer with those of the rows that are on this page. If there is a next page, a `Link` (RFC 8288) leads
    /// to it.
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

/// An answer with a whole list, which is read while it is sent. Only a short list gets an entity tag: a longer
/// one would have to be read twice.
pub fn whole_list<'a, T: Serialize + Send + 'a, E: Into<Problem> + Send + 'a>(
    request: &Request,
    rows: impl Iterator<Item = Result<T, E>> + Send + 'a,
) -> HandlerResult<'a> {
    let response = Response::json_array(200, rows).begun()?;
    Ok(if_changed(request, response))
}

/// The target of the next page: the request's own target with another `after`.
fn next(request: &Request, after: i64) -> String {
    let pairs = request.query_pairs().filter(|(name, _)| name != "after");
    let pairs: Vec<&str> = pairs.map(|(_, pair)| pair).collect();
    format!("{}?{}&after={after}", request.path(), pairs.join("&")).replace('>', "%3E")
}
