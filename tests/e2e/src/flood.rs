//! Clients that send the gateway, as fast as they can, requests that it refuses, while its log is on a small disk.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use testkit::{Client, eventually};

use crate::faults::{Expectation, Fault};

/// How many clients send requests.
const CLIENTS: usize = 4;

/// The length of the target of every other request. With a line for each request the log would have 4 MB.
const REFUSED_MIN: usize = 1000;
const TARGET_BYTES: usize = 8000;

/// How many bytes of log a client's refusals may cause in a second: a line with the beginning of a target, and a line
/// with the number of the others.
const LINES_BYTES_MAX: u64 = 2048;

/// The disk of the log.
#[derive(Clone)]
pub enum LogDisk {
    /// A folder on a disk with room.
    Large(PathBuf),
    /// A folder on a disk of a few MB, which the test fills to the last block.
    Small(PathBuf),
}

/// A flood of refused requests. The log grows by a few lines a second, and orders are recorded meanwhile, even if the
/// disk of the log is full.
///
/// # Panics
/// If it cannot begin, or the log grows by more.
#[must_use]
pub fn fault_of_a_flood(disk: LogDisk) -> Fault {
    let (LogDisk::Large(folder) | LogDisk::Small(folder)) = &disk;
    let (log, filler) = (folder.join("gateway.log"), folder.join("filler"));
    let to_remove = [log.clone(), filler.clone()];
    let flood = Rc::new(RefCell::new(None));
    let ended = Rc::clone(&flood);
    Fault::new(
        "gateway: a flood of refusals",
        2,
        move |platform| {
            let gateway = platform.start_gateway_with_log(&log);
            let begun = Flood::start(gateway);
            begun.assert_log_stays_small(&log);
            if matches!(disk, LogDisk::Small(_)) {
                fill(&filler);
            }
            *flood.borrow_mut() = Some(begun);
        },
        move |platform| {
            drop(ended.borrow_mut().take());
            platform.start_gateway();
            for file in &to_remove {
                let _ = fs::remove_file(file);
            }
        },
    )
    .expecting(Expectation::OthersAreRecorded)
}

/// Fills the disk to its last block.
fn fill(filler: &Path) {
    let mut file = File::create(filler).expect("a file");
    let error = loop {
        if let Err(error) = file.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

/// A flood that lasts until this value is dropped.
struct Flood {
    begun: Instant,
    refused: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Flood {
    fn start(gateway: SocketAddr) -> Self {
        let (refused, stopped) = (Arc::default(), Arc::default());
        let client = |_| {
            let (refused, stopped) = (Arc::clone(&refused), Arc::clone(&stopped));
            thread::spawn(move || ask_until(&stopped, gateway, &refused))
        };
        Self {
            begun: Instant::now(),
            clients: (0..CLIENTS).map(client).collect(),
            refused,
            stopped,
        }
    }

    /// Checks that many refusals made few lines.
    fn assert_log_stays_small(&self, log: &Path) {
        eventually("many requests are refused", || {
            self.refused.load(Ordering::Relaxed) >= REFUSED_MIN
        });
        let log = fs::read_to_string(log).expect("the log");
        let refusal = |line: &&str| {
            line.contains(" status=4") || line.contains("msg=\"more requests refused")
        };
        let bytes: usize = log.lines().filter(refusal).map(str::len).sum();
        // The second in which it began and the last second count too.
        let seconds = self.begun.elapsed() + Duration::from_secs(2);
        assert!(
            bytes > 0 && bytes as u64 <= seconds.as_secs() * LINES_BYTES_MAX,
            "{bytes} bytes of lines in {seconds:?}"
        );
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

/// Sends requests in turn for a path that does not exist, and for one that needs a key.
fn ask_until(stopped: &AtomicBool, gateway: SocketAddr, refused: &AtomicUsize) {
    let client = Client::new(gateway);
    let unknown = format!("/{}", "x".repeat(TARGET_BYTES));
    while !stopped.load(Ordering::Relaxed) {
        for (target, status) in [(unknown.as_str(), 404), ("/metrics", 401)] {
            let reply = client.try_send("GET", target, &[], None);
            let is_refused = reply.is_ok_and(|reply| reply.status == status);
            refused.fetch_add(is_refused.into(), Ordering::Relaxed);
        }
    }
}
