//! The cost of the simplest server: a thread for each connection, and a minimal answer.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use peers::setting;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}";

fn main() {
    let address = format!("127.0.0.1:{}", setting("PORT"));
    let listener = TcpListener::bind(address).expect("PORT is free");
    for socket in listener.incoming().flatten() {
        thread::spawn(move || serve(socket));
    }
}

/// Answers requests without bodies, one after the other, until the client closes the connection.
fn serve(mut socket: TcpStream) {
    let _ = socket.set_nodelay(true);
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count) = socket.read(&mut buffer) {
        if count == 0 {
            return;
        }
        head.extend_from_slice(&buffer[..count]);
        while let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
            head.drain(..end + 4);
            if socket.write_all(ANSWER).is_err() || text.contains("connection: close") {
                return;
            }
        }
    }
}
