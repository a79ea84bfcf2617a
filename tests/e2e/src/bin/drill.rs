//! The drill in its long form, as `setup/drill.sh` runs it: faults of the programs, of the connections between
//! them, and of the servers behind them.
//!
//! `drill SCRIPT PROGRAMS FAULTS ORDERS SEED`: SCRIPT makes the faults of the servers, PROGRAMS is the folder of the
//! programs, and the drill ends after FAULTS faults and ORDERS orders.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use e2e::faults::{self, Expectation, Fault};
use e2e::flood::{LogDisk, fault_of_a_flood};
use e2e::{PlatformProcesses, drill};

#[expect(clippy::print_stdout, reason = "the table is what it is run for")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [script, programs, faults_min, orders_min, seed] = arguments.as_slice() else {
        println!("Usage: drill SCRIPT PROGRAMS FAULTS ORDERS SEED (setup/drill.sh starts it)");
        return ExitCode::from(2);
    };
    let number = |text: &String| text.parse::<usize>().expect("a number");
    let (faults_min, orders_min) = (number(faults_min), number(orders_min));
    let mut all = faults::faults();
    all.extend(faults_of_servers(script));
    all.push(flood(script, Path::new(programs)));
    let mut random = fastrand::Rng::with_seed(number(seed) as u64);

    let mut platform = PlatformProcesses::start(&PathBuf::from(programs));
    println!("{}", drill::table_line(None));
    // Every round has all faults, in an order of its own.
    let rounds = std::iter::repeat_with(|| {
        let mut round: Vec<_> = all.iter().collect();
        random.shuffle(&mut round);
        round
    });
    let enough = |faults, orders| faults >= faults_min && orders >= orders_min;
    let report = drill::run(&mut platform, rounds.flatten(), enough, |outcome| {
        println!("{}", drill::table_line(Some(outcome)));
    });

    println!(
        "\n{} faults; {} orders answered 200, each to be recorded once; {} answered otherwise, \
         of which {} are recorded; {} dead letters; {} movies were asked for {} times",
        report.outcomes.len(),
        report.answered,
        report.unsure,
        report.unsure_recorded,
        report.dead,
        report.movies.0,
        report.movies.1
    );
    for wrong in &report.wrong {
        println!("WRONG: {wrong}");
    }
    if report.wrong.is_empty() {
        println!(
            "Nothing is lost, nothing is there twice, no order is a dead letter, every consumer's \
             /ready was right, and every movie is linearizable."
        );
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The folder of the log: on a small disk if the script can make one, otherwise beside the programs.
#[expect(clippy::print_stdout, reason = "what is left out must be said")]
fn flood(script: &str, programs: &Path) -> Fault {
    let beside = |name| programs.with_file_name(name);
    if ask(script, "make-small-disk") {
        return fault_of_a_flood(LogDisk::Small(beside("small-disk")));
    }
    println!(
        "Since nothing can be mounted here, the gateway's log lies on a disk that does not get full"
    );
    fault_of_a_flood(LogDisk::Large(beside("")))
}

/// The faults of the servers, each with the commands of the script that begin and end it.
#[expect(clippy::print_stdout, reason = "what is left out must be said")]
fn faults_of_servers(script: &str) -> Vec<Fault> {
    use Expectation::{Anything, NoneIsRecorded};
    let fault =
        |(name, seconds, expectation, inject, repair): (_, _, _, &'static str, &'static str)| {
            let (injecting, repairing) = (script.to_owned(), script.to_owned());
            let inject = move |_: &mut PlatformProcesses| must(&injecting, inject);
            let repair = move |_: &mut PlatformProcesses| must(&repairing, repair);
            Fault::new(name, seconds, inject, repair).expecting(expectation)
        };
    let mut all = vec![
        (
            "PostgreSQL: stopped at once",
            2,
            NoneIsRecorded,
            "stop-postgres",
            "start-postgres",
        ),
        (
            "PostgreSQL: kill -9",
            2,
            NoneIsRecorded,
            "kill-postgres",
            "start-postgres",
        ),
        (
            "PostgreSQL: commits hang",
            2,
            NoneIsRecorded,
            "hang-commits",
            "no-hang-commits",
        ),
        (
            "RabbitMQ: stopped",
            1,
            Anything,
            "stop-rabbitmq",
            "start-rabbitmq",
        ),
        (
            "RabbitMQ: kill -9",
            1,
            Anything,
            "kill-rabbitmq",
            "start-rabbitmq",
        ),
        (
            "RabbitMQ: disk alarm",
            8,
            Anything,
            "disk-alarm",
            "no-disk-alarm",
        ),
        (
            "RabbitMQ: memory alarm",
            8,
            Anything,
            "memory-alarm",
            "no-memory-alarm",
        ),
        (
            "RabbitMQ: a policy refuses orders",
            3,
            Anything,
            "refuse-orders",
            "no-refuse-orders",
        ),
        (
            "both servers: kill -9",
            1,
            Anything,
            "kill-servers",
            "start-servers",
        ),
    ];
    let full = (
        "orders: tablespace full",
        2,
        NoneIsRecorded,
        "fill-tablespace",
        "no-fill-tablespace",
    );
    if ask(script, "make-tablespace") {
        all.push(full);
    } else {
        println!("Skipped, since no disk can be mounted here: {}", full.0);
    }
    all.into_iter().map(fault).collect()
}

fn must(script: &str, word: &str) {
    assert!(ask(script, word), "{script} fault {word}");
}

/// Runs a command of the script; returns whether it succeeded.
fn ask(script: &str, word: &str) -> bool {
    let asked = Command::new(script).args(["fault", word]).status();
    asked.is_ok_and(|status| status.success())
}
