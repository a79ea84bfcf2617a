//! The socket that clients meet. What is set on the listener before its use is inherited by
//! every connection that it accepts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG: i32 = 1024;

/// How long a client may take no byte of its answer before its connection is given up.
const SEND_LIMIT: Duration = Duration::from_secs(20);

/// When a silent connection is asked whether its client still exists.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_mins(1))
    .with_interval(Duration::from_secs(10));

/// Listens on `address`; port 0 lets the system choose.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restart must not wait for the connections of the process before it.
    socket.set_reuse_address(true)?;
    // Without it an answer in two segments waits 40 ms for the client's delayed acknowledgement.
    socket.set_tcp_nodelay(true)?;
    socket.set_write_timeout(Some(SEND_LIMIT))?;
    socket.set_tcp_user_timeout(Some(SEND_LIMIT))?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
