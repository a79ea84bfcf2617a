use proptest::prelude::*;
use proptest::sample::Index;

use super::answering::SENT_BYTES;
use super::*;
use crate::http::message::framing::{Chunked, FramingLimits};
use crate::http::message::response::{Body, Response, Stream};
use std::io::Write;

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Each is another time, so that one that is taken for another shows.
fn limits() -> Limits {
    Limits {
        framing: FramingLimits {
            request_line_bytes: 64,
            head_bytes: 256,
            headers: 8,
            body_bytes: 256,
        },
        idle_time: seconds(60),
        head_time: seconds(11),
        body_time: seconds(31),
        queue_time: seconds(3),
        answer_time: seconds(17),
        send_time: seconds(23),
        ..Limits::default()
    }
}

/// Buffers take up to twice what is in them: a head with a piece of 200 bytes behind it, and a body.
/// A parsed head has its target, and for each field 64 bytes of text and three places in it.
const HELD_MAX: usize = 2 * (256 + 200) + 2 * 256 + 64 + 8 * 64 + 9 * 3 * size_of::<usize>();

#[derive(Debug, Clone)]
enum ClientBody {
    None,
    Length(Vec<u8>),
    Chunked(Vec<Vec<u8>>),
}

/// A request as a client sends it.
#[derive(Debug, Clone)]
struct ClientRequest {
    target: String,
    content: ClientBody,
    expects: bool,
    closes: bool,
    empty_lines: usize,
}

impl ClientRequest {
    fn head(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = write!(
            bytes,
            "POST {} HTTP/1.1\r\nHost: a\r\nX-A: b\r\n",
            self.target
        );
        if self.expects {
            bytes.extend(b"Expect: 100-continue\r\n");
        }
        if self.closes {
            bytes.extend(b"Connection: close\r\n");
        }
        match &self.content {
            ClientBody::None => bytes.extend(b"\r\n"),
            ClientBody::Length(body) => {
                let _ = write!(bytes, "Content-Length: {}\r\n\r\n", body.len());
            }
            ClientBody::Chunked(_) => bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n"),
        }
        bytes
    }

    fn framed_body(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match &self.content {
            ClientBody::None => {}
            ClientBody::Length(body) => bytes.extend(body),
            ClientBody::Chunked(chunks) => {
                for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                    let _ = write!(bytes, "{:x};e\r\n", chunk.len());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\nT: r\r\n\r\n");
            }
        }
        bytes
    }

    fn bytes(&self) -> Vec<u8> {
        [
            b"\r\n".repeat(self.empty_lines),
            self.head(),
            self.framed_body(),
        ]
        .concat()
    }

    fn body(&self) -> Vec<u8> {
        match &self.content {
            ClientBody::None => Vec::new(),
            ClientBody::Length(body) => body.clone(),
            ClientBody::Chunked(chunks) => chunks.concat(),
        }
    }
}

fn sent() -> impl Strategy<Value = ClientRequest> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    let content = prop_oneof![
        Just(ClientBody::None),
        bytes().prop_map(ClientBody::Length),
        proptest::collection::vec(bytes(), 0..3).prop_map(ClientBody::Chunked),
    ];
    (
        "/[a-z]{0,9}",
        content,
        any::<bool>(),
        prop::bool::weighted(0.1),
        0..2_usize,
    )
        .prop_map(
            |(target, content, expects, closes, empty_lines)| ClientRequest {
                target,
                content,
                expects,
                closes,
                empty_lines,
            },
        )
}

/// What the simulation does.
#[derive(Debug, Clone)]
enum Act {
    /// So many bytes arrive, if the connection wants any.
    Arrive(usize),
    /// The client takes so many bytes.
    Take(usize),
    /// The request leaves its queue.
    Begin,
    /// The handler answers, by a body of that length; in pieces if the second is set.
    Answer(usize, bool),
    /// So many milliseconds pass.
    Pass(u64),
    /// The sweeper looks.
    Sweep,
    Drain,
    End,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1..200_usize).prop_map(Act::Arrive),
        6 => prop_oneof![1..300_usize, 30_000..40_000_usize].prop_map(Act::Take),
        1 => Just(Act::Begin),
        4 => (prop_oneof![0..100_usize, 1000..90_000_usize], any::<bool>())
            .prop_map(|(bytes, pieces)| Act::Answer(bytes, pieces)),
        3 => (0..900_u64).prop_map(Act::Pass),
    ]
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        20 => act(),
        2 => (0..20_000_u64).prop_map(Act::Pass),
        3 => Just(Act::Sweep),
        1 => Just(Act::Drain),
        1 => Just(Act::End),
    ]
}

/// When the deadline of a connection falls, told by somebody who sees only what goes in and out.
struct Model {
    /// Of each request: where its first byte is, where its head ends, and where it ends.
    bounds: Vec<(usize, usize, usize)>,
    arrived: usize,
    /// The request at hand.
    request: usize,
    phase: ModelPhase,
    deadline: Instant,
    sent_in_time: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum ModelPhase {
    Idle,
    Head,
    Body,
    Out,
    Over,
}

impl Model {
    fn new(all: &[ClientRequest], now: Instant) -> Self {
        let mut at = 0;
        let bound = |sent: &ClientRequest| {
            let begin = at + 2 * sent.empty_lines;
            let head = begin + sent.head().len();
            at = head + sent.framed_body().len();
            (begin, head, at)
        };
        Self {
            bounds: all.iter().map(bound).collect(),
            arrived: 0,
            request: 0,
            phase: ModelPhase::Idle,
            deadline: now + limits().idle_time,
            sent_in_time: 0,
        }
    }

    /// The connection was asked what is next, with nothing left to send.
    fn on_next(&mut self, now: Instant) {
        let Some(&(begin, head, end)) = self.bounds.get(self.request) else {
            return;
        };
        if self.phase == ModelPhase::Idle && self.arrived > begin {
            (self.phase, self.deadline) = (ModelPhase::Head, now + limits().head_time);
        }
        if self.phase == ModelPhase::Head && self.arrived >= head {
            (self.phase, self.deadline) = (ModelPhase::Body, now + limits().body_time);
        }
        if self.phase == ModelPhase::Body && self.arrived >= end {
            let limit = limits().queue_time + limits().answer_time;
            (self.phase, self.deadline) = (ModelPhase::Out, now + limit);
            self.request += 1;
        }
    }

    fn on_answer(&mut self, closes: bool, now: Instant) {
        self.sent_in_time = 0;
        self.deadline = now + limits().send_time;
        self.phase = if closes {
            ModelPhase::Over
        } else {
            ModelPhase::Idle
        };
    }

    fn on_sent(&mut self, bytes: usize, left: usize, now: Instant) {
        self.sent_in_time += bytes;
        if left > 0 {
            if self.sent_in_time >= SENT_BYTES
                && matches!(self.phase, ModelPhase::Idle | ModelPhase::Over)
            {
                self.sent_in_time = 0;
                self.deadline = now + limits().send_time;
            }
        } else if self.phase == ModelPhase::Idle {
            self.deadline = now + limits().idle_time;
        }
    }
}

/// A connection, the simulation around it, and what came of it.
struct Simulation {
    connection: Connection,
    now: Instant,
    input: Vec<u8>,
    out: Vec<(String, Vec<u8>)>,
    output: Vec<u8>,
    closed: bool,
    ended: bool,
    model: Option<Model>,
}

impl Simulation {
    fn new(all: &[ClientRequest], input: Vec<u8>) -> Self {
        let now = Instant::now();
        Self {
            connection: Connection::new(&Arc::new(limits()), CLIENT, false, now),
            now,
            input,
            out: Vec::new(),
            output: Vec::new(),
            closed: false,
            ended: false,
            model: (!all.is_empty()).then(|| Model::new(all, now)),
        }
    }

    /// Asks what is next until it is something that only the simulation can do.
    fn next(&mut self) -> Option<Next> {
        for _ in 0..1000 {
            if self.closed {
                return None;
            }
            let may_go_on = self.connection.to_send().is_empty();
            let next = self.connection.next(self.now);
            if let Some(model) = self.model.as_mut().filter(|_| may_go_on) {
                model.on_next(self.now);
                if matches!(next, Next::EndOutput) {
                    model.deadline = self.now + LINGER_TIME;
                }
            }
            match next {
                Next::Head => self.connection.decide(false),
                Next::Request(head, body) => {
                    assert!(!self.ended, "a request after the last answer");
                    self.out.push((head.target.clone(), body));
                }
                Next::Refused(problem) => {
                    self.respond(Response::of_problem(problem, "id"));
                }
                Next::EndOutput => self.ended = true,
                Next::Close | Next::Reset => self.closed = true,
                next => return Some(next),
            }
        }
        panic!("it turns in a circle");
    }

    fn respond(&mut self, response: Response<'_>) -> bool {
        self.connection.respond(response, "now", self.now).is_some()
    }

    fn act(&mut self, act: &Act) {
        let next = self.next();
        match (act, next) {
            (Act::Arrive(bytes), Some(Next::Read)) => {
                let piece: Vec<u8> = self.input.drain(..(*bytes).min(self.input.len())).collect();
                self.connection.on_bytes(&piece);
                if let Some(model) = &mut self.model {
                    model.arrived += piece.len();
                }
            }
            (Act::Take(bytes), Some(Next::Write)) => {
                assert!(!self.ended, "output after its end");
                let bytes = (*bytes).min(self.connection.to_send().len());
                assert!(bytes > 0, "nothing to write");
                self.output
                    .extend_from_slice(&self.connection.to_send()[..bytes]);
                self.connection.on_sent(bytes, self.now);
                if let Some(model) = &mut self.model {
                    model.on_sent(bytes, self.connection.to_send().len(), self.now);
                }
            }
            (Act::Begin, Some(Next::Answer)) => {
                self.connection.begin(self.now);
                if let Some(model) = &mut self.model {
                    model.deadline = self.now + limits().answer_time;
                }
            }
            (Act::Answer(bytes, pieces), Some(Next::Answer)) => self.answer(*bytes, *pieces),
            (Act::Pass(millis), _) => self.now += Duration::from_millis(*millis),
            (Act::Sweep, Some(_)) if self.connection.deadline() <= self.now => {
                if let Some(problem) = self.connection.on_deadline(self.now) {
                    self.respond(Response::of_problem(problem, "id"));
                }
            }
            (Act::Drain, Some(_)) => self.connection.drain(),
            (Act::End, Some(Next::Read)) => {
                self.input.clear();
                self.connection.on_end();
            }
            _ => {}
        }
        self.next();
        let held = self.connection.held_input();
        assert!(held <= HELD_MAX, "{held} bytes of input are held");
    }

    fn answer(&mut self, bytes: usize, pieces: bool) {
        let body = vec![b'x'; bytes];
        let length = bytes.is_multiple_of(2).then_some(bytes as u64);
        let stream = Stream {
            length,
            fill: Box::new(|_| Ok(())),
        };
        let content = if pieces {
            Body::Stream(stream)
        } else {
            Body::Bytes(body.clone())
        };
        let streams = self.respond(Response::new(200, content));
        assert_eq!(streams, pieces);
        if pieces {
            self.connection.begin(self.now);
            assert_eq!(self.connection.deadline(), self.now + limits().answer_time);
            for piece in body.chunks(30_000) {
                assert!(self.connection.push(piece, self.now));
            }
            assert!(self.connection.push(&[], self.now));
        }
        if let Some(model) = &mut self.model {
            let closes = !self.connection.keep_alive;
            model.on_answer(closes, self.now);
        }
    }

    /// The final answers in the output, each of which must be whole but for the last.
    fn answers(&self) -> Vec<u16> {
        let (mut rest, mut statuses) = (&self.output[..], Vec::new());
        while let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = std::str::from_utf8(&rest[..end]).expect("a head");
            assert!(head.starts_with("HTTP/1.1 "), "{head}");
            let status: u16 = head[9..12].parse().expect("a status");
            rest = &rest[end + 4..];
            if status == 100 {
                continue;
            }
            statuses.push(status);
            let used = if head.contains("transfer-encoding: chunked") {
                let limits = FramingLimits {
                    body_bytes: usize::MAX,
                    ..limits().framing
                };
                Chunked::new(&limits).read(rest, |_| {}).expect("chunks")
            } else {
                let length = head.split("content-length: ").nth(1).expect("a length");
                length
                    .lines()
                    .next()
                    .expect("a line")
                    .parse()
                    .expect("a number")
            };
            rest = &rest[used.min(rest.len())..];
        }
        statuses
    }
}

fn bytes_of(all: &[ClientRequest], change: Option<(Index, u8)>) -> Vec<u8> {
    let mut input: Vec<u8> = all.iter().flat_map(ClientRequest::bytes).collect();
    if let Some((at, byte)) = change.filter(|_| !input.is_empty()) {
        let at = at.index(input.len());
        input[at] = byte;
    }
    input
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// However requests are split and answers taken, they come out as they were sent, one at a
    /// time, and each is answered in its turn, up to the one that asks to close; and every
    /// deadline falls when somebody says so who looks on.
    #[test]
    fn requests_come_out_as_they_were_sent_and_deadlines_fall_when_they_should(
        all in proptest::collection::vec(sent(), 1..6),
        acts in proptest::collection::vec(act(), 0..250),
    ) {
        let mut simulation = Simulation::new(&all, bytes_of(&all, None));
        for act in &acts {
            simulation.act(act);
            let expected = simulation.model.as_ref().map(|model| model.deadline);
            if !simulation.closed {
                prop_assert_eq!(Some(simulation.connection.deadline()), expected, "{:?}", act);
            }
        }
        // The rest, without ado.
        for _ in 0..200 {
            for act in [Act::Arrive(50), Act::Take(100_000), Act::Answer(3, false)] {
                simulation.act(&act);
            }
        }
        let last = all.iter().position(|sent| sent.closes).map_or(all.len(), |at| at + 1);
        let expected: Vec<_> =
            all[..last].iter().map(|sent| (sent.target.clone(), sent.body())).collect();
        prop_assert_eq!(&simulation.out, &expected);
        prop_assert_eq!(simulation.answers(), vec![200; last]);
        if last < all.len() || all[last - 1].closes {
            simulation.act(&Act::End);
            prop_assert!(simulation.closed);
        } else {
            prop_assert!(simulation.connection.is_idle());
        }
    }

    /// Bytes that are no requests, time that passes, a drain, an end: nothing panics, no answer is
    /// given to nobody, and the connection ends when its deadlines pass.
    #[test]
    fn whatever_happens_it_ends(
        all in proptest::collection::vec(sent(), 0..4),
        change in (any::<Index>(), any::<u8>()),
        acts in proptest::collection::vec(any_act(), 0..250),
    ) {
        let mut simulation = Simulation::new(&[], bytes_of(&all, Some(change)));
        for act in &acts {
            simulation.act(act);
        }
        prop_assert!(simulation.answers().len() <= simulation.out.len() + 1);
        // With nobody there, every deadline brings it nearer to its end.
        for _ in 0..6 {
            if simulation.closed {
                break;
            }
            simulation.now = simulation.now.max(simulation.connection.deadline());
            simulation.act(&Act::Sweep);
            simulation.act(&Act::Take(usize::MAX));
        }
        prop_assert!(simulation.closed, "{:?}", simulation.connection);
    }

    /// Bytes mean what they mean, however they are split.
    #[test]
    fn splits_change_nothing(
        all in proptest::collection::vec(sent(), 0..4),
        change in (any::<Index>(), any::<u8>()),
        step in 1..50_usize,
    ) {
        let input = bytes_of(&all, Some(change));
        let run = |step: usize| {
            let mut simulation = Simulation::new(&[], input.clone());
            for _ in 0..2 * input.len() + 20 {
                for act in [Act::Arrive(step), Act::Take(1000), Act::Answer(4, false)] {
                    simulation.act(&act);
                }
            }
            let (statuses, over) = (simulation.answers(), simulation.closed || simulation.ended);
            (simulation.out, statuses, over)
        };
        prop_assert_eq!(run(step), run(200));
    }
}

/// What a client gets that asks so, and whether it can take it for whole.
fn answer_to(request: &str, response: Response<'_>) -> (String, bool) {
    let now = Instant::now();
    let mut connection = Connection::new(&Arc::new(limits()), CLIENT, false, now);
    connection.on_bytes(request.as_bytes());
    assert!(matches!(connection.next(now), Next::Head));
    connection.decide(false);
    assert!(matches!(connection.next(now), Next::Request(..)));
    if let Some(mut fill) = connection.respond(response, "now", now) {
        while connection.is_streaming() {
            let mut piece = Vec::new();
            if fill(&mut piece).is_err() {
                let sent = String::from_utf8(connection.to_send().to_vec()).expect("text");
                connection.truncate();
                assert!(matches!(connection.next(now), Next::Reset));
                return (sent, false);
            }
            let _ = connection.push(&piece, now);
        }
    }
    let sent = String::from_utf8(connection.to_send().to_vec()).expect("text");
    connection.on_sent(sent.len(), now);
    let whole = !matches!(connection.next(now), Next::Reset);
    (sent, whole)
}

fn ask(method: &str, version: &str) -> String {
    format!("{method} / HTTP/{version}\r\nHost: a\r\nX-Request-Id: id\r\n\r\n")
}

fn numbers(count: usize) -> impl Iterator<Item = Result<usize, Problem>> {
    (0..count).map(Ok)
}

fn array(count: usize) -> Response<'static> {
    Response::json_array(200, numbers(count))
        .begun()
        .expect("an answer")
}

#[test]
fn a_short_array_is_sent_with_its_length_and_head_gets_the_head_alone() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: now\r\n\
                x-request-id: id\r\nx-content-type-options: nosniff\r\n\
                cross-origin-resource-policy: same-origin\r\ncache-control: no-store\r\n\
                content-length: 7\r\n\r\n";

    assert_eq!(
        answer_to(&ask("GET", "1.1"), array(3)),
        (format!("{head}[0,1,2]"), true)
    );
    assert_eq!(
        answer_to(&ask("HEAD", "1.1"), array(3)),
        (head.to_owned(), true)
    );
    assert!(
        answer_to(&ask("GET", "1.1"), array(0))
            .0
            .ends_with("\r\n\r\n[]")
    );
}

#[test]
fn a_long_array_is_sent_in_chunks() {
    let (text, whole) = answer_to(&ask("GET", "1.1"), array(50_000));

    let (head, chunks) = text.split_once("\r\n\r\n").expect("a head");
    assert!(
        whole && head.ends_with("transfer-encoding: chunked"),
        "{head}"
    );
    let limits = FramingLimits {
        body_bytes: usize::MAX,
        ..limits().framing
    };
    let (mut chunked, mut content) = (Chunked::new(&limits), Vec::new());
    let used = chunked.read(chunks.as_bytes(), |piece| content.extend_from_slice(piece));
    assert_eq!((used, chunked.is_done()), (Ok(chunks.len()), true));
    assert_eq!(
        serde_json::from_slice::<Vec<usize>>(&content)
            .expect("an array")
            .len(),
        50_000
    );
}

#[test]
fn a_client_of_http_1_0_gets_no_chunks() {
    let (text, _) = answer_to(&ask("GET", "1.0"), array(50_000));

    let (head, content) = text.split_once("\r\n\r\n").expect("a head");
    assert!(
        !head.contains("transfer-encoding") && !head.contains("content-length"),
        "{head}"
    );
    assert!(head.contains("connection: close"), "{head}");
    assert_eq!(
        serde_json::from_str::<Vec<usize>>(content)
            .expect("an array")
            .len(),
        50_000
    );
}

#[test]
fn a_problem_midway_leaves_an_answer_that_cannot_be_taken_for_whole() {
    let values = numbers(50_000).chain([Err(Problem::internal("the server went away"))]);
    let response = Response::json_array(200, values)
        .begun()
        .expect("an answer");

    let (text, whole) = answer_to(&ask("GET", "1.1"), response);

    assert!(!whole && !text.ends_with("\r\n0\r\n\r\n"));
}

#[test]
fn a_stream_that_is_not_as_long_as_it_says_is_truncated() {
    for (said, expected) in [(49_999, false), (50_001, false), (50_000, true)] {
        let mut left = 50_000;
        let fill = move |buffer: &mut Vec<u8>| {
            let piece = left.min(10_000);
            buffer.resize(buffer.len() + piece, b'm');
            left -= piece;
            Ok(())
        };
        let stream = Stream {
            length: Some(said),
            fill: Box::new(fill),
        };

        let (_, whole) = answer_to(&ask("GET", "1.1"), Response::new(200, Body::Stream(stream)));

        assert_eq!(whole, expected, "{said}");
    }
}

#[test]
fn what_is_decided_at_the_head_is_answered_without_a_body_and_without_asking_for_one() {
    let now = Instant::now();
    for (expects, body, then) in [
        ("", "hello", "read"),
        ("Expect: 100-continue\r\n", "", "end"),
    ] {
        let mut connection = Connection::new(&Arc::new(limits()), CLIENT, false, now);
        let request =
            format!("POST / HTTP/1.1\r\nHost: a\r\n{expects}Content-Length: 5\r\n\r\n{body}");
        connection.on_bytes(request.as_bytes());
        assert!(matches!(connection.next(now), Next::Head));

        connection.decide(true);

        assert!(
            matches!(connection.next(now), Next::Request(_, body) if body.is_empty()),
            "{then}"
        );
        connection.respond(Response::empty(404), "now", now);
        let bytes = connection.to_send().len();
        connection.on_sent(bytes, now);
        let next = connection.next(now);
        assert_eq!(matches!(next, Next::EndOutput), then == "end", "{next:?}");
        assert_eq!(matches!(next, Next::Read), then == "read", "{next:?}");
    }
}
