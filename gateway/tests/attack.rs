//! The gateway under attack by hostile, broken and slow clients, and the requests that reach the inventory.

use testkit::{Program, ScriptedReply, ScriptedUpstream, TestQueue, attack};

const PROGRAM: &str = env!("CARGO_BIN_EXE_api-gateway");

/// More bytes than the system buffers for a connection.
const LARGE_BYTES: usize = 8_000_000;

/// An inventory of one movie, and of a list that is large.
fn inventory() -> ScriptedUpstream {
    let answer = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let (list, movie) = (answer(&"a".repeat(LARGE_BYTES)), answer("ok"));
    ScriptedUpstream::start(move |request| {
        let is_list = request.line.contains(" /api/movies ");
        ScriptedReply::Answer(if is_list { &list } else { &movie }.clone().into_bytes())
    })
}

fn vars(queue: &TestQueue, inventory: &ScriptedUpstream) -> Vec<(String, String)> {
    let address = inventory.address();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let own = [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("API_GATEWAY_PORT", "0"),
        ("INVENTORY_VM_IP", &host),
        ("INVENTORY_API_PORT", &port),
        ("BILLING_VM_IP", "127.0.0.1"),
        ("BILLING_API_PORT", "1"),
        ("BILLING_CONSUMER_PORT", "1"),
    ];
    let mut vars = queue.vars();
    for (key, value) in own.iter().chain(attack::SETTINGS) {
        vars.push(((*key).to_owned(), (*value).to_owned()));
    }
    vars
}

#[test]
fn whatever_clients_do_the_gateway_goes_on() {
    let queue = TestQueue::create();
    let program = Program::start(PROGRAM, vars(&queue, &inventory()));

    attack::AttackedProgram::new(&program, "/api/movies/1").withstands_everything("/api/movies");
}

#[test]
fn no_part_of_a_malformed_request_reaches_the_inventory() {
    let queue = TestQueue::create();
    let inventory = inventory();
    let program = Program::start(PROGRAM, vars(&queue, &inventory));

    attack::AttackedProgram::new(&program, "/api/movies/1").withstands_malformed_requests();

    let requests = inventory.requests();
    assert!(!requests.is_empty());
    for request in requests {
        let expected = ["GET /api/movies/1 HTTP/1.1", "HEAD /api/movies/1 HTTP/1.1"];
        assert!(expected.contains(&&*request.line), "{request:?}");
        for name in ["x-evil", "x-injected"] {
            assert_eq!(request.values(name), [""; 0], "{request:?}");
        }
        let lengths = request.values("content-length").len();
        let encodings = request.values("transfer-encoding").len();
        assert!(lengths + encodings <= 1, "{request:?}");
        assert_eq!(request.values("host").len(), 1, "{request:?}");
    }
}

#[test]
fn clients_that_are_too_many_take_nothing_from_the_others() {
    let queue = TestQueue::create();
    let vars = vars(&queue, &inventory());
    let program = Program::start_with_descriptors(PROGRAM, 128, vars);

    attack::withstands_a_crowd(&program, "/api/movies/1", 128);
}

#[test]
fn descriptors_that_run_out_are_missed_only_for_a_while() {
    let queue = TestQueue::create();
    let program = Program::start(PROGRAM, vars(&queue, &inventory()));

    attack::survives_without_descriptors(&program, "/api/movies/1");
}
