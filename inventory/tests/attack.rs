//! The inventory among hostile, broken and slow clients.

use serde_json::json;
use testkit::{Client, Program, TestDatabase, attack};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

/// All movies of which together are more than the system buffers of a connection.
const LARGE: &str = "/api/movies";

fn vars(database: &TestDatabase) -> Vec<(String, String)> {
    let own = [("LISTEN_ADDRESS", "127.0.0.1"), ("INVENTORY_API_PORT", "0")];
    let mut vars = database.vars("INVENTORY_DB_NAME");
    for (key, value) in own.iter().chain(attack::SETTINGS) {
        vars.push(((*key).to_owned(), (*value).to_owned()));
    }
    vars
}

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

    attack::Target::new(&program, "/api/movies/1").withstands_everything(LARGE);
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
