//! The documents that the gateway serves.

mod alone;

use alone::SETTINGS;
use testkit::{Client, Program};

/// A gateway with one key, of which only the hash exists.
fn guarded_gateway() -> (Program, Client) {
    let file = std::env::temp_dir().join(format!("crud-master-keys-{}", uuid::Uuid::new_v4()));
    let key = format!("somebody:{}:admin\n", "0".repeat(64));
    std::fs::write(&file, key).expect("a file for keys");
    let path = file.display().to_string();
    let program = Program::start(
        env!("CARGO_BIN_EXE_api-gateway"),
        SETTINGS
            .into_iter()
            .chain([("API_KEYS_FILE", path.as_str())]),
    );
    let client = Client::new(program.address());
    // The gateway listens, so it has read the keys.
    std::fs::remove_file(&file).expect("the file for keys");
    (program, client)
}

#[test]
fn the_description_is_served_to_whoever_asks_with_a_tag() {
    let (_program, client) = guarded_gateway();

    let reply = client.get("/openapi.yaml");

    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, "application/yaml")
    );
    assert_eq!(reply.text, include_str!("../../docs/openapi.yaml"));
    let headers = [("if-none-match", reply.header("etag"))];
    let again = client.send("GET", "/openapi.yaml", &headers, None);
    assert_eq!((again.status, again.text.as_str()), (304, ""));
}

#[test]
fn the_description_has_the_version_of_the_gateway() {
    let (_program, client) = guarded_gateway();

    let reply = client.get("/openapi.yaml");

    let version = concat!("\n  version: ", env!("CARGO_PKG_VERSION"), "\n");
    assert!(reply.text.contains(version), "{version}");
}

#[test]
fn the_description_can_only_be_read() {
    let (_program, client) = guarded_gateway();
    let ask = |method: &str| client.send(method, "/openapi.yaml", &[], None);

    let head = ask("HEAD");
    let options = ask("OPTIONS");
    let delete = ask("DELETE");

    assert_eq!((head.status, head.text.as_str()), (200, ""));
    for (reply, status) in [(options, 204), (delete, 405)] {
        assert_eq!(
            (reply.status, reply.header("allow")),
            (status, "GET, HEAD, OPTIONS")
        );
    }
}
