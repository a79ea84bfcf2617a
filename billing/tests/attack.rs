//! billing-api under attack by hostile, broken and slow clients.

use testkit::{Client, Program, TestDatabase, attack, eventually};

const PROGRAM: &str = env!("CARGO_BIN_EXE_billing-api");

fn vars(database: &TestDatabase) -> Vec<(String, String)> {
    let own = [("LISTEN_ADDRESS", "127.0.0.1"), ("BILLING_API_PORT", "0")];
    let mut vars = database.vars("BILLING_DB_NAME");
    for (key, value) in own.iter().chain(attack::SETTINGS) {
        vars.push(((*key).to_owned(), (*value).to_owned()));
    }
    vars
}

#[test]
fn whatever_clients_do_billing_goes_on() {
    let database = TestDatabase::create().migrated(billing::MIGRATIONS);
    let program = Program::start(PROGRAM, vars(&database));
    let client = Client::new(program.address());
    eventually("the table is there", || {
        client.get("/api/orders").status == 200
    });
    // The orders together have more bytes than the system buffers for a connection.
    database.execute(
        "INSERT INTO orders (message_id, user_id, number_of_items, total_amount)
         SELECT 'message-' || n, repeat('a', 50), 1, 1 FROM generate_series(1, 40000) n",
    );

    attack::AttackedProgram::new(&program, "/api/orders/1").withstands_everything("/api/orders");
}

#[test]
fn clients_that_are_too_many_take_nothing_from_the_others() {
    let database = TestDatabase::create().migrated(billing::MIGRATIONS);
    let program = Program::start_with_descriptors(PROGRAM, 128, vars(&database));

    attack::withstands_a_crowd(&program, "/api/orders", 128);
}

#[test]
fn descriptors_that_run_out_are_missed_only_for_a_while() {
    let database = TestDatabase::create().migrated(billing::MIGRATIONS);
    let program = Program::start(PROGRAM, vars(&database));

    attack::survives_without_descriptors(&program, "/api/orders");
}
