//! The way from the edge to the workers. tiny_http listens on a private Unix socket and has
//! at most as many clients as there are workers, each for ever: the lanes. A request takes a free
//! lane for as long as it is worked on, so what is in flight is bounded, and tiny_http never
//! meets a slow, broken or closing peer.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown as Half;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::EdgeLimits;

/// How long a worker may take to answer the first, empty request of a lane.
const PROOF_LIMIT: Duration = Duration::from_secs(10);

/// How long a worker may be silent over an answer. It is beyond every limit of its own, so it
/// is for what has none: a database server that is stopped, but not gone.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The target of that request; no client can send it, since it does not begin with a slash.
pub(crate) const PROOF_TARGET: &str = "lane";

/// The name of the header that carries what only the edge knows. It stands first, so one that a
/// client sends is never read.
pub(crate) const EDGE_HEADER: &str = "x-edge";

/// One connection to tiny_http.
pub(crate) struct Lane {
    /// Its place among the lanes, and its worker's.
    number: usize,
    /// What no other lane ever had or will have, not even the next one at this place: a worker
    /// may still be busy with a lane that was given up.
    pub(crate) id: usize,
    pub(crate) stream: UnixStream,
    /// What was read of an answer; kept for its capacity.
    pub(crate) buffer: Vec<u8>,
}

/// Starts the worker of that number.
pub(crate) type StartWorker = Box<dyn Fn(usize) -> io::Result<JoinHandle<()>> + Send + Sync>;

/// All lanes of one hall. A lane is opened, and its worker started, when all others are taken:
/// a service that is asked little stays small.
pub(crate) struct Lanes {
    socket: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
    /// For the workers: the edge's end of each lane, to end an answer that has no other end.
    handles: Arc<LaneHandles>,
    start_worker: StartWorker,
    /// The workers that were started, by their numbers. Held while a lane is opened: tiny_http
    /// strands connections that are opened at the same time.
    workers: Mutex<Vec<Option<JoinHandle<()>>>>,
    queue_max: usize,
    queue_limit: Duration,
}

struct State {
    /// The lane used last is used next: its worker and its connection are warm.
    free: Vec<Lane>,
    /// Numbers of lanes that are not open: not yet, or not any more.
    closed: VecDeque<usize>,
    waiting: usize,
}

/// Why a request got no lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLane {
    /// As many wait as may wait.
    QueueFull,
    /// None came free in time.
    TimedOut,
    /// tiny_http takes no connection.
    Broken,
}

impl Lanes {
    /// Opens the first of `count` lanes to the tiny_http that listens on `socket`.
    pub(crate) fn open(
        socket: PathBuf,
        count: usize,
        limits: &EdgeLimits,
        handles: Arc<LaneHandles>,
        start_worker: StartWorker,
    ) -> io::Result<Self> {
        let state = State {
            free: Vec::new(),
            closed: (1..count).collect(),
            waiting: 0,
        };
        let lanes = Self {
            socket,
            state: Mutex::new(state),
            returned: Condvar::new(),
            handles,
            start_worker,
            workers: Mutex::new((0..count).map(|_| None).collect()),
            queue_max: limits.queue,
            queue_limit: limits.queue_time,
        };
        let first = lanes.connect(0)?;
        lanes.state().free.push(first);
        Ok(lanes)
    }

    /// Closes all lanes that are free, and returns the workers, which are to end now.
    pub(crate) fn close(&self) -> Vec<JoinHandle<()>> {
        self.state().free.clear();
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.iter_mut().filter_map(Option::take).collect()
    }

    /// A free lane, waited for within the limits of the queue.
    pub(crate) fn take(&self) -> Result<Lane, NoLane> {
        let mut state = self.state();
        if state.free.is_empty() && state.closed.is_empty() {
            if state.waiting >= self.queue_max {
                return Err(NoLane::QueueFull);
            }
            state.waiting += 1;
            let deadline = Instant::now() + self.queue_limit;
            while state.free.is_empty() && state.closed.is_empty() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    state.waiting -= 1;
                    return Err(NoLane::TimedOut);
                }
                let waited = self.returned.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            state.waiting -= 1;
        }
        if let Some(lane) = state.free.pop() {
            return Ok(lane);
        }
        let number = state.closed.pop_front().ok_or(NoLane::Broken)?;
        drop(state);
        self.connect(number).map_err(|error| {
            log::error!(lane = number, cause = error.to_string().as_str(); "a lane cannot be opened");
            self.give_back_closed(number);
            NoLane::Broken
        })
    }

    /// Whether a request waits for a lane.
    pub(crate) fn are_wanted(&self) -> bool {
        self.state().waiting > 0
    }

    /// Gives a lane back after its answer was read to the end.
    pub(crate) fn give_back(&self, lane: Lane) {
        self.state().free.push(lane);
        self.returned.notify_one();
    }

    /// Closes a lane whose answer has no end, or has lost its reader. Closing it ends the
    /// worker's writing.
    pub(crate) fn give_up(&self, lane: &Lane) {
        let _ = lane.stream.shutdown(Half::Both);
        self.handles.remove(lane.id);
        self.give_back_closed(lane.number);
    }

    fn give_back_closed(&self, number: usize) {
        self.state().closed.push_back(number);
        self.returned.notify_one();
    }

    /// Opens a lane, proven by an answer.
    fn connect(&self, number: usize) -> io::Result<Lane> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if workers[number].as_ref().is_none_or(JoinHandle::is_finished) {
            workers[number] = Some((self.start_worker)(number)?);
        }
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PROOF_LIMIT))?;
        write!(stream, "GET {PROOF_TARGET} HTTP/1.1\r\n\r\n")?;
        let mut answer = [0; 256];
        let mut read = 0;
        while !answer[..read].ends_with(b"\r\n\r\n") {
            match stream.read(&mut answer[read..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => read += more,
            }
        }
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let id = self.handles.add(stream.try_clone()?);
        Ok(Lane {
            number,
            id,
            stream,
            buffer: Vec::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that happens under the lock can panic half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A second handle on each lane that is open, by its id.
#[derive(Default)]
pub(crate) struct LaneHandles {
    next: AtomicUsize,
    streams: Mutex<HashMap<usize, UnixStream>>,
}

impl LaneHandles {
    fn add(&self, stream: UnixStream) -> usize {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.streams().insert(id, stream);
        id
    }

    fn remove(&self, id: usize) -> Option<UnixStream> {
        self.streams().remove(&id)
    }

    /// Ends a lane from the worker's side: the edge reads what was written, and then the end.
    pub(crate) fn end(&self, id: usize) {
        if let Some(stream) = self.remove(id) {
            let _ = stream.shutdown(Half::Both);
        }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<usize, UnixStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
