//! A kernel in memory, for the schedules: descriptors that are used again, oneshot registrations,
//! and sockets with little room. Its clock stands until a test moves it.

#![allow(
    missing_docs,
    clippy::must_use_candidate,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "each is what it stands for"
)]
#![allow(dead_code, reason = "the tests alone boot it")]
#![allow(clippy::struct_excessive_bools, reason = "a kernel has many flags")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use shuttle::rand::Rng;
use shuttle::sync::Condvar;

use super::table::Token;
use crate::http::sync::{Mutex, lock};

thread_local! {
    static CLOCK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static KERNEL: RefCell<Option<Arc<Kernel>>> = const { RefCell::new(None) };
}

pub(crate) fn now() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    *BASE.get_or_init(Instant::now) + CLOCK.get()
}

pub(crate) fn advance(time: Duration) {
    CLOCK.set(CLOCK.get() + time);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
}

pub(crate) enum Event {
    Wake,
    Call,
    Listener,
    Peer(Token),
    Watch(Token),
}

pub(crate) struct Room;

impl Room {
    pub(crate) fn new() -> Self {
        Self
    }
}

/// A connection: our end is a [`Socket`], the other one a [`Client`].
#[derive(Default)]
struct Pipe {
    to_us: VecDeque<u8>,
    to_them: VecDeque<u8>,
    they_ended: bool,
    they_left: bool,
    we_ended: bool,
    we_left: bool,
    shut_down: bool,
}

struct File {
    pipe: usize,
    /// Whose it is, for a watch or not, what is waited for, and whether it is armed.
    registration: Option<(Token, bool, Interest, bool)>,
}

#[derive(Default)]
struct State {
    files: Vec<Option<File>>,
    pipes: Vec<Pipe>,
    backlog: VecDeque<usize>,
    /// What was connected to from here.
    dialled: VecDeque<usize>,
    listening: bool,
    listener_armed: bool,
    woken: bool,
    called: bool,
}

pub(crate) struct Kernel {
    state: Mutex<State>,
    changed: Condvar,
    room: usize,
}

impl Kernel {
    /// The kernel of what follows on this thread.
    pub(crate) fn boot(room: usize) -> Arc<Self> {
        CLOCK.set(Duration::ZERO);
        let state = Mutex::new(State {
            listening: true,
            ..State::default()
        });
        let kernel = Arc::new(Self {
            state,
            changed: Condvar::new(),
            room,
        });
        KERNEL.set(Some(Arc::clone(&kernel)));
        kernel
    }

    fn current() -> Arc<Self> {
        KERNEL.with_borrow(|kernel| kernel.clone().expect("a kernel"))
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.changed.notify_all();
        result
    }

    fn until<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut state = lock(&self.state);
        loop {
            if let Some(result) = ready(&mut state) {
                drop(state);
                self.changed.notify_all();
                return result;
            }
            state = self.changed.wait(state).expect("no poison");
        }
    }

    /// None where nobody listens.
    pub(crate) fn connect(self: &Arc<Self>) -> Option<Client> {
        self.with(|state| {
            if !state.listening {
                return None;
            }
            state.pipes.push(Pipe::default());
            let pipe = state.pipes.len() - 1;
            state.backlog.push_back(pipe);
            Some(Client {
                kernel: Arc::clone(self),
                pipe,
            })
        })
    }

    /// The other end of what is connected to from here; None once nobody is to come any more.
    pub(crate) fn dialled(self: &Arc<Self>) -> Option<Client> {
        let pipe = self.until(|state| match state.dialled.pop_front() {
            None if state.woken => Some(None),
            dialled => dialled.map(Some),
        });
        pipe.map(|pipe| Client {
            kernel: Arc::clone(self),
            pipe,
        })
    }
}

impl State {
    fn is_ready(&self, pipe: usize, interest: Interest, room: usize) -> bool {
        let pipe = &self.pipes[pipe];
        pipe.shut_down
            || match interest {
                Interest::Read => !pipe.to_us.is_empty() || pipe.they_ended,
                Interest::Write => pipe.to_them.len() < room || pipe.they_left,
            }
    }

    /// The lowest free descriptor, as the kernel gives them.
    fn open(&mut self, pipe: usize) -> usize {
        let file = Some(File {
            pipe,
            registration: None,
        });
        let fd = self
            .files
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.files.len());
        if fd == self.files.len() {
            self.files.push(file);
        } else {
            self.files[fd] = file;
        }
        fd
    }
}

pub(crate) struct Client {
    kernel: Arc<Kernel>,
    pipe: usize,
}

impl Client {
    pub(crate) fn send(&self, bytes: &[u8]) {
        self.kernel
            .with(|state| state.pipes[self.pipe].to_us.extend(bytes));
    }

    /// What arrives next; nothing at the end.
    pub(crate) fn recv(&self) -> Vec<u8> {
        self.kernel.until(|state| {
            let pipe = &mut state.pipes[self.pipe];
            let ended = pipe.we_ended || pipe.we_left || pipe.shut_down;
            (ended || !pipe.to_them.is_empty()).then(|| pipe.to_them.drain(..).collect())
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kernel.with(|state| {
                let pipe = &mut state.pipes[self.pipe];
                (pipe.they_ended, pipe.they_left) = (true, true);
            });
        }
    }
}

pub(crate) struct Poller(Arc<Kernel>);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Kernel::current()))
    }

    pub(crate) fn wait(&self, _: &mut Room) -> io::Result<Event> {
        let room = self.0.room;
        Ok(self.0.until(|state| {
            if state.woken {
                return Some(Event::Wake);
            }
            if std::mem::take(&mut state.called) {
                return Some(Event::Call);
            }
            let mut ready: Vec<Option<usize>> = Vec::new();
            if state.listener_armed && state.listening && !state.backlog.is_empty() {
                ready.push(None);
            }
            for (fd, file) in state.files.iter().enumerate() {
                if let Some(File {
                    pipe,
                    registration: Some((_, _, interest, true)),
                }) = file
                    && state.is_ready(*pipe, *interest, room)
                {
                    ready.push(Some(fd));
                }
            }
            if ready.is_empty() {
                return None;
            }
            let chosen = ready[shuttle::rand::thread_rng().gen_range(0..ready.len())];
            let Some(fd) = chosen else {
                state.listener_armed = false;
                return Some(Event::Listener);
            };
            let file = state.files[fd].as_mut().expect("it is open");
            let (token, is_watch, _, armed) = file.registration.as_mut().expect("it is armed");
            *armed = false;
            Some(if *is_watch {
                Event::Watch(*token)
            } else {
                Event::Peer(*token)
            })
        }))
    }

    pub(crate) fn wake(&self) {
        self.0.with(|state| state.woken = true);
    }

    pub(crate) fn call(&self) {
        self.0.with(|state| state.called = true);
    }

    pub(crate) fn arm_listener(&self, _: &Listener, _: bool) {
        self.0.with(|state| state.listener_armed = true);
    }

    pub(crate) fn arm(&self, socket: &Socket, token: Token, interest: Interest, first: bool) {
        self.set(socket, (token, false, interest, true), first);
    }

    pub(crate) fn arm_watch(&self, socket: &Socket, token: Token, interest: Interest, first: bool) {
        self.set(socket, (token, true, interest, true), first);
    }

    fn set(&self, socket: &Socket, registration: (Token, bool, Interest, bool), first: bool) {
        self.0.with(|state| {
            let file = state.files[socket.fd].as_mut().expect("EBADF");
            assert_eq!(file.registration.is_none(), first, "EEXIST or ENOENT");
            file.registration = Some(registration);
        });
    }
}

pub(crate) struct Listener(Arc<Kernel>);

impl Listener {
    pub(crate) fn bind(_: SocketAddr, _: bool, _: Duration) -> io::Result<Self> {
        Ok(Self(Kernel::current()))
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(crate) fn ignore_newcomers(&self) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn accept(&self) -> io::Result<(Socket, IpAddr)> {
        self.0.with(|state| {
            let pipe = state.backlog.pop_front().ok_or(ErrorKind::WouldBlock)?;
            let fd = state.open(pipe);
            let socket = Socket {
                kernel: Arc::clone(&self.0),
                fd,
                pipe,
            };
            Ok((socket, IpAddr::from([127, 0, 0, 1])))
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.with(|state| {
                state.listening = false;
                for pipe in std::mem::take(&mut state.backlog) {
                    state.pipes[pipe].we_left = true;
                }
            });
        }
    }
}

pub struct Socket {
    kernel: Arc<Kernel>,
    fd: usize,
    pipe: usize,
}

impl Socket {
    pub fn connect(_: SocketAddr) -> io::Result<Self> {
        let kernel = Kernel::current();
        let (fd, pipe) = kernel.with(|state| {
            state.pipes.push(Pipe::default());
            let pipe = state.pipes.len() - 1;
            state.dialled.push_back(pipe);
            (state.open(pipe), pipe)
        });
        Ok(Self { kernel, fd, pipe })
    }

    pub fn error(&self) -> io::Result<()> {
        Ok(())
    }

    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.kernel.with(|state| {
            let pipe = &mut state.pipes[self.pipe];
            if pipe.to_us.is_empty() || pipe.shut_down {
                let over = pipe.they_ended || pipe.shut_down;
                return if over {
                    Ok(0)
                } else {
                    Err(ErrorKind::WouldBlock.into())
                };
            }
            let bytes = pipe.to_us.len().min(buffer.len());
            for (into, byte) in buffer.iter_mut().zip(pipe.to_us.drain(..bytes)) {
                *into = byte;
            }
            Ok(bytes)
        })
    }

    pub(crate) fn peek(&self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.kernel.room;
        self.kernel.with(|state| {
            let pipe = &mut state.pipes[self.pipe];
            if pipe.they_left || pipe.shut_down {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let bytes = &bytes[..bytes.len().min(room.saturating_sub(pipe.to_them.len()))];
            if bytes.is_empty() {
                return Err(ErrorKind::WouldBlock.into());
            }
            pipe.to_them.extend(bytes);
            Ok(bytes.len())
        })
    }

    pub fn wait(&self, interest: Interest, _: Duration) -> bool {
        let room = self.kernel.room;
        self.kernel
            .until(|state| state.is_ready(self.pipe, interest, room).then_some(true))
    }

    pub(crate) fn end_output(&self) {
        self.kernel
            .with(|state| state.pipes[self.pipe].we_ended = true);
    }

    pub(crate) fn shut_down(&self) {
        self.kernel
            .with(|state| state.pipes[self.pipe].shut_down = true);
    }

    pub(crate) fn reset_on_close(&self) {}
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kernel.with(|state| {
                state.files[self.fd] = None;
                state.pipes[self.pipe].we_left = true;
            });
        }
    }
}
