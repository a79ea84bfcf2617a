//! The ceiling of recording orders: takes MESSAGES messages from the queue and acknowledges them, 500 at a time, without
//! other work. Prints the rate as a line of JSON.

use std::time::Instant;

use amiquip::{ConsumerMessage, ConsumerOptions};
use peers::{amqp_link, number, setting};

const BATCH: usize = 500;

fn main() {
    let messages = number("MESSAGES");
    let mut link = amqp_link();
    let channel = link.open_channel(None).expect("a channel");
    channel.qos(0, 2 * BATCH as u16, false).expect("a prefetch");
    let consumer = channel
        .basic_consume(setting("RABBITMQ_QUEUE"), ConsumerOptions::default())
        .expect("a consumer");

    let mut start = None;
    let mut taken = 0;
    for message in consumer.receiver() {
        let ConsumerMessage::Delivery(delivery) = message else {
            panic!("the link is lost")
        };
        start.get_or_insert_with(Instant::now);
        taken += 1;
        if taken % BATCH == 0 || taken == messages {
            delivery.ack_multiple(&channel).expect("a link");
        }
        if taken == messages {
            break;
        }
    }
    let rate = taken as f64 / start.expect("a message").elapsed().as_secs_f64();
    println!(r#"{{"count": {taken}, "per_second": {rate}}}"#);
    let _ = link.close();
}
