//! A gateway without anything behind it.

/// Nobody is behind the gateway whose settings these are.
pub(crate) const SETTINGS: [(&str, &str); 12] = [
    ("LISTEN_ADDRESS", "127.0.0.1"),
    ("API_GATEWAY_PORT", "0"),
    ("INVENTORY_VM_IP", "127.0.0.1"),
    ("INVENTORY_API_PORT", "1"),
    ("BILLING_VM_IP", "127.0.0.1"),
    ("BILLING_API_PORT", "1"),
    ("BILLING_CONSUMER_PORT", "1"),
    ("RABBITMQ_HOST", "127.0.0.1"),
    ("RABBITMQ_PORT", "1"),
    ("RABBITMQ_USER", "nobody"),
    ("RABBITMQ_PASSWORD", "nothing"),
    ("RABBITMQ_QUEUE", "none"),
];
