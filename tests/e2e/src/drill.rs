//! A drill: clients place orders, and read and change movies, without a pause while programs are
//! killed, servers stopped and links cut, and while others lock tables, take rights away or delete
//! the queue; a stranger publishes what can never be recorded. At the end the books are compared:
//! every order that was answered 200 is recorded exactly once, and no order twice, whatever was
//! answered; every unreadable message is one dead letter, and no order is; each consumer's `/ready`
//! told the truth; and each movie is linearizable.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::{Fault, Meanwhile};
use crate::history::{Answered, Asked, Operation, is_linearizable};
use crate::moviegoers::{Moviegoer, Movies};
use crate::orders::{Orders, RECOVERY_LIMIT, REST};
use crate::stage::{Entry, Rows, Stage, lock};
use crate::stranger::Stranger;

/// Clients that place orders at the same time.
const CLIENTS: usize = 16;

/// Clients that read and change movies at the same time.
const MOVIEGOERS: usize = 6;

/// How long `/ready` may take to say what is the case.
const TELL_LIMIT: Duration = Duration::from_secs(20);

/// What came of a fault.
pub struct Recovery {
    /// What went wrong.
    pub fault: &'static str,
    /// Orders that were answered 200 while it lasted, and otherwise.
    pub meanwhile: (usize, usize),
    /// From its begin until every consumer said that nothing can be recorded, where that is so.
    pub told_after: Option<Duration>,
    /// From its end until an order was confirmed again.
    pub accepts_after: Duration,
    /// From its end until that order was recorded.
    pub records_after: Duration,
    /// From its end until a movie was created.
    pub creates_after: Duration,
    /// Between which readings of the movies' clock it began.
    struck: (u64, u64),
}

/// What came of the whole drill.
#[derive(Default)]
pub struct Books {
    /// One for each fault.
    pub recoveries: Vec<Recovery>,
    /// Orders that were answered 200.
    pub answered: usize,
    /// Orders that were answered otherwise, or not at all, and not tried again.
    pub unsure: usize,
    /// Of those, how many were recorded all the same.
    pub unsure_recorded: usize,
    /// Dead letters.
    pub dead: usize,
    /// How many movies were asked for, and how often all together.
    pub movies: (usize, usize),
    /// What does not add up, in words; nothing, where all is well.
    pub wrong: Vec<String>,
}

/// Runs faults one after the other under a constant load, to the last or until `enough` says
/// so of how many faults there were and how many orders were answered 200. `tell` hears of each
/// fault when it is over.
///
/// # Panics
/// When the platform does not recover from one.
pub fn run<'f>(
    stage: &mut Stage,
    faults: impl IntoIterator<Item = &'f Fault>,
    enough: impl Fn(usize, usize) -> bool,
    tell: impl Fn(&Recovery),
) -> Books {
    let shared = Arc::clone(&stage.shared);
    let stopped = AtomicBool::new(false);
    let stranger = Stranger::new(stage.queue.config(), &shared);
    let movies = Movies::new(&shared.door);
    let mut books = Books::default();
    // A client that panics is a panic here.
    thread::scope(|scope| {
        // Also where a fault is never recovered from, which panics.
        let _stop = StopOnDrop(&stopped);
        for number in 0..CLIENTS {
            let orders = Orders::new(number.to_string(), &shared);
            scope.spawn(|| orders.place_until(&stopped));
        }
        for _ in 0..MOVIEGOERS {
            scope.spawn(|| Moviegoer::new(&movies).ask_until(&stopped));
        }
        scope.spawn(|| stranger.publish_until(&stopped));
        let mut probe = Orders::new("probe".to_owned(), &shared);
        for fault in faults {
            let recovery = recovery(stage, fault, &mut probe, &movies, &mut books.wrong);
            tell(&recovery);
            books.recoveries.push(recovery);
            if enough(books.recoveries.len(), shared.counts().0) {
                break;
            }
        }
    });
    stage.wait_until_all_is_recorded();
    compare(&mut books, &lock(&shared.book), stage.rows());
    let struck: Vec<_> = books
        .recoveries
        .iter()
        .map(|recovery| recovery.struck)
        .collect();
    for (id, history) in movies.histories() {
        books.movies.0 += 1;
        books.movies.1 += history.len();
        if !is_linearizable(&with_repeats(&history, &struck)) {
            books
                .wrong
                .push(format!("movie {id} is not linearizable: {history:#?}"));
        }
    }
    books
}

struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn recovery(
    stage: &mut Stage,
    fault: &Fault,
    probe: &mut Orders,
    movies: &Movies,
    wrong: &mut Vec<String>,
) -> Recovery {
    let shared = Arc::clone(&stage.shared);
    let before = shared.counts();
    let mut is_wrong = |what: &str| wrong.push(format!("{}: {what}", fault.name));
    let strikes = movies.now();
    (fault.strike)(stage);
    let (struck, begun) = ((strikes, movies.now()), Instant::now());
    let mut told_after = None;
    match fault.meanwhile {
        Meanwhile::Anything => {}
        Meanwhile::NoneIsRecorded => {
            if comes_within(TELL_LIMIT, || stage.consumers_say() == [503, 503]) {
                told_after = Some(begun.elapsed());
            } else {
                is_wrong("a consumer is ready, and nothing can be recorded");
            }
        }
        Meanwhile::OthersAreRecorded => {
            let id = probe.place_surely();
            if !comes_within(TELL_LIMIT, || stage.is_recorded(&id)) {
                is_wrong("an order waits that has nothing to do with it");
            }
            if stage.consumers_say() != [200, 200] {
                is_wrong("a consumer is not ready, and records");
            }
        }
    }
    // For a fault to last, time must pass.
    thread::sleep(fault.lasts.saturating_sub(begun.elapsed()));
    (fault.mend)(stage);
    let mended = Instant::now();
    let during = shared.counts();

    let id = probe.place_surely();
    let accepts_after = mended.elapsed();
    let recorded = comes_within(RECOVERY_LIMIT, || stage.is_recorded(&id));
    assert!(recorded, "{}: {id} is not recorded", fault.name);
    let records_after = mended.elapsed();
    probe.create_movie_surely();
    let creates_after = mended.elapsed();
    if !comes_within(TELL_LIMIT, || stage.consumers_say() == [200, 200]) {
        is_wrong("it is over, and a consumer is not ready");
    }
    Recovery {
        fault: fault.name,
        meanwhile: (during.0 - before.0, during.1 - before.1),
        told_after,
        accepts_after,
        records_after,
        creates_after,
        struck,
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

/// What was sent with what is there.
fn compare(books: &mut Books, sent: &[Entry], mut rows: Rows) {
    for entry in sent {
        let times = rows.of(entry);
        if entry.unreadable {
            books.dead += usize::from(times > 0);
        } else if entry.answered {
            books.answered += 1;
        } else {
            books.unsure += 1;
            books.unsure_recorded += usize::from(times > 0);
        }
        let kind = if entry.unreadable {
            "a dead letter"
        } else {
            "recorded"
        };
        if times > 1 {
            books
                .wrong
                .push(format!("{} is {kind} {times} times", entry.id));
        } else if times == 0 && entry.answered {
            books
                .wrong
                .push(format!("{} was confirmed and is not {kind}", entry.id));
        }
        rows.forget(entry);
    }
    for (id, kind) in rows.left() {
        books
            .wrong
            .push(format!("{id} is {kind}, and should not be"));
    }
}

/// A gateway repeats an idempotent request without a precondition when the connection to the
/// inventory ends before an answer begins (RFC 9110 §9.2.2). One that was under way when a fault
/// struck was perhaps carried out once more than its answer tells.
fn with_repeats(history: &[Operation], struck: &[(u64, u64)]) -> Vec<Operation> {
    let was_under_way = |operation: &Operation| {
        let (begun, ended) = operation.lasted;
        struck
            .iter()
            .any(|(before, after)| begun < *after && *before < ended)
    };
    let repeatable = |asked| match asked {
        Asked::Create(_) | Asked::Read => false,
        Asked::Change { only_if, .. } | Asked::Delete { only_if } => only_if.is_none(),
    };
    let repeats = history
        .iter()
        .filter(|operation| repeatable(operation.asked) && was_under_way(operation))
        .map(|operation| Operation {
            answered: Answered::Unknown,
            ..*operation
        });
    history.iter().copied().chain(repeats).collect()
}

/// The head of the table, and a line of it.
#[must_use]
pub fn table_line(recovery: Option<&Recovery>) -> String {
    let mut line = String::new();
    let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
    let written = match recovery {
        None => write!(
            line,
            "{:<34} {:>8} {:>10} {:>11} {:>14} {:>14} {:>14}",
            "fault",
            "200",
            "otherwise",
            "told after",
            "accepts after",
            "records after",
            "creates after"
        ),
        Some(recovery) => write!(
            line,
            "{:<34} {:>8} {:>10} {:>11} {:>14} {:>14} {:>14}",
            recovery.fault,
            recovery.meanwhile.0,
            recovery.meanwhile.1,
            recovery.told_after.map_or_else(String::new, seconds),
            seconds(recovery.accepts_after),
            seconds(recovery.records_after),
            seconds(recovery.creates_after)
        ),
    };
    written.map_or_else(|_| String::new(), |()| line)
}
