//! An upstream server whose replies a test scripts: it records the bytes of each request and replies with raw
//! bytes, well-formed or not.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::raw::{fields, values};

/// A listening server; it ends with the test's process.
pub struct ScriptedUpstream {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<RecordedRequest>>>,
    closed: Arc<AtomicUsize>,
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRequest {
    /// The number of the connection on which it arrived, counted from 0.
    pub connection: usize,
    /// The number of the request on its connection, counted from 0.
    pub turn: usize,
    /// The request line.
    pub line: String,
    /// The headers in their order and spelling.
    pub headers: Vec<(String, String)>,
    /// The content.
    pub body: Vec<u8>,
}

/// The scripted reply to a request.
pub enum ScriptedReply {
    /// These bytes are the answer, and the connection waits for the next request.
    Answer(Vec<u8>),
    /// These bytes are sent, perhaps none, and the connection is closed.
    Last(Vec<u8>),
    /// Nothing is sent, and nothing is closed.
    Silence,
}

impl RecordedRequest {
    /// All values of a header, whose name is in lower case.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&str> {
        values(&self.headers, name)
    }
}

impl ScriptedUpstream {
    /// Starts a server; `script` chooses the reply to each request.
    ///
    /// # Panics
    /// If there is no free port.
    #[must_use]
    pub fn start(
        script: impl Fn(&RecordedRequest) -> ScriptedReply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let closed = Arc::new(AtomicUsize::new(0));
        let (recorded, ended) = (Arc::clone(&requests), Arc::clone(&closed));
        let script = Arc::new(script);
        thread::spawn(move || {
            for (connection, stream) in listener.incoming().flatten().enumerate() {
                let (script, recorded) = (Arc::clone(&script), Arc::clone(&recorded));
                let ended = Arc::clone(&ended);
                thread::spawn(move || {
                    let _ = converse(connection, stream, &*script, &recorded);
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        Self {
            address,
            requests,
            closed,
        }
    }

    /// Starts a server that answers each request with the same bytes.
    #[must_use]
    pub fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::start(move |_| ScriptedReply::Answer(answer.clone()))
    }

    /// The address of the server.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests so far, in the order of their arrival.
    ///
    /// # Panics
    /// If `script` panicked.
    #[must_use]
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.requests
            .lock()
            .expect("the script does not panic")
            .clone()
    }

    /// How many connections this side has closed.
    #[must_use]
    pub fn closed(&self) -> usize {
        self.closed.load(Ordering::Relaxed)
    }
}

fn converse(
    connection: usize,
    stream: TcpStream,
    script: &(dyn Fn(&RecordedRequest) -> ScriptedReply + Send + Sync),
    recorded: &Mutex<Vec<RecordedRequest>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    for turn in 0.. {
        let Some(request) = read_request(&mut reader, connection, turn)? else {
            break;
        };
        recorded
            .lock()
            .expect("no other thread panics")
            .push(request.clone());
        match script(&request) {
            ScriptedReply::Answer(bytes) => reader.get_mut().write_all(&bytes)?,
            ScriptedReply::Last(bytes) => {
                reader.get_mut().write_all(&bytes)?;
                break;
            }
            ScriptedReply::Silence => {}
        }
    }
    Ok(())
}

/// The next request; None at the end of the connection.
fn read_request(
    reader: &mut BufReader<TcpStream>,
    connection: usize,
    turn: usize,
) -> io::Result<Option<RecordedRequest>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 {
            return Ok(None);
        }
    }
    // ISO 8859-1: one character for each octet.
    let head: String = head.into_iter().map(char::from).collect();
    let (line, headers) = fields(&head);
    let mut body = Vec::new();
    if values(&headers, "transfer-encoding").is_empty() {
        let length = values(&headers, "content-length").concat();
        read_piece(reader, length.parse().unwrap_or(0), &mut body)?;
    } else {
        while let size @ 1.. = chunk_size(reader)? {
            read_piece(reader, size, &mut body)?;
            line_of(reader)?;
        }
        line_of(reader)?;
    }
    Ok(Some(RecordedRequest {
        connection,
        turn,
        line,
        headers,
        body,
    }))
}

fn read_piece(reader: &mut impl Read, size: usize, body: &mut Vec<u8>) -> io::Result<()> {
    let begin = body.len();
    body.resize(begin + size, 0);
    reader.read_exact(&mut body[begin..])
}

fn chunk_size(reader: &mut impl BufRead) -> io::Result<usize> {
    usize::from_str_radix(line_of(reader)?.trim_end(), 16).map_err(io::Error::other)
}

fn line_of(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line)
}
