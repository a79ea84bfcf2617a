//! The drill in its long form, as `setup/drill.sh` runs it: what can go wrong with the programs,
//! with the links between them, and with the servers behind them.
//!
//! `drill SCRIPT PROGRAMS FAULTS ORDERS SEED`: SCRIPT is asked for the faults of the servers,
//! PROGRAMS is the folder of the programs; it ends after so many faults and so many orders.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use e2e::drill::{self, Fault, Stage};

#[expect(clippy::print_stdout, reason = "the table is what it is run for")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [script, programs, faults_min, orders_min, seed] = arguments.as_slice() else {
        println!("drill SCRIPT PROGRAMS FAULTS ORDERS SEED; start it by setup/drill.sh");
        return ExitCode::from(2);
    };
    let number = |text: &String| text.parse::<usize>().expect("a number");
    let (faults_min, orders_min) = (number(faults_min), number(orders_min));
    let mut faults = drill::faults_of_programs_and_links();
    faults.extend(faults_of_servers(script));
    let mut random = fastrand::Rng::with_seed(number(seed) as u64);

    let mut stage = Stage::start(&PathBuf::from(programs));
    println!("{}", drill::table_line(None));
    // Each in turn, in an order of its own in every round.
    let rounds = std::iter::repeat_with(|| {
        let mut round: Vec<_> = faults.iter().collect();
        random.shuffle(&mut round);
        round
    });
    let enough = |faults, orders| faults >= faults_min && orders >= orders_min;
    let books = drill::run(&mut stage, rounds.flatten(), enough, |recovery| {
        println!("{}", drill::table_line(Some(recovery)));
    });

    println!(
        "\n{} faults; {} orders answered 200, each to be recorded once; {} answered otherwise, \
         of which {} are recorded; {} movies were asked for {} times",
        books.recoveries.len(),
        books.answered,
        books.unsure,
        books.unsure_recorded,
        books.movies.0,
        books.movies.1
    );
    for wrong in &books.wrong {
        println!("WRONG: {wrong}");
    }
    if books.wrong.is_empty() {
        println!("Nothing is lost, nothing is there twice, and every movie is linearizable.");
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Each by words that the script knows.
fn faults_of_servers(script: &str) -> Vec<Fault> {
    let fault = |name, seconds, strike: &'static [&'static str], mend: &'static [&'static str]| {
        let (striking, mending) = (script.to_owned(), script.to_owned());
        Fault::new(
            name,
            seconds,
            move |_| ask(&striking, strike),
            move |_| ask(&mending, mend),
        )
    };
    vec![
        fault(
            "PostgreSQL: stopped at once",
            2,
            &["stop-postgres"],
            &["start-postgres"],
        ),
        fault(
            "PostgreSQL: kill -9",
            2,
            &["kill-postgres"],
            &["start-postgres"],
        ),
        fault(
            "RabbitMQ: stopped",
            1,
            &["stop-rabbitmq"],
            &["start-rabbitmq"],
        ),
        fault(
            "RabbitMQ: kill -9",
            1,
            &["kill-rabbitmq"],
            &["start-rabbitmq"],
        ),
        fault(
            "RabbitMQ: disk alarm",
            8,
            &["disk-alarm"],
            &["no-disk-alarm"],
        ),
        fault(
            "both servers: kill -9",
            1,
            &["kill-postgres", "kill-rabbitmq"],
            &["start-rabbitmq", "start-postgres"],
        ),
    ]
}

fn ask(script: &str, words: &[&str]) {
    for word in words {
        let asked = Command::new(script).args(["fault", word]).status();
        assert!(
            asked.is_ok_and(|status| status.success()),
            "{script} fault {word}"
        );
    }
}
