//! The ceiling of placing orders: persistent messages and their confirms on one channel, without HTTP. At most WINDOW
//! messages wait for their confirm. After SECONDS, or MESSAGES if that is set, the program prints its result as a line of
//! JSON.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, Confirm, Publish};
use peers::{amqp_link, number, setting};

const BODY: &[u8] = br#"{"user_id": "20", "number_of_items": "99", "total_amount": "250"}"#;

fn main() {
    let window = number("WINDOW");
    let most = std::env::var("MESSAGES").map_or(u64::MAX, |_| number("MESSAGES") as u64);
    let time = Duration::from_secs_f64(setting("SECONDS").parse().expect("SECONDS is a number"));
    let queue = setting("RABBITMQ_QUEUE");
    let mut link = amqp_link();
    let channel = link.open_channel(None).expect("a channel");
    let confirms = channel.listen_for_publisher_confirms().expect("confirms");
    channel.enable_publisher_confirms().expect("confirms");

    let run = uuid::Uuid::now_v7();
    let (mut published, mut confirmed) = (0_u64, 0_u64);
    let mut waiting = BTreeMap::new();
    let mut seconds = Vec::new();
    let start = Instant::now();
    while confirmed < published || (start.elapsed() < time && published < most) {
        while waiting.len() < window && start.elapsed() < time && published < most {
            published += 1;
            waiting.insert(published, Instant::now());
            let properties = properties(format!("{run}-{published}"));
            channel
                .basic_publish("", Publish::with_properties(BODY, &queue, properties))
                .expect("a link");
        }
        if waiting.is_empty() {
            break;
        }
        // All confirms that have arrived are handled before the next messages are sent.
        let first = confirms.recv().expect("a confirm");
        for confirm in std::iter::once(first).chain(confirms.try_iter()) {
            let Confirm::Ack(payload) = confirm else {
                panic!("the broker refused a message")
            };
            let later = waiting.split_off(&(payload.delivery_tag + 1));
            let mut settled = std::mem::replace(&mut waiting, later);
            if !payload.multiple {
                let others = settled.split_off(&payload.delivery_tag);
                let mut earlier = std::mem::replace(&mut settled, others);
                waiting.append(&mut earlier);
            }
            confirmed += settled.len() as u64;
            seconds.extend(
                settled
                    .values()
                    .map(|published| published.elapsed().as_secs_f64()),
            );
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    seconds.sort_by(f64::total_cmp);
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share) as usize] * 1000.0;
    let rate = confirmed as f64 / elapsed;
    println!(
        r#"{{"count": {confirmed}, "per_second": {rate}, "p50_ms": {}, "p99_ms": {}}}"#,
        at(0.5),
        at(0.99)
    );
    let _ = link.close();
}

fn properties(message_id: String) -> AmqpProperties {
    AmqpProperties::default()
        .with_content_type("application/json".to_owned())
        .with_delivery_mode(2)
        .with_message_id(message_id)
        .with_timestamp(seconds_since_1970())
}

fn seconds_since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs())
}
