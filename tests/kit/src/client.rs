//! A client for one service.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::Request;

/// How long a service may take to answer a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends requests to the service at one address.
pub struct Client {
    address: SocketAddr,
    agent: Agent,
}

/// A complete answer.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The content.
    pub text: String,
    /// The content as JSON; null if it is not JSON.
    pub json: Value,
}

impl Reply {
    /// A header by its name in lower case; empty if there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .iter()
            .find(|(present, _)| present == name)
            .map_or("", |(_, value)| value)
    }

    /// The status and the detail of a problem, as one value to compare.
    #[must_use]
    pub fn problem(&self) -> (u16, &str) {
        (self.status, self.json["detail"].as_str().unwrap_or(""))
    }
}

impl Client {
    /// Makes a client for the service at `address`.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .allow_non_standard_methods(true)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build();
        Self {
            address,
            agent: config.new_agent(),
        }
    }

    /// The address of the service.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a GET.
    #[must_use]
    pub fn get(&self, target: &str) -> Reply {
        self.send("GET", target, &[], None)
    }

    /// Sends a POST with JSON.
    #[must_use]
    pub fn post(&self, target: &str, json: &Value) -> Reply {
        self.send("POST", target, JSON, Some(&json.to_string()))
    }

    /// Sends a PUT with JSON.
    #[must_use]
    pub fn put(&self, target: &str, json: &Value) -> Reply {
        self.send("PUT", target, JSON, Some(&json.to_string()))
    }

    /// Sends a DELETE.
    #[must_use]
    pub fn delete(&self, target: &str) -> Reply {
        self.send("DELETE", target, &[], None)
    }

    /// Sends any request.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Reply {
        self.try_send(method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} {target}: {error}"))
    }

    /// Sends any request; None if there is no answer.
    pub fn try_send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Result<Reply, ureq::Error> {
        let uri = format!("http://{}{target}", self.address);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = match body {
            Some(body) => self.agent.run(request.body(body)?)?,
            None => self.agent.run(request.body(())?)?,
        };
        let (head, mut body) = response.into_parts();
        let text = body.with_config().limit(u64::MAX).read_to_string()?;
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head
                .headers
                .iter()
                .map(|(name, value)| {
                    (
                        name.as_str().to_owned(),
                        String::from_utf8_lossy(value.as_bytes()).into_owned(),
                    )
                })
                .collect(),
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        })
    }
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

/// Sends bytes on a connection of their own, and returns all bytes until the service closes it, so the request should
/// have `Connection: close`.
///
/// # Panics
/// If the service cannot be reached, or does not answer in time.
#[must_use]
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a socket option");
    stream.write_all(bytes).expect("the service reads");
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("an answer and its end");
    String::from_utf8_lossy(&answer).into_owned()
}
