//! What a difference between the arguments of the queue and the settings (reply code 406) means for orders.

/// What the argument that the broker names means for orders.
pub(super) fn effect(said: &str) -> &'static str {
    let argument = said.split('\'').nth(1).unwrap_or_default();
    match argument {
        "durable" => "orders are lost when RabbitMQ restarts",
        "auto_delete" => "the queue is deleted, with its orders, when its last consumer leaves",
        "x-expires" => {
            "the queue is deleted, with its orders, when no consumer uses it for so long"
        }
        "x-message-ttl" => "orders that wait for longer are deleted",
        "x-max-length" | "x-max-length-bytes" | "x-overflow" => {
            "a full queue refuses new orders if x-overflow is reject-publish, and otherwise the \
             oldest orders are deleted"
        }
        "x-delivery-limit" => "an order that was given back so often is deleted",
        "x-single-active-consumer" => {
            "one consumer records all orders, and another only when that one is gone"
        }
        "x-dead-letter-exchange" | "x-dead-letter-routing-key" | "x-dead-letter-strategy" => {
            "orders that RabbitMQ deletes from the queue are published elsewhere"
        }
        "x-max-priority" => "orders with a priority are recorded before others",
        "x-queue-type" => {
            "orders are kept as that type keeps them: set BILLING_QUEUE_TYPE to it, or empty and \
             delete the queue, and it is made anew"
        }
        _ => "see what RabbitMQ's manual says of it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effect_of_an_argument_is_found_by_its_name() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'orders' in \
                    vhost '/': received none but current is the value '1' of type 'signedint'";

        assert_eq!(effect(said), "orders that wait for longer are deleted");
        assert_eq!(effect("something"), "see what RabbitMQ's manual says of it");
    }
}
