//! What a difference between the arguments of the queue and the settings (reply code 406) means for orders.

/// The effect on orders of the argument that the broker names in its answer.
pub(super) fn effect(said: &str) -> &'static str {
    let argument = said.split('\'').nth(1).unwrap_or_default();
    match argument {
        "durable" => "orders are lost when RabbitMQ restarts",
        "auto_delete" => "the queue is deleted, with its orders, when its last consumer ends",
        "x-expires" => {
            "the queue is deleted, with its orders, when no consumer has used it for that time"
        }
        "x-message-ttl" => "orders that wait longer than that are deleted",
        "x-max-length" | "x-max-length-bytes" | "x-overflow" => {
            "a full queue refuses new orders if x-overflow is reject-publish, and otherwise the \
             oldest orders are deleted"
        }
        "x-delivery-limit" => "an order that was returned to the queue that often is deleted",
        "x-single-active-consumer" => {
            "one consumer records all orders, and another one only after that one has ended"
        }
        "x-dead-letter-exchange" | "x-dead-letter-routing-key" | "x-dead-letter-strategy" => {
            "orders that RabbitMQ deletes from the queue are published elsewhere"
        }
        "x-max-priority" => "orders with a priority are recorded before others",
        "x-queue-type" => {
            "the queue has another type: set BILLING_QUEUE_TYPE to that type, or empty and delete \
             the queue, so that it is declared again"
        }
        _ => "RabbitMQ's manual describes the effect",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effect_of_an_argument_is_found_by_its_name() {
        let said = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'orders' in \
                    vhost '/': received none but current is the value '1' of type 'signedint'";

        assert_eq!(
            effect(said),
            "orders that wait longer than that are deleted"
        );
        assert_eq!(
            effect("something"),
            "RabbitMQ's manual describes the effect"
        );
    }
}
