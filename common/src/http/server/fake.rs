//! A kernel in memory, for the schedules: descriptors that are used again, oneshot registrations,
//! and sockets with little room. Its clock is `clock.rs`.

#![allow(
    missing_docs,
    clippy::must_use_candidate,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    reason = "each is what it stands for"
)]
#![allow(dead_code, reason = "the tests alone boot it")]
#![allow(clippy::struct_excessive_bools, reason = "a kernel has many flags")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use shuttle::rand::Rng;
use shuttle::sync::Condvar;

use super::table::Token;
use crate::http::clock;
use crate::http::sync::{Mutex, lock};

thread_local! {
    static KERNEL: RefCell<Option<Arc<Kernel>>> = const { RefCell::new(None) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
}

pub(crate) const LISTENER: Token = Token(u64::MAX);
pub(crate) const END_ALL: Token = Token(u64::MAX - 1);
pub(crate) const WAKE: Token = Token(u64::MAX - 2);

/// A connection: our end is a [`Socket`], the other one a [`FakeClient`].
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
    /// Whose it is, and what is waited for, while it is armed.
    armed: Option<(Token, Interest)>,
}

#[derive(Default)]
pub(crate) struct KernelState {
    files: Vec<Option<File>>,
    pipes: Vec<Pipe>,
    backlog: VecDeque<usize>,
    /// What was connected to from here.
    dialled: VecDeque<usize>,
    listening: bool,
    listener_armed: bool,
    ended: bool,
    woken: bool,
}

pub(crate) struct Kernel {
    state: Mutex<KernelState>,
    changed: Condvar,
    room: usize,
}

impl Kernel {
    /// The kernel of what follows on this thread.
    pub(crate) fn boot(room: usize) -> Arc<Self> {
        clock::reset();
        let state = Mutex::new(KernelState {
            listening: true,
            ..KernelState::default()
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

    fn with<T>(&self, change: impl FnOnce(&mut KernelState) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.changed.notify_all();
        result
    }

    fn until<T>(&self, mut ready: impl FnMut(&mut KernelState) -> Option<T>) -> T {
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
    pub(crate) fn connect(self: &Arc<Self>) -> Option<FakeClient> {
        self.with(|state| {
            if !state.listening {
                return None;
            }
            state.pipes.push(Pipe::default());
            let pipe = state.pipes.len() - 1;
            state.backlog.push_back(pipe);
            Some(FakeClient {
                kernel: Arc::clone(self),
                pipe,
            })
        })
    }

    /// The other end of what is connected to from here; None once nobody is to come any more.
    pub(crate) fn dialled(self: &Arc<Self>) -> Option<FakeClient> {
        let pipe = self.until(|state| match state.dialled.pop_front() {
            None if state.ended => Some(None),
            dialled => dialled.map(Some),
        });
        pipe.map(|pipe| FakeClient {
            kernel: Arc::clone(self),
            pipe,
        })
    }
}

impl KernelState {
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
        let file = Some(File { pipe, armed: None });
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

pub(crate) struct FakeClient {
    kernel: Arc<Kernel>,
    pipe: usize,
}

impl FakeClient {
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

impl Drop for FakeClient {
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

    pub(crate) fn wait(&self) -> io::Result<Token> {
        let room = self.0.room;
        Ok(self.0.until(|state| {
            if state.ended {
                return Some(END_ALL);
            }
            if std::mem::take(&mut state.woken) {
                return Some(WAKE);
            }
            let mut ready: Vec<Option<usize>> = Vec::new();
            if state.listener_armed && state.listening && !state.backlog.is_empty() {
                ready.push(None);
            }
            for (fd, file) in state.files.iter().enumerate() {
                if let Some(File {
                    pipe,
                    armed: Some((_, interest)),
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
                return Some(LISTENER);
            };
            let file = state.files[fd].as_mut().expect("it is open");
            let (token, _) = file.armed.take().expect("it is armed");
            Some(token)
        }))
    }

    pub(crate) fn end_all(&self) {
        self.0.with(|state| state.ended = true);
    }

    pub(crate) fn wake(&self) {
        self.0.with(|state| state.woken = true);
    }

    pub(crate) fn arm(&self, source: &impl Source, token: Token, interest: Interest) {
        self.0.with(|state| source.arm(state, (token, interest)));
    }
}

/// What can be armed.
pub(crate) trait Source {
    fn arm(&self, state: &mut KernelState, armed: (Token, Interest));
}

impl Source for Listener {
    fn arm(&self, state: &mut KernelState, _: (Token, Interest)) {
        state.listener_armed = true;
    }
}

impl Source for Socket {
    fn arm(&self, state: &mut KernelState, armed: (Token, Interest)) {
        state.files[self.fd].as_mut().expect("EBADF").armed = Some(armed);
    }
}

pub(crate) struct Listener(Arc<Kernel>);

pub(crate) fn bind(_: SocketAddr, _: bool, _: Duration) -> io::Result<Listener> {
    Ok(Listener(Kernel::current()))
}

pub(crate) fn ignore_newcomers(_: &Listener) -> io::Result<()> {
    Ok(())
}

impl Listener {
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(crate) fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        self.0.with(|state| {
            let pipe = state.backlog.pop_front().ok_or(ErrorKind::WouldBlock)?;
            let fd = state.open(pipe);
            let socket = Socket {
                kernel: Arc::clone(&self.0),
                fd,
                pipe,
            };
            Ok((socket, ([127, 0, 0, 1], 1).into()))
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

pub fn connect(_: SocketAddr) -> io::Result<Socket> {
    let kernel = Kernel::current();
    let (fd, pipe) = kernel.with(|state| {
        state.pipes.push(Pipe::default());
        let pipe = state.pipes.len() - 1;
        state.dialled.push_back(pipe);
        (state.open(pipe), pipe)
    });
    Ok(Socket { kernel, fd, pipe })
}

pub fn wait_for(socket: &Socket, interest: Interest, _: Duration) -> bool {
    let room = socket.kernel.room;
    let ready = |state: &mut KernelState| state.is_ready(socket.pipe, interest, room);
    socket.kernel.until(|state| ready(state).then_some(true))
}

pub(crate) fn reset_on_close(_: &Socket) {}

impl Socket {
    pub(crate) fn set_nonblocking(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn peek(&self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.kernel.with(|state| {
            let pipe = &mut state.pipes[self.pipe];
            pipe.we_ended = true;
            pipe.shut_down |= how == Shutdown::Both;
        });
        Ok(())
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
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
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
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

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
