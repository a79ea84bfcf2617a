//! Orders, from the gateway to billing-api.

use amiquip::AmqpValue;
use e2e::{Platform, wait_until_ready};
use serde_json::{Value, json};
use testkit::eventually;

fn order(number_of_items: usize) -> Value {
    json!({ "user_id": "20", "number_of_items": number_of_items, "total_amount": "250.00" })
}

/// The recorded orders by their message ids, with the number of items of each.
fn recorded(orders: &[Value]) -> Vec<(&str, i64)> {
    orders
        .iter()
        .map(|order| {
            let id = order["message_id"].as_str().expect("a message id");
            let items = order["number_of_items"].as_i64().expect("a number");
            (id, items)
        })
        .collect()
}

#[test]
fn an_order_that_was_answered_is_recorded_and_can_be_read() {
    let platform = Platform::start();
    let sent = r#"{"total_amount": 29.9, "user_id": 20, "number_of_items": "99", "note": 1}"#;
    let headers = [("content-type", "application/json")];

    let reply = platform
        .gateway
        .client
        .send("POST", "/api/billing", &headers, Some(sent));

    let orders = platform.wait_for_orders(1);
    let expected = json!({
        "id": 1,
        "message_id": reply.json["message_id"],
        "user_id": "20",
        "number_of_items": 99,
        "total_amount": "29.90",
        "created_at": orders[0]["created_at"],
    });
    assert_eq!((reply.status, &orders), (200, &vec![expected]));
    let read = platform.billing_api.client.get("/api/orders/1");
    assert_eq!((read.status, &read.json), (200, &orders[0]));
    let of_user = platform.billing_api.client.get("/api/orders?user_id=20");
    assert_eq!(of_user.json, json!(orders));
}

#[test]
fn orders_placed_while_nobody_records_them_are_recorded_when_somebody_does() {
    let mut platform = Platform::start_without_consumer();

    let placed: Vec<_> = (1..=20)
        .map(|number| platform.place(&order(number)))
        .collect();

    assert_eq!(platform.recorded(), [Value::Null; 0]);
    platform.start_consumer();
    let orders = platform.wait_for_orders(20);
    let expected: Vec<_> = placed.iter().map(String::as_str).zip(1..).collect();
    assert_eq!(recorded(&orders), expected);
    eventually("the queue is empty", || {
        platform.queue.counts() == Some((0, 1))
    });
}

#[test]
fn orders_placed_while_the_consumer_is_restarted_are_recorded_once_each() {
    let mut platform = Platform::start();
    let mut placed = vec![platform.place(&order(1))];
    let _ = platform.wait_for_orders(1);

    platform.stop_consumer();
    placed.push(platform.place(&order(2)));
    platform.start_consumer();
    placed.push(platform.place(&order(3)));

    let orders = platform.wait_for_orders(3);
    let expected: Vec<_> = placed.iter().map(String::as_str).zip(1..).collect();
    assert_eq!(recorded(&orders), expected);
}

#[test]
fn an_order_sent_twice_with_one_idempotency_key_is_recorded_once() {
    let platform = Platform::start();
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", "key-7"),
    ];
    let body = order(1).to_string();

    for _ in 0..2 {
        let reply = platform
            .gateway
            .client
            .send("POST", "/api/billing", &headers, Some(&body));
        assert_eq!(
            (reply.status, &reply.json["message_id"]),
            (200, &json!("key-7"))
        );
    }

    // A later order shows that both are settled.
    let last = platform.place(&order(2));
    eventually("the last order is recorded", || {
        platform
            .recorded()
            .iter()
            .any(|order| order["message_id"] == last.as_str())
    });
    assert_eq!(recorded(&platform.recorded()), [("key-7", 1), (&last, 2)]);
}

#[test]
fn what_the_gateway_refuses_is_never_recorded() {
    let platform = Platform::start();
    let refused = json!({ "user_id": "20", "number_of_items": 0, "total_amount": "1" });

    let reply = platform.gateway.client.post("/api/billing", &refused);

    assert_eq!(reply.status, 400);
    let placed = platform.place(&order(1));
    assert_eq!(
        recorded(&platform.wait_for_orders(1)),
        [(placed.as_str(), 1)]
    );
}

#[test]
fn a_request_id_goes_with_the_order_to_whoever_takes_it_off_the_queue() {
    let platform = Platform::start_without_consumer();

    let reply = platform.gateway.client.post("/api/billing", &order(1));

    let message = platform.queue.take().expect("a message");
    let headers = message.properties.headers().as_ref().expect("headers");
    let request_id = AmqpValue::LongString(reply.header("x-request-id").to_owned());
    assert_eq!(headers.get("x-request-id"), Some(&request_id));
}

#[test]
fn an_inventory_that_is_gone_does_not_stop_orders_and_is_found_again() {
    let platform = Platform::start();
    let client = &platform.gateway.client;
    platform.relay_to_inventory.cut();

    let movies = client.get("/api/movies");
    let placed = platform.place(&order(1));

    assert_eq!(
        movies.problem(),
        (502, "the inventory cannot be reached; try again")
    );
    assert_eq!(
        recorded(&platform.wait_for_orders(1)),
        [(placed.as_str(), 1)]
    );
    let ready = client.get("/ready");
    let states = json!({ "inventory": "down", "rabbitmq": "up" });
    assert_eq!((ready.status, &ready.json["dependencies"]), (503, &states));
    platform.relay_to_inventory.restore();
    assert_eq!(client.get("/api/movies").text, "[]");
}

#[test]
fn a_broker_that_was_cut_off_is_found_again_and_no_answered_order_is_lost() {
    let platform = Platform::start();
    let first = platform.place(&order(1));
    platform.relay_to_broker.cut();
    eventually("the loss is noticed", || {
        platform.gateway.client.get("/ready").status == 503
    });

    let refused = platform.gateway.client.post("/api/billing", &order(2));

    assert_eq!(
        refused.problem(),
        (503, "the order was not placed; try again")
    );
    platform.relay_to_broker.restore();
    wait_until_ready(&platform.gateway.client);
    let second = platform.place(&order(3));
    let orders = platform.wait_for_orders(2);
    assert_eq!(recorded(&orders), [(first.as_str(), 1), (&second, 3)]);
}
