//! A drill: clients place orders, and read and change movies, without a pause while programs are
//! killed, servers stopped and connections cut, and while others lock tables, revoke rights or delete
//! the queue; another program publishes messages that can never be recorded. At the end the drill compares
//! the answers with the tables: every order that was answered 200 is recorded exactly once, and no order
//! twice, whatever was answered; every unreadable message is one dead letter, and no order is; each
//! consumer's `/ready` was right; and each movie is linearizable.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::{Expectation, Fault};
use crate::history::{MovieRequest, MovieResponse, Operation, is_linearizable};
use crate::movie_clients::{MovieClient, SharedMovies};
use crate::order_client::{OrderClient, RECOVERY_LIMIT, REST};
use crate::platform_processes::{PlatformProcesses, RowCounts, SentMessage, lock};
use crate::raw_publisher::RawPublisher;

/// How many clients place orders at the same time.
const CLIENTS: usize = 16;

/// How many clients read and change movies at the same time.
const MOVIE_CLIENTS: usize = 6;

/// How long `/ready` may take to show a change.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// The outcome of a fault.
pub struct FaultOutcome {
    /// The name of the fault.
    pub fault: &'static str,
    /// How many orders were answered 200 during the fault, and how many otherwise.
    pub answers: (usize, usize),
    /// The time from its begin until the `/ready` of every consumer answered 503, if no order can be recorded.
    pub unready_after: Option<Duration>,
    /// The time from its end until an order was confirmed again.
    pub accepts_after: Duration,
    /// The time from its end until that order was recorded.
    pub records_after: Duration,
    /// The time from its end until a movie was created.
    pub creates_after: Duration,
    /// The readings of the clock of the movies before and after it began.
    injected: (u64, u64),
}

/// The outcome of the whole drill.
#[derive(Default)]
pub struct DrillReport {
    /// The outcome of each fault.
    pub outcomes: Vec<FaultOutcome>,
    /// The number of orders that were answered 200.
    pub answered: usize,
    /// The number of orders that were answered otherwise, or not at all, and were not sent again.
    pub unsure: usize,
    /// How many of those were recorded.
    pub unsure_recorded: usize,
    /// The number of dead letters.
    pub dead: usize,
    /// The number of movies, and of requests for them.
    pub movies: (usize, usize),
    /// A text for every error that was found.
    pub wrong: Vec<String>,
}

/// Runs faults one after the other under a constant load, to the last or until `enough` returns true for the
/// number of faults and the number of orders that were answered 200. `show` is called with the outcome of
/// each fault.
///
/// # Panics
/// If the platform does not recover from a fault.
pub fn run<'f>(
    platform: &mut PlatformProcesses,
    faults: impl IntoIterator<Item = &'f Fault>,
    enough: impl Fn(usize, usize) -> bool,
    show: impl Fn(&FaultOutcome),
) -> DrillReport {
    let shared = Arc::clone(&platform.shared);
    let stopped = AtomicBool::new(false);
    let raw_publisher = RawPublisher::new(platform.queue.config(), &shared);
    let movies = SharedMovies::new(&shared.gateway_address);
    let mut report = DrillReport::default();
    // The panic of a client ends the drill.
    thread::scope(|scope| {
        // The clients stop even if the platform does not recover, which causes a panic.
        let _stop = StopOnDrop(&stopped);
        for number in 0..CLIENTS {
            let orders = OrderClient::new(number.to_string(), &shared);
            scope.spawn(|| orders.place_until(&stopped));
        }
        for _ in 0..MOVIE_CLIENTS {
            scope.spawn(|| MovieClient::new(&movies).ask_until(&stopped));
        }
        scope.spawn(|| raw_publisher.publish_until(&stopped));
        let mut probe = OrderClient::new("probe".to_owned(), &shared);
        for fault in faults {
            let outcome = run_fault(platform, fault, &mut probe, &movies, &mut report.wrong);
            show(&outcome);
            report.outcomes.push(outcome);
            if enough(report.outcomes.len(), shared.counts().0) {
                break;
            }
        }
    });
    platform.wait_until_all_is_recorded();
    compare(&mut report, &lock(&shared.sent_messages), platform.rows());
    let injected: Vec<_> = report
        .outcomes
        .iter()
        .map(|outcome| outcome.injected)
        .collect();
    for (id, history) in movies.histories() {
        report.movies.0 += 1;
        report.movies.1 += history.len();
        if !is_linearizable(&with_repeats(&history, &injected)) {
            report
                .wrong
                .push(format!("movie {id} is not linearizable: {history:#?}"));
        }
    }
    report
}

struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn run_fault(
    platform: &mut PlatformProcesses,
    fault: &Fault,
    probe: &mut OrderClient,
    movies: &SharedMovies,
    wrong: &mut Vec<String>,
) -> FaultOutcome {
    let shared = Arc::clone(&platform.shared);
    let before = shared.counts();
    let mut is_wrong = |what: &str| wrong.push(format!("{}: {what}", fault.name));
    let before_injection = movies.now();
    (fault.inject)(platform);
    let (injected, begun) = ((before_injection, movies.now()), Instant::now());
    let mut unready_after = None;
    match fault.expectation {
        Expectation::Anything => {}
        Expectation::NoneIsRecorded => {
            if comes_within(READY_LIMIT, || platform.consumer_readiness() == [503, 503]) {
                unready_after = Some(begun.elapsed());
            } else {
                is_wrong("a consumer is ready, although no order can be recorded");
            }
        }
        Expectation::OthersAreRecorded => {
            let id = probe.place_surely();
            if !comes_within(READY_LIMIT, || platform.is_recorded(&id)) {
                is_wrong("an order waits that the fault does not concern");
            }
            if platform.consumer_readiness() != [200, 200] {
                is_wrong("a consumer is not ready, although orders are recorded");
            }
        }
    }
    // A fault lasts for some time.
    thread::sleep(fault.lasts.saturating_sub(begun.elapsed()));
    (fault.repair)(platform);
    let repaired = Instant::now();
    let during = shared.counts();

    let id = probe.place_surely();
    let accepts_after = repaired.elapsed();
    let recorded = comes_within(RECOVERY_LIMIT, || platform.is_recorded(&id));
    assert!(recorded, "{}: {id} is not recorded", fault.name);
    let records_after = repaired.elapsed();
    probe.create_movie_surely();
    let creates_after = repaired.elapsed();
    if !comes_within(READY_LIMIT, || platform.consumer_readiness() == [200, 200]) {
        is_wrong("a consumer is not ready after the end of the fault");
    }
    FaultOutcome {
        fault: fault.name,
        answers: (during.0 - before.0, during.1 - before.1),
        unready_after,
        accepts_after,
        records_after,
        creates_after,
        injected,
    }
}

fn comes_within(limit: Duration, mut fact: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if fact() {
            return true;
        }
        if begun.elapsed() > limit {
            return false;
        }
        thread::sleep(REST);
    }
}

/// Compares the messages that were sent with the rows.
fn compare(report: &mut DrillReport, sent: &[SentMessage], mut rows: RowCounts) {
    for message in sent {
        let times = rows.of(message);
        if message.unreadable {
            report.dead += usize::from(times > 0);
        } else if message.answered {
            report.answered += 1;
        } else {
            report.unsure += 1;
            report.unsure_recorded += usize::from(times > 0);
        }
        let kind = if message.unreadable {
            "a dead letter"
        } else {
            "recorded"
        };
        if times > 1 {
            report
                .wrong
                .push(format!("{} is {kind} {times} times", message.id));
        } else if times == 0 && message.answered {
            report
                .wrong
                .push(format!("{} was confirmed, but is not {kind}", message.id));
        }
        rows.forget(message);
    }
    for (id, kind) in rows.left() {
        report
            .wrong
            .push(format!("{id} is {kind}, but must not be"));
    }
}

/// A gateway repeats an idempotent request without a precondition if the connection to the inventory ends before an
/// answer begins (RFC 9110 §9.2.2). A request that was in progress when a fault began may therefore have been carried
/// out once more than its answer shows.
fn with_repeats(history: &[Operation], injected: &[(u64, u64)]) -> Vec<Operation> {
    let was_in_progress = |operation: &Operation| {
        let (begun, ended) = operation.lasted;
        injected
            .iter()
            .any(|(before, after)| begun < *after && *before < ended)
    };
    let repeatable = |asked| match asked {
        MovieRequest::Create(_) | MovieRequest::Read => false,
        MovieRequest::Change { only_if, .. } | MovieRequest::Delete { only_if } => {
            only_if.is_none()
        }
    };
    let repeats = history
        .iter()
        .filter(|operation| repeatable(operation.asked) && was_in_progress(operation))
        .map(|operation| Operation {
            answered: MovieResponse::Unknown,
            ..*operation
        });
    history.iter().copied().chain(repeats).collect()
}

/// A line of the table of outcomes; the head of the table for None.
#[must_use]
pub fn table_line(outcome: Option<&FaultOutcome>) -> String {
    let mut line = String::new();
    let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
    let written = match outcome {
        None => write!(
            line,
            "{:<34} {:>8} {:>10} {:>13} {:>14} {:>14} {:>14}",
            "fault",
            "200",
            "otherwise",
            "unready after",
            "accepts after",
            "records after",
            "creates after"
        ),
        Some(outcome) => write!(
            line,
            "{:<34} {:>8} {:>10} {:>13} {:>14} {:>14} {:>14}",
            outcome.fault,
            outcome.answers.0,
            outcome.answers.1,
            outcome.unready_after.map_or_else(String::new, seconds),
            seconds(outcome.accepts_after),
            seconds(outcome.records_after),
            seconds(outcome.creates_after)
        ),
    };
    written.map_or_else(|_| String::new(), |()| line)
}
