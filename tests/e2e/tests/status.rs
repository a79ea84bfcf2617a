//! `/api/status` and recorded orders at the gateway, while the platform works.

use e2e::Platform;
use serde_json::{Value, json};
use testkit::eventually;

fn order() -> Value {
    json!({ "user_id": "20", "number_of_items": 1, "total_amount": "250.00" })
}

fn status(platform: &Platform) -> Value {
    platform.gateway.client.get("/api/status").json
}

#[test]
fn orders_that_nobody_records_are_seen_to_wait_and_to_be_recorded_when_somebody_does() {
    let mut platform = Platform::start();
    eventually("all is well", || status(&platform)["status"] == "ok");

    platform.stop_consumer();
    for _ in 0..3 {
        let _ = platform.place(&order());
    }

    eventually("three orders wait", || {
        let queue = status(&platform)["queue"].clone();
        (&queue["ready"], &queue["consumers"]) == (&json!(3), &json!(0))
    });
    assert_eq!(status(&platform)["status"], "degraded");
    platform.start_consumer();
    eventually("none waits, and all is well", || {
        let all = status(&platform);
        let queue = &all["queue"];
        (&queue["ready"], &queue["consumers"], &all["status"])
            == (&json!(0), &json!(1), &json!("ok"))
    });
    assert_eq!(status(&platform)["gateway"]["orders_posted"], json!(3));
}

#[test]
fn recorded_orders_are_read_through_the_gateway_as_at_billing() {
    let platform = Platform::start();
    let placed: Vec<_> = (0..3).map(|_| platform.place(&order())).collect();
    let recorded = platform.wait_for_orders(3);

    let gateway = &platform.gateway.client;
    let page = gateway.get("/api/orders?order=desc&limit=2");

    assert_eq!(page.json, json!([recorded[2], recorded[1]]));
    assert_eq!(page.json[0]["message_id"], json!(placed[2]));
    let next = format!(
        "</api/orders?order=desc&limit=2&after={}>; rel=\"next\"",
        recorded[1]["id"]
    );
    assert_eq!(page.header("link"), next);
    let one = format!("/api/orders/{}", recorded[0]["id"]);
    assert_eq!(gateway.get(&one).json, recorded[0]);
    assert_eq!(
        gateway.get("/api/orders/0").problem(),
        (404, "there is no order with id 0")
    );
}
