//! A relay in front of a real server, to have outages of it without stopping it for the other
//! tests.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

/// Passes connections on while it is up; while it is down, it closes each at once.
pub struct Relay {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    up: bool,
    /// Both ends of what is passed on.
    streams: Vec<TcpStream>,
}

impl Relay {
    /// A relay to that server, up from the start.
    #[must_use]
    pub fn up(host: &str, port: u16) -> Self {
        let relay = Self::down(host, port);
        relay.restore();
        relay
    }

    /// A relay to that server, down from the start.
    ///
    /// # Panics
    /// When no port is to be had.
    #[must_use]
    pub fn down(host: &str, port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let state = Arc::new(Mutex::new(State::default()));
        let target = (host.to_owned(), port);
        let accepting = Arc::clone(&state);
        // Ends with the test's process, like the threads that it starts.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = lock(&accepting);
                if !state.up {
                    continue;
                }
                let Ok(server) = TcpStream::connect((target.0.as_str(), target.1)) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (clone(from), clone(to));
                    state.streams.push(clone(&from));
                    thread::spawn(move || pass_on(from, to));
                }
            }
        });
        Self { address, state }
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection and takes no new one.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.up = false;
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Passes connections on again.
    pub fn restore(&self) {
        lock(&self.state).up = true;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread of a relay panics")
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a descriptor")
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
