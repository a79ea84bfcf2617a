//! HTTP as bytes, for tests that compare them.

use std::net::SocketAddr;

use crate::exchange;

/// An answer as it arrived, without any decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawReply {
    /// The status line.
    pub status_line: String,
    /// The headers in their order and spelling.
    pub headers: Vec<(String, String)>,
    /// All bytes after the head.
    pub body: String,
}

impl RawReply {
    /// Sends a request on a connection of its own, by [`exchange`]. Interim answers are skipped.
    ///
    /// # Panics
    /// If the answer has no end of a head.
    #[must_use]
    pub fn to(address: SocketAddr, request: &[u8]) -> Self {
        let mut reply = Self::parse(&exchange(address, request));
        while (100..200).contains(&reply.status()) {
            reply = Self::parse(&reply.body);
        }
        reply
    }

    fn parse(text: &str) -> Self {
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("no whole head: {text:?}"));
        let (status_line, headers) = fields(head);
        Self {
            status_line,
            headers,
            body: body.to_owned(),
        }
    }

    /// The status; 0 if there is none.
    #[must_use]
    pub fn status(&self) -> u16 {
        let code = self.status_line.split(' ').nth(1);
        code.and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// All values of a header, whose name is in lower case.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&str> {
        values(&self.headers, name)
    }

    /// The answer without the headers of these names, which are in lower case.
    #[must_use]
    pub fn without(mut self, names: &[&str]) -> Self {
        self.headers
            .retain(|(name, _)| !names.contains(&name.to_ascii_lowercase().as_str()));
        self
    }
}

/// The first line of a head, and its headers.
pub(crate) fn fields(head: &str) -> (String, Vec<(String, String)>) {
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    (first, headers)
}

/// All values of a header, whose name is in lower case.
pub(crate) fn values<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers
        .iter()
        .filter(|(present, _)| present.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
        .collect()
}
