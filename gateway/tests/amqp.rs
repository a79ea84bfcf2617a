//! Connections to a real RabbitMQ: texts that are not UTF-8 in its methods, and queues that another program has made.

use amiquip::{AmqpProperties, AmqpValue, ConsumerMessage, ConsumerOptions, FieldTable, Publish};
use common::amqp::{AmqpConnection, QueueConfig};
use testkit::TestQueue;

/// Changes the first byte of each `poison` to one that UTF-8 does not have.
fn poison(bytes: &mut [u8]) {
    while let Some(place) = bytes.windows(6).position(|window| window == b"poison") {
        bytes[place] = 0xff;
    }
}

/// A message that RabbitMQ routes to no queue by its routing key, and to `queue` by its `CC` header.
fn poisoned(routing_key: &str, queue: Option<&str>) -> Publish<'static> {
    let mut headers = FieldTable::new();
    if let Some(queue) = queue {
        let copies = AmqpValue::FieldArray(vec![AmqpValue::LongString(queue.to_owned())]);
        headers.insert("CC".to_owned(), copies);
    }
    Publish {
        body: b"{}",
        routing_key: routing_key.to_owned(),
        mandatory: true,
        immediate: false,
        properties: AmqpProperties::default().with_headers(headers),
    }
}

#[test]
fn a_routing_key_that_is_not_utf_8_ends_no_connection_and_can_be_told() {
    let queue = TestQueue::create();
    let relay = queue.relay_changing(poison);
    let config = QueueConfig {
        brokers: relay.address().into(),
        ..queue.config()
    };
    let mut connection = AmqpConnection::open(&config, "tests").expect("a connection");
    let confirming = connection
        .open_confirm_channel(queue.name())
        .expect("a channel");
    let publish = |publish| confirming.channel.basic_publish("", publish);

    publish(poisoned("poison-1", Some(queue.name()))).expect("a publish");
    publish(poisoned("poison-2", Some(queue.name()))).expect("a publish");
    publish(poisoned("poison-3", None)).expect("a publish");

    let returned = confirming.returns.recv().expect("the connection lasts");
    assert_eq!(returned.routing_key, "\0oison-3");
    queue.on_channel(|channel| {
        let get = channel.basic_get(queue.name(), true);
        let get = get.expect("the connection lasts").expect("a message");
        assert_eq!(get.delivery.routing_key, "\0oison-1");
        let consumer = channel.basic_consume(queue.name(), ConsumerOptions::default());
        let consumer = consumer.expect("a consumer");
        match consumer.receiver().recv() {
            Ok(ConsumerMessage::Delivery(delivery)) => {
                assert_eq!(delivery.routing_key, "\0oison-2");
                consumer.ack(delivery).expect("an acknowledgement");
            }
            ended => panic!("{ended:?}"),
        }
    });
    assert!(queue.take().is_none());
}
