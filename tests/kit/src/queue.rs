//! Queues of RabbitMQ for one test.

use std::net::SocketAddr;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, Get, Publish, QueueDeclareOptions,
    QueueDeleteOptions,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::amqp::{AmqpConnection, Purpose, QueueConfig, QueueType};
use common::env::Vars;
use serde_json::Value;

use crate::{Client, Relay, Reply, SETTINGS, unique_name};

/// A queue of orders, which is deleted after its test. The first program that uses it declares it, as in production.
pub struct TestQueue {
    broker: SocketAddr,
    password: String,
    /// Whether connections are encrypted.
    encrypted: bool,
    config: QueueConfig,
}

/// A message from a queue.
#[derive(Debug, Clone)]
pub struct QueuedMessage {
    /// The body.
    pub body: Vec<u8>,
    /// The properties.
    pub properties: AmqpProperties,
}

impl TestQueue {
    /// Chooses a name.
    ///
    /// # Panics
    /// If `TEST_ENV_FILE` is not complete.
    #[must_use]
    pub fn create() -> Self {
        Self::create_of(QueueType::Classic)
    }

    /// Chooses a name for a queue of this type.
    ///
    /// # Panics
    /// If `TEST_ENV_FILE` is not complete.
    #[must_use]
    pub fn create_of(queue_type: QueueType) -> Self {
        let text = |key| SETTINGS.text(key).expect("TEST_ENV_FILE is complete");
        let host = text("RABBITMQ_HOST").parse().expect("an IP address");
        let port = SETTINGS.port("RABBITMQ_PORT");
        let broker = SocketAddr::new(host, port.expect("TEST_ENV_FILE is complete"));
        let config = QueueConfig {
            brokers: broker.into(),
            user: text("RABBITMQ_USER"),
            password: text("RABBITMQ_PASSWORD").into(),
            queue: unique_name("test"),
            queue_type,
        };
        Self {
            broker,
            password: text("RABBITMQ_PASSWORD"),
            encrypted: false,
            config,
        }
    }

    /// Chooses a name for a queue that is used over TLS.
    ///
    /// # Panics
    /// When `TEST_ENV_FILE` is not complete.
    #[must_use]
    pub fn create_over_tls() -> Self {
        let mut queue = Self::create();
        queue.encrypted = true;
        let vars = Vars::from_pairs(queue.vars());
        queue.config = QueueConfig::from_vars(&vars, Purpose::Publish).expect("settings of TLS");
        queue
    }

    /// A file that was made for TLS with the broker: `ca.pem`, `client.pem`, `client.key`.
    ///
    /// # Panics
    /// When `TEST_ENV_FILE` is not complete.
    #[must_use]
    pub fn tls_file(name: &str) -> String {
        let folder = SETTINGS.text("RABBITMQ_TLS_FOLDER");
        format!("{}/{name}", folder.expect("TEST_ENV_FILE is complete"))
    }

    /// A relay in front of the broker, up from the start.
    #[must_use]
    pub fn relay_up(&self) -> Relay {
        Relay::up(&self.broker.ip().to_string(), self.broker.port())
    }

    /// A relay in front of the broker, down from the start.
    #[must_use]
    pub fn relay_down(&self) -> Relay {
        Relay::down(&self.broker.ip().to_string(), self.broker.port())
    }

    /// A relay in front of the broker that changes the bytes of clients ([`Relay::changing`]).
    #[must_use]
    pub fn relay_changing(&self, change: fn(&mut [u8])) -> Relay {
        Relay::changing(&self.broker.ip().to_string(), self.broker.port(), change)
    }

    /// The settings for the tested service.
    #[must_use]
    pub fn config(&self) -> QueueConfig {
        self.config.clone()
    }

    /// The settings as variables, for a program that is tested as a process.
    ///
    /// # Panics
    /// When `TEST_ENV_FILE` is not complete.
    #[must_use]
    pub fn vars(&self) -> Vec<(String, String)> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let plain = [
            pair("RABBITMQ_HOST", &self.broker.ip().to_string()),
            pair("RABBITMQ_PORT", &self.broker.port().to_string()),
        ];
        let over_tls = || {
            let port = SETTINGS.text("RABBITMQ_TLS_PORT");
            [
                pair("RABBITMQ_HOST", "localhost"),
                pair("RABBITMQ_PORT", &port.expect("TEST_ENV_FILE is complete")),
                pair("RABBITMQ_TLS", "true"),
                pair("RABBITMQ_CACERTFILE", &Self::tls_file("ca.pem")),
            ]
        };
        let mut vars = vec![
            pair("RABBITMQ_USER", &self.config.user),
            pair("RABBITMQ_PASSWORD", &self.password),
            pair("RABBITMQ_CONSUMER_USER", &self.config.user),
            pair("RABBITMQ_CONSUMER_PASSWORD", &self.password),
            pair("RABBITMQ_QUEUE", &self.config.queue),
            pair("BILLING_QUEUE_TYPE", self.config.queue_type.name()),
        ];
        if self.encrypted {
            vars.extend(over_tls());
        } else {
            vars.extend(plain);
        }
        vars
    }

    /// The name of the queue of orders.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.queue
    }

    /// The queue in which older versions kept dead letters.
    #[must_use]
    pub fn old_dead_queue(&self) -> Self {
        let mut config = self.config();
        config.queue = config.dead_queue();
        Self {
            broker: self.broker,
            password: self.password.clone(),
            encrypted: self.encrypted,
            config,
        }
    }

    /// Publishes a message to the queue of orders, and waits for the confirm.
    ///
    /// # Panics
    /// If the broker does not accept it.
    pub fn publish(&self, body: &[u8], properties: AmqpProperties) {
        self.publish_all(&[(body.to_vec(), properties)]);
    }

    /// Publishes many messages, and waits for their confirms.
    ///
    /// # Panics
    /// If the broker does not accept them.
    pub fn publish_all(&self, messages: &[(Vec<u8>, AmqpProperties)]) {
        let mut connection = self.connection();
        let confirm_channel = connection
            .open_confirm_channel(self.name())
            .expect("a channel");
        for (body, properties) in messages {
            let publish = Publish {
                body,
                routing_key: self.name().to_owned(),
                mandatory: true,
                immediate: false,
                properties: properties.clone(),
            };
            confirm_channel
                .channel
                .basic_publish("", publish)
                .expect("a publish");
        }
        let mut confirmed = 0;
        while confirmed < messages.len() as u64 {
            match confirm_channel.confirms.recv().expect("a confirm") {
                Confirm::Ack(ack) => confirmed = confirmed.max(ack.delivery_tag),
                Confirm::Nack(nack) => panic!("the broker refused {nack:?}"),
            }
        }
    }

    /// Takes the next message from the queue of orders.
    #[must_use]
    pub fn take(&self) -> Option<QueuedMessage> {
        self.on_channel(|channel| Some(message(channel.basic_get(self.name(), true).ok()??)))
    }

    /// Takes every message from the queue of orders.
    #[must_use]
    pub fn take_all(&self) -> Vec<QueuedMessage> {
        self.on_channel(|channel| {
            let next = || Some(message(channel.basic_get(self.name(), true).ok()??));
            std::iter::from_fn(next).collect()
        })
    }

    /// The messages that wait in the queue of orders, and its consumers; None if there is no such queue.
    #[must_use]
    pub fn counts(&self) -> Option<(u32, u32)> {
        self.on_channel(|channel| {
            let queue = channel.queue_declare_passive(self.name()).ok()?;
            Some((
                queue.declared_message_count()?,
                queue.declared_consumer_count()?,
            ))
        })
    }

    /// Makes the queue of orders before another program does, durable and with these arguments.
    ///
    /// # Panics
    /// If the broker refuses it.
    pub fn declare_with(&self, arguments: &[(&str, AmqpValue)]) {
        let arguments = arguments.iter().cloned();
        let options = QueueDeclareOptions {
            durable: true,
            arguments: arguments
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            ..QueueDeclareOptions::default()
        };
        self.on_channel(|channel| {
            let declared = channel.queue_declare(self.name(), options);
            declared.expect("a queue that is not there yet");
        });
    }

    /// A user of the broker who can publish, and neither read nor configure.
    #[must_use]
    pub fn publisher(&self) -> QueueConfig {
        self.user_who_may("^$", "^amq\\\\.default$", "^$")
    }

    /// A user of the broker who can make and read the queue of orders, read the old queue of dead letters, and
    /// publish nothing.
    #[must_use]
    pub fn consumer(&self) -> QueueConfig {
        let queue = self.name();
        self.user_who_may(
            &format!("^{queue}$"),
            "^$",
            &format!("^{queue}(\\\\.dead)?$"),
        )
    }

    /// Makes a user of the broker with these patterns, which are written into JSON. The user is not deleted: its name is
    /// unique, and the broker ends with the tests.
    fn user_who_may(&self, configure: &str, write: &str, read: &str) -> QueueConfig {
        let user = unique_name("user");
        self.manage(
            &format!("/api/users/{user}"),
            &format!(r#"{{"password":"{user}","tags":""}}"#),
        );
        self.manage(
            &format!("/api/permissions/%2F/{user}"),
            &format!(r#"{{"configure":"{configure}","write":"{write}","read":"{read}"}}"#),
        );
        QueueConfig {
            password: user.as_str().into(),
            user,
            ..self.config()
        }
    }

    /// Makes a virtual host, where the user of [`TestQueue::vars`] may do everything.
    #[must_use]
    pub fn create_virtual_host(&self) -> String {
        let name = unique_name("vhost");
        self.manage(&format!("/api/vhosts/{name}"), "{}");
        self.manage(
            &format!("/api/permissions/{name}/{}", self.config.user),
            r#"{"configure":".*","write":".*","read":".*"}"#,
        );
        name
    }

    /// The connections of a user, as the broker sees them, once it has statistics of them.
    #[must_use]
    pub fn connections_of(&self, user: &str) -> Vec<Value> {
        let reply = self.ask("GET", "/api/connections", None);
        let all = reply.json.as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|one| one["user"] == user).collect()
    }

    fn manage(&self, path: &str, body: &str) {
        let reply = self.ask("PUT", path, Some(body));
        assert!((200..300).contains(&reply.status), "{path}: {}", reply.text);
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> Reply {
        let port = SETTINGS.port("RABBITMQ_MANAGEMENT_PORT");
        let port = port.expect("TEST_ENV_FILE is complete");
        let who = format!("{}:{}", self.config.user, self.password);
        let basic = format!("Basic {}", BASE64_STANDARD.encode(who));
        let headers = [
            ("authorization", basic.as_str()),
            ("content-type", "application/json"),
        ];
        let client = Client::new(SocketAddr::new(self.broker.ip(), port));
        client.send(method, path, &headers, body)
    }

    /// Deletes the queue of orders with its messages.
    pub fn delete(&self) {
        self.delete_queue(self.name());
    }

    /// Runs a function on a channel of its own.
    ///
    /// # Panics
    /// If the test server cannot be reached.
    pub fn on_channel<T>(&self, work: impl FnOnce(&Channel) -> T) -> T {
        let mut connection = self.connection();
        let channel = connection.open_channel().expect("a channel");
        work(&channel)
    }

    fn delete_queue(&self, queue: &str) {
        self.on_channel(|channel| {
            let _ = channel.queue_delete(queue, QueueDeleteOptions::default());
        });
    }

    fn connection(&self) -> AmqpConnection {
        AmqpConnection::open(&self.config, "tests").expect("the RabbitMQ that TEST_ENV_FILE names")
    }
}

fn message(get: Get) -> QueuedMessage {
    QueuedMessage {
        body: get.delivery.body,
        properties: get.delivery.properties,
    }
}

impl Drop for TestQueue {
    fn drop(&mut self) {
        // A panic while a failed test unwinds would hide the first one.
        if std::thread::panicking() {
            return;
        }
        self.delete_queue(self.name());
    }
}
