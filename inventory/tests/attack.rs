//! The inventory under attack by hostile, broken and slow clients. The test on tiny_http is the control.

use testkit::{Program, TestDatabase, attack};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

fn vars(database: &TestDatabase) -> Vec<(String, String)> {
    let own = [("LISTEN_ADDRESS", "127.0.0.1"), ("INVENTORY_API_PORT", "0")];
    let mut vars = database.vars("INVENTORY_DB_NAME");
    for (key, value) in own.iter().chain(attack::SETTINGS) {
        vars.push(((*key).to_owned(), (*value).to_owned()));
    }
    vars
}

#[cfg(not(feature = "tiny_http"))]
mod own_engine {
    use serde_json::json;
    use testkit::Client;

    use super::*;

    /// Movies that together have more bytes than the system buffers for a connection.
    const LARGE: &str = "/api/movies";

    #[test]
    fn whatever_clients_do_the_inventory_goes_on() {
        let database = TestDatabase::create();
        let program = Program::start(PROGRAM, vars(&database));
        let client = Client::new(program.address());
        let movie = json!({ "title": "Alien", "description": "A film" });
        assert_eq!(client.post("/api/movies", &movie).status, 201);
        database.execute(
            "INSERT INTO movies (title, description)
             SELECT 'Alien', repeat('a', 1000) FROM generate_series(1, 8000)",
        );

        attack::AttackedProgram::new(&program, "/api/movies/1").withstands_everything(LARGE);
    }

    #[test]
    fn clients_that_are_too_many_take_nothing_from_the_others() {
        let database = TestDatabase::create();
        let program = Program::start_with_descriptors(PROGRAM, 128, vars(&database));

        attack::withstands_a_crowd(&program, "/api/movies", 128);
    }

    #[test]
    fn descriptors_that_run_out_are_missed_only_for_a_while() {
        let database = TestDatabase::create();
        let program = Program::start(PROGRAM, vars(&database));

        attack::survives_without_descriptors(&program, "/api/movies");
    }
}

/// If this test fails, tiny_http has been corrected, and the choice of the engine should be reconsidered.
#[cfg(feature = "tiny_http")]
#[test]
fn one_request_ends_a_program_on_tiny_http() {
    use std::io::Write as _;

    let database = TestDatabase::create();
    let program = Program::start(PROGRAM, vars(&database));
    let mut stream = std::net::TcpStream::connect(program.address()).expect("a connection");

    let request = b"GET /health HTTP/1.1\r\nHost: h\r\nContent-Length: 4611686018427387904\r\n\r\n";
    stream.write_all(request).expect("it reads");
    drop(stream);

    let (status, said) = program.wait();
    assert!(!status.success(), "{status}: {said}");
    assert!(said.contains("memory allocation"), "{said}");
}
