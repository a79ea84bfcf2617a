//! Orders on axum and lapin: one channel, each request waits for the confirm of its own message.

use std::time::SystemTime;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use peers::{serve, setting};
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
#[expect(
    dead_code,
    reason = "an order must have them; what they say is not looked at"
)]
struct Order<'a> {
    #[serde(borrow)]
    user_id: &'a RawValue,
    #[serde(borrow)]
    number_of_items: &'a RawValue,
    #[serde(borrow)]
    total_amount: &'a RawValue,
}

#[derive(Clone)]
struct Broker {
    channel: Channel,
    queue: String,
}

async fn place(State(broker): State<Broker>, body: Bytes) -> Response {
    if serde_json::from_slice::<Order>(&body).is_err() {
        return StatusCode::BAD_REQUEST.into_response();
    }
    let message_id = uuid::Uuid::now_v7().to_string();
    match publish(&broker, &body, &message_id).await {
        Ok(true) => {
            axum::Json(serde_json::json!({ "message": "Message posted", "message_id": message_id }))
                .into_response()
        }
        Ok(false) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn publish(broker: &Broker, body: &[u8], message_id: &str) -> lapin::Result<bool> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_message_id(message_id.into())
        .with_timestamp(now);
    let options = BasicPublishOptions {
        mandatory: true,
        ..Default::default()
    };
    let confirm = broker
        .channel
        .basic_publish(
            "".into(),
            broker.queue.as_str().into(),
            options,
            body,
            properties,
        )
        .await?
        .await?;
    // The broker returns a message that no queue took with its confirm.
    Ok(confirm.is_ack() && confirm.take_message().is_none())
}

#[tokio::main]
async fn main() {
    let address = format!(
        "amqp://{}:{}@{}:{}/%2f",
        setting("RABBITMQ_USER"),
        setting("RABBITMQ_PASSWORD"),
        setting("RABBITMQ_HOST"),
        setting("RABBITMQ_PORT")
    );
    let connection = Connection::connect(&address, ConnectionProperties::default())
        .await
        .expect("a broker");
    let channel = connection.create_channel().await.expect("a channel");
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await
        .expect("confirms");
    let broker = Broker {
        channel,
        queue: setting("RABBITMQ_QUEUE"),
    };
    serve(
        Router::new()
            .route("/api/billing", post(place))
            .with_state(broker),
    )
    .await;
}
