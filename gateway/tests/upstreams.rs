//! Several inventories behind one gateway.

use std::net::SocketAddr;

use common::amqp::{QueueConfig, QueueType};
use common::http::HttpConfig;
use gateway::{AccessConfig, Gateway, UpstreamLimits};
use testkit::{Relay, ScriptedUpstream, Service, eventually};

/// An inventory that answers every request with a name.
fn inventory(name: &str) -> ScriptedUpstream {
    ScriptedUpstream::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    ))
}

/// A gateway before these inventories, without a broker.
fn gateway(inventories: Vec<SocketAddr>) -> Service<Gateway> {
    let config = gateway::Config {
        http: HttpConfig::on_loopback(2),
        inventories,
        billing_api: ([127, 0, 0, 1], 1).into(),
        billing_consumer: ([127, 0, 0, 1], 1).into(),
        expose_orders: false,
        limits: UpstreamLimits::default(),
        queue: QueueConfig {
            brokers: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            user: "nobody".to_owned(),
            password: "nothing".into(),
            queue: "none".to_owned(),
            queue_type: QueueType::default(),
        },
        access: AccessConfig::default(),
    };
    Service::start(
        |shutdown| gateway::start(&config, shutdown),
        Gateway::address,
    )
}

fn answers(gateway: &Service<Gateway>, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| gateway.client.get("/api/movies").text)
        .collect()
}

#[test]
fn inventories_are_used_in_turn() {
    let (first, second) = (inventory("first"), inventory("second"));
    let gateway = gateway(vec![first.address(), second.address()]);

    let answers = answers(&gateway, 4);

    assert_eq!(answers, ["first", "second", "first", "second"]);
}

#[test]
fn one_that_is_gone_costs_nobody_an_answer_and_is_used_again_when_it_is_ready() {
    let (first, second) = (inventory("first"), inventory("second"));
    let address = second.address();
    let relay = Relay::down(&address.ip().to_string(), address.port());
    let gateway = gateway(vec![first.address(), relay.address()]);

    assert_eq!(answers(&gateway, 4), ["first"; 4]);

    relay.restore();
    eventually("the second is used again", || {
        answers(&gateway, 2).contains(&"second".to_owned())
    });
}

#[test]
fn where_nobody_listens_even_an_order_to_create_goes_to_the_neighbour() {
    let first = inventory("first");
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let gateway = gateway(vec![nobody, first.address()]);

    let reply = gateway.client.send("POST", "/api/movies", &[], Some("{}"));

    assert_eq!((reply.status, reply.text.as_str()), (200, "first"));
}

#[test]
fn where_all_are_gone_the_answer_is_502() {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let gateway = gateway(vec![nobody, ([127, 0, 0, 1], 2).into()]);

    for _ in 0..3 {
        assert_eq!(gateway.client.get("/api/movies").status, 502);
    }
    assert_eq!(
        gateway.client.get("/ready").json["dependencies"]["inventory"],
        "down"
    );
}
