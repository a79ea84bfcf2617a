//! A relay in front of a real server, which can interrupt connections without stopping the server for other
//! tests.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// Forwards connections while it is up; while it is down, it closes each at once.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<RelayShared>,
}

#[derive(Default)]
struct RelayShared {
    state: Mutex<RelayState>,
    thawed: Condvar,
}

#[derive(Default)]
struct RelayState {
    up: bool,
    frozen: bool,
    /// How many pieces wait for the end of the freeze.
    held: usize,
    /// Both ends of the forwarded connections.
    streams: Vec<TcpStream>,
    /// The clients' ends of these connections.
    clients: Vec<TcpStream>,
    /// The address of the server.
    target: Option<(String, u16)>,
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
    /// If there is no free port.
    #[must_use]
    pub fn down(host: &str, port: u16) -> Self {
        Self::start(host, port, |_| {})
    }

    /// A relay, up from the start, that changes the bytes of clients in place: for bytes that a correct client library
    /// does not send.
    #[must_use]
    pub fn changing(host: &str, port: u16, change: fn(&mut [u8])) -> Self {
        let relay = Self::start(host, port, change);
        relay.restore();
        relay
    }

    fn start(host: &str, port: u16, change: fn(&mut [u8])) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let shared = Arc::new(RelayShared::default());
        shared.lock().target = Some((host.to_owned(), port));
        let accepting = Arc::clone(&shared);
        // The thread and those that it starts end with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut state = accepting.lock();
                if !state.up {
                    continue;
                }
                let target = state.target.clone().expect("a relay has a target");
                let Ok(server) = TcpStream::connect(target) else {
                    continue;
                };
                for stream in [&client, &server] {
                    // Otherwise bytes that arrive in two parts would wait 40 ms between them.
                    let _ = stream.set_nodelay(true);
                }
                state.clients.push(clone(&client));
                for (from, to, change) in [(&client, &server, change), (&server, &client, |_| {})] {
                    let (from, to) = (clone(from), clone(to));
                    state.streams.push(clone(&from));
                    let shared = Arc::clone(&accepting);
                    thread::spawn(move || pass_on(&shared, from, to, change));
                }
            }
        });
        Self { address, shared }
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection and accepts no new one.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        state.up = false;
        state.frozen = false;
        self.shared.thawed.notify_all();
        state.clients.clear();
        for stream in state.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Keeps every connection and forwards nothing, as a server that hangs.
    pub fn freeze(&self) {
        self.shared.lock().frozen = true;
    }

    /// Sends these bytes to every connected client, in place of the server and between two pieces of its own.
    pub fn say_to_clients(&self, bytes: &[u8]) {
        let clients = &mut self.shared.lock().clients;
        clients.retain_mut(|client| client.write_all(bytes).is_ok());
    }

    /// Sets another server for further connections.
    pub fn lead_to(&self, address: SocketAddr) {
        self.shared.lock().target = Some((address.ip().to_string(), address.port()));
    }

    /// The relay's own ports with a connection to the server, which sees them as the ports of its clients.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        let state = self.shared.lock();
        let connected = state
            .streams
            .iter()
            .filter(|stream| stream.peer_addr().is_ok());
        let addresses = connected.flat_map(TcpStream::local_addr);
        addresses.map(|address| address.port()).collect()
    }

    /// Whether bytes wait for the end of the freeze.
    #[must_use]
    pub fn holds_something(&self) -> bool {
        self.shared.lock().held > 0
    }

    /// Forwards connections again.
    pub fn restore(&self) {
        let mut state = self.shared.lock();
        state.up = true;
        state.frozen = false;
        self.shared.thawed.notify_all();
    }
}

impl RelayShared {
    fn lock(&self) -> MutexGuard<'_, RelayState> {
        self.state.lock().expect("no thread of a relay panics")
    }

    fn wait_until_thawed(&self) {
        let mut state = self.lock();
        state.held += 1;
        let thawed = self.thawed.wait_while(state, |state| state.frozen);
        thawed.expect("no thread of a relay panics").held -= 1;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

fn clone(stream: &TcpStream) -> TcpStream {
    stream.try_clone().expect("a descriptor")
}

fn pass_on(shared: &RelayShared, mut from: TcpStream, mut to: TcpStream, change: fn(&mut [u8])) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        change(&mut buffer[..read]);
        shared.wait_until_thawed();
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
