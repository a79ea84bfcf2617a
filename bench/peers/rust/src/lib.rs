//! The code that the peers share: settings from the environment, and a listener.

use std::env;
use std::net::TcpStream;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

/// A variable that must be set.
pub fn setting(key: &str) -> String {
    env::var(key).unwrap_or_else(|_| panic!("{key} is not set"))
}

/// A variable that must be a number.
pub fn number(key: &str) -> usize {
    setting(key)
        .parse()
        .unwrap_or_else(|_| panic!("{key} must be a number"))
}

/// Serves on PORT of loopback.
pub async fn serve(router: Router) {
    let address = format!("127.0.0.1:{}", setting("PORT"));
    let listener = TcpListener::bind(address).await.expect("PORT is free");
    let listener = listener.tap_io(|socket| socket.set_nodelay(true).expect("an option"));
    axum::serve(listener, router).await.expect("a listener");
}

/// A connection of amiquip with `TCP_NODELAY`, without which every message waits 40 ms.
pub fn amqp_link() -> amiquip::Connection {
    let address = format!("{}:{}", setting("RABBITMQ_HOST"), setting("RABBITMQ_PORT"));
    let socket = TcpStream::connect(address).expect("a broker");
    socket.set_nodelay(true).expect("an option");
    let socket = mio::net::TcpStream::from_stream(socket).expect("a socket");
    let auth = amiquip::Auth::Plain {
        username: setting("RABBITMQ_USER"),
        password: setting("RABBITMQ_PASSWORD"),
    };
    amiquip::Connection::insecure_open_stream(
        socket,
        amiquip::ConnectionOptions::default().auth(auth),
        amiquip::ConnectionTuning::default().mem_channel_bound(8192),
    )
    .expect("a link")
}
