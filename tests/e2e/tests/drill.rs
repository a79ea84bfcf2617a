//! The drill in its short form: what can go wrong with the programs, with the links between them,
//! and with the tables and the queue. The servers belong to the other tests too; `setup/drill.sh` stops
//! those as well.

use std::path::Path;

use e2e::flood::{LogDisk, fault_of_a_flood};
use e2e::{Stage, drill, faults, programs};

#[test]
fn whatever_dies_every_answered_order_is_recorded_once_and_movies_are_linearizable() {
    let mut stage = Stage::start(&programs());
    let mut all = faults::faults();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    all.push(fault_of_a_flood(LogDisk::Large(folder.to_owned())));

    report(&drill::table_line(None));
    let to_the_last = |_, _| false;
    let books = drill::run(&mut stage, &all, to_the_last, |recovery| {
        report(&drill::table_line(Some(recovery)));
    });

    assert_eq!(books.wrong, [""; 0]);
    assert!(books.answered > 100, "{} orders", books.answered);
    assert!(books.dead > 100, "{} dead letters", books.dead);
    let (movies, requests) = books.movies;
    assert!(
        movies > 10 && requests > 10 * movies,
        "{requests} of {movies} movies"
    );
}

#[test]
fn movies_that_one_inventory_does_not_know_yet_are_found_not_to_be_linearizable() {
    let mut stage = Stage::start(&programs());
    let fault = faults::fault_of_a_lagging_inventory();

    let books = drill::run(&mut stage, [&fault], |_, _| false, |_| {});

    let not_linearizable = |wrong: &String| wrong.contains("is not linearizable");
    assert!(
        books.wrong.iter().any(not_linearizable),
        "{:?}",
        books.wrong
    );
}

/// Shown with `--nocapture`, and where the test fails.
#[expect(clippy::print_stderr, reason = "whoever measures wants to see it")]
fn report(line: &str) {
    eprintln!("{line}");
}
