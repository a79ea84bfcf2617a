//! `GET /`: a browser gets the console, a page from which every operation of the gateway can be used; other
//! clients get a list of addresses. The page contains its style and its program. Its content security policy
//! names both by their hashes, so a browser runs nothing else and sends requests to this gateway only.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::http::{
    Handler, HandlerResult, Request, Response, Route, Verb, if_changed, json_if_changed,
};
use ring::digest::{SHA256, digest};
use serde_json::json;

const PAGE: &str = include_str!("../console/index.html");
const STYLE: &str = include_str!("../console/console.css");
const PROGRAM: &str = include_str!("../console/console.js");

/// The elements for which the style and the program are substituted; with them the page can also be opened
/// from its folder.
const STYLE_LINK: &str = r#"<link rel="stylesheet" href="console.css">"#;
const PROGRAM_LINK: &str = r#"<script src="console.js"></script>"#;

pub(crate) const ROUTES: &[Route<Console>] = &[(Verb::Get, "/", Handler::One(get_console))];

/// The page as it is sent.
#[derive(Clone)]
pub(crate) struct Console {
    page: String,
    policy: String,
}

impl Console {
    pub(crate) fn new() -> Self {
        let page = PAGE
            .replace(STYLE_LINK, &format!("<style>{STYLE}</style>"))
            .replace(PROGRAM_LINK, &format!("<script>{PROGRAM}</script>"));
        let policy = format!(
            "default-src 'none'; style-src '{}'; script-src '{}'; img-src data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'; trusted-types 'none'",
            hash(STYLE),
            hash(PROGRAM)
        );
        Self { page, policy }
    }
}

/// A hash source of a content security policy (CSP 3, §2.3.1).
fn hash(text: &str) -> String {
    format!(
        "sha256-{}",
        STANDARD.encode(digest(&SHA256, text.as_bytes()))
    )
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a handler may fail; this one does not"
)]
fn get_console<'a>(console: &'a mut Console, request: &Request) -> HandlerResult<'a> {
    let response = if prefers_html(request) {
        let page = Response::text(200, "text/html; charset=utf-8", console.page.clone());
        if_changed(request, page)
            .with_header("content-security-policy", console.policy.clone())
            .with_header("referrer-policy", "no-referrer")
    } else {
        let index = json!({
            "name": "CRUD Master",
            "movies": "/api/movies",
            "orders": "/api/billing",
            "status": "/api/status",
            "health": "/health",
            "ready": "/ready",
            "metrics": "/metrics",
            "documentation": "/openapi.yaml",
        });
        json_if_changed(request, &index)
    };
    // A browser asks for the page each time, and gets it again only if it has changed.
    Ok(response
        .with_header("cache-control", "no-cache")
        .with_header("vary", "accept"))
}

/// Whether the client prefers a page to JSON (RFC 9110 §12.5.1). Browsers name `text/html`; other clients accept
/// any type or send no `Accept`.
fn prefers_html(request: &Request) -> bool {
    let named = request.headers.values("accept");
    let accept: Vec<&str> = named.flat_map(|value| value.split(',')).collect();
    quality(&accept, "text", "html") > quality(&accept, "application", "json")
}

/// The weight of a media type in thousandths, which is that of the most specific range.
fn quality(accept: &[&str], main: &str, sub: &str) -> u16 {
    let fit = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let (range_main, range_sub) = parts.next()?.split_once('/')?;
        let fit = match (range_main, range_sub) {
            ("*", "*") => 0,
            (of, "*") if of.eq_ignore_ascii_case(main) => 1,
            (of, is) if of.eq_ignore_ascii_case(main) && is.eq_ignore_ascii_case(sub) => 2,
            _ => return None,
        };
        let weight = parts
            .find_map(|part| part.strip_prefix(['q', 'Q'])?.strip_prefix('='))
            .unwrap_or("1");
        let (whole, places) = weight.split_once('.').unwrap_or((weight, ""));
        let thousandths = format!("{whole}{places:0<3}").parse().unwrap_or(0);
        Some((fit, thousandths))
    };
    let best = accept.iter().filter_map(|range| fit(range)).max();
    best.map_or(0, |(_, thousandths)| thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The greatest size of the three files together.
    const CONSOLE_BYTES_MAX: usize = 40_000;

    fn html_is_better_than_json(accept: &str) -> bool {
        let accept: Vec<&str> = accept.split(',').collect();
        quality(&accept, "text", "html") > quality(&accept, "application", "json")
    }

    #[test]
    fn the_page_is_small_and_whole() {
        let Console { page, .. } = Console::new();

        assert!(page.len() <= CONSOLE_BYTES_MAX, "{} bytes", page.len());
        assert!(page.contains(STYLE) && page.contains(PROGRAM));
        assert!(!page.contains("console.css") && !page.contains("console.js"));
    }

    #[test]
    fn neither_file_ends_its_element_early() {
        assert!(!STYLE.contains("</") && !PROGRAM.contains("</script"));
    }

    #[test]
    fn browsers_prefer_a_page_and_others_do_not() {
        for accept in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "text/html",
            "TEXT/HTML ; Q=0.5, application/json;q=0.4",
            "text/*, */*;q=0.1",
        ] {
            assert!(html_is_better_than_json(accept), "{accept}");
        }
        for accept in [
            "",
            "*/*",
            "application/json",
            "application/json, text/html;q=0.9",
            "text/html;q=0",
            "text/html;q=0, */*",
            "text/plain",
            "html",
        ] {
            assert!(!html_is_better_than_json(accept), "{accept}");
        }
    }
}
