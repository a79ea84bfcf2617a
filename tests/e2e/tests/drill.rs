//! The drill in its short form: faults of the programs, of the connections between them, and of the tables and
//! the queue. Other tests use the servers too, so only `setup/drill.sh` stops those.

use std::path::Path;

use e2e::flood::{LogDisk, fault_of_a_flood};
use e2e::{PlatformProcesses, drill, faults, programs};

#[test]
fn whatever_dies_every_answered_order_is_recorded_once_and_movies_are_linearizable() {
    let mut platform = PlatformProcesses::start(&programs());
    let mut all = faults::faults();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    all.push(fault_of_a_flood(LogDisk::Large(folder.to_owned())));

    print_line(&drill::table_line(None));
    let to_the_last = |_, _| false;
    let report = drill::run(&mut platform, &all, to_the_last, |outcome| {
        print_line(&drill::table_line(Some(outcome)));
    });

    assert_eq!(report.wrong, [""; 0]);
    assert!(report.answered > 100, "{} orders", report.answered);
    assert!(report.dead > 100, "{} dead letters", report.dead);
    let (movies, requests) = report.movies;
    assert!(
        movies > 10 && requests > 10 * movies,
        "{requests} of {movies} movies"
    );
}

#[test]
fn movies_that_one_inventory_lacks_are_found_not_to_be_linearizable() {
    let mut platform = PlatformProcesses::start(&programs());
    let fault = faults::fault_of_a_lagging_inventory();

    let report = drill::run(&mut platform, [&fault], |_, _| false, |_| {});

    let not_linearizable = |wrong: &String| wrong.contains("is not linearizable");
    assert!(
        report.wrong.iter().any(not_linearizable),
        "{:?}",
        report.wrong
    );
}

/// Prints a line, which is shown with `--nocapture` and if the test fails.
#[expect(clippy::print_stderr, reason = "the table of a measurement")]
fn print_line(line: &str) {
    eprintln!("{line}");
}
