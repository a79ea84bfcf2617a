//! PostgreSQL as others run it: with TLS, with certificates and passwords that change, with a standby that takes
//! over, and behind a pooler.

use std::net::TcpListener;
use std::sync::Arc;

use common::db::{Database, DatabaseConfig, DatabaseConnection, DatabaseRole};
use common::env::Vars;
use serde_json::json;
use testkit::{
    Authority, Client, Folder, Pairs, Pooler, PrivatePostgres, Program, TestDatabase, eventually,
    with,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_inventory-api");

/// The version of TLS that a connection with these variables has, "none", or why there is no connection.
fn tls_of(vars: &Pairs) -> String {
    let config = DatabaseConfig::from_vars(
        &Vars::from_pairs(vars.clone()),
        DatabaseRole::Owner,
        "INVENTORY_DB_NAME",
    );
    let database = match config {
        Ok(config) => Database::new(&config, &[]),
        Err(error) => return error.to_string(),
    };
    let sql = "SELECT coalesce(version, 'none') FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let mut connection = DatabaseConnection::new(&Arc::clone(&database), |_| Ok(()));
    let found = connection.run(|client, ()| Ok(client.query_one(sql, &[])?.get(0)));
    found.unwrap_or_else(|error| error.to_string())
}

/// The variables of a server that is not there.
fn vars_of_no_server() -> Pairs {
    let pairs = [
        ("POSTGRES_HOST", "127.0.0.1"),
        ("POSTGRES_PORT", "1"),
        ("POSTGRES_USER", "nobody"),
        ("POSTGRES_PASSWORD", "secret"),
        ("INVENTORY_DB_NAME", "nothing"),
    ];
    with(Vec::new(), &pairs)
}

fn start(vars: Pairs, changes: &[(&str, &str)]) -> Program {
    let own = [
        ("LISTEN_ADDRESS", "127.0.0.1"),
        ("INVENTORY_API_PORT", "0"),
        ("HTTP_WORKERS", "2"),
    ];
    Program::start(PROGRAM, with(with(vars, &own), changes))
}

fn post(client: &Client, title: &str) -> u16 {
    let movie = json!({"title": title, "description": "d"});
    client.post("/api/movies", &movie).status
}

/// Waits until the program has said once that it waits for PostgreSQL, and why, and is not ready.
fn refuses(program: &Program, cause: &str) {
    let client = Client::new(program.address());
    eventually(cause, || program.log().contains(cause));
    assert_eq!(client.get("/ready").status, 503);
    let log = program.log();
    assert_eq!(log.matches("waiting for PostgreSQL").count(), 1, "{log}");
}

#[test]
fn each_sslmode_checks_of_the_server_what_libpq_does() {
    let (authority, other) = (Authority::create(), Authority::create());
    let server = PrivatePostgres::create_with_tls(&authority.sign("localhost"), &authority.file());
    let (trusted, foreign) = (authority.file(), other.file());
    let away = |problem| format!("PostgreSQL is unavailable: {problem}");
    let unknown = |host| {
        away(format!(
            "no authority in POSTGRES_SSLROOTCERT has signed the certificate of {host}"
        ))
    };
    let misnamed = away(
        "the certificate of 127.0.0.1 is for another name than POSTGRES_HOST has: \
         DnsName(\"localhost\")"
            .to_owned(),
    );
    let (encrypted, plain) = ("TLSv1.3".to_owned(), "none".to_owned());

    for (host, mode, roots, expected) in [
        ("127.0.0.1", "disable", "", &plain),
        ("127.0.0.1", "prefer", "", &encrypted),
        ("127.0.0.1", "require", "", &encrypted),
        ("127.0.0.1", "require", &trusted, &encrypted),
        ("127.0.0.1", "require", &foreign, &unknown("127.0.0.1")),
        // A server whose certificate is refused is one without TLS, to this mode.
        ("127.0.0.1", "prefer", &foreign, &plain),
        ("127.0.0.1", "verify-ca", &trusted, &encrypted),
        ("127.0.0.1", "verify-ca", &foreign, &unknown("127.0.0.1")),
        ("localhost", "verify-full", &trusted, &encrypted),
        ("localhost", "verify-full", &foreign, &unknown("localhost")),
        ("localhost", "verify-full", "system", &unknown("localhost")),
        ("127.0.0.1", "verify-full", &trusted, &misnamed),
    ] {
        let mut changes = vec![("POSTGRES_HOST", host), ("POSTGRES_SSLMODE", mode)];
        changes.extend((!roots.is_empty()).then_some(("POSTGRES_SSLROOTCERT", roots)));

        let found = tls_of(&with(server.vars(), &changes));

        assert_eq!(&found, expected, "{host} {mode} {roots}");
    }
}

#[test]
fn a_server_that_refuses_a_role_over_tls_gets_it_without_where_tls_is_only_preferred() {
    let authority = Authority::create();
    let server = PrivatePostgres::create_with_tls(&authority.sign("localhost"), &authority.file());
    let unencrypted = [
        ("POSTGRES_USER", "unencrypted"),
        ("POSTGRES_PASSWORD", "unencrypted"),
    ];
    let vars = with(server.vars(), &unencrypted);

    let preferred = tls_of(&with(vars.clone(), &[("POSTGRES_SSLMODE", "prefer")]));
    let required = tls_of(&with(vars, &[("POSTGRES_SSLMODE", "require")]));

    assert_eq!(preferred, "none");
    assert!(
        required.contains("pg_hba.conf rejects connection"),
        "{required}"
    );
}

#[test]
fn a_server_without_tls_is_enough_for_prefer_and_named_by_the_stricter_modes() {
    let authority = Authority::create();
    let database = TestDatabase::create();
    let vars = database.vars("INVENTORY_DB_NAME");
    let roots = authority.file();
    let tls = |mode: &str| {
        let changes = [
            ("POSTGRES_SSLMODE", mode),
            ("POSTGRES_SSLROOTCERT", &*roots),
        ];
        tls_of(&with(vars.clone(), &changes))
    };

    assert_eq!(tls("prefer"), "none");
    for mode in ["require", "verify-ca", "verify-full"] {
        assert_eq!(
            tls(mode),
            "PostgreSQL is unavailable: POSTGRES_SSLMODE asks for TLS, and 127.0.0.1 does not offer it"
        );
    }
}

#[test]
fn an_expired_certificate_is_named_in_one_line_and_a_renewed_one_is_taken() {
    let authority = Authority::create();
    let expired = authority.sign_expired("localhost");
    let server = PrivatePostgres::create_with_tls(&expired, &authority.file());
    let program = start(
        server.vars(),
        &[
            ("POSTGRES_HOST", "localhost"),
            ("POSTGRES_SSLMODE", "verify-full"),
            ("POSTGRES_SSLROOTCERT", &authority.file()),
        ],
    );
    refuses(
        &program,
        "the certificate of localhost, which POSTGRES_SSLMODE has checked, has expired",
    );

    server.renew(&authority.sign("localhost"));

    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);
    assert_eq!(post(&client, "Alien"), 201);
    let encrypted = "SELECT bool_and(ssl)::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                      WHERE usename = 'tests'";
    assert_eq!(server.text(encrypted), "true");
}

#[test]
fn a_certificate_of_the_program_is_shown_to_the_server() {
    let authority = Authority::create();
    let signed = authority.sign("localhost");
    let server = PrivatePostgres::create_with_tls(&signed, &authority.file());
    let (folder, own) = (Folder::create(), authority.sign("certified"));
    let roots = authority.file();
    let certificate = folder.write("client.crt", &own.certificate, 0o644);
    let key = folder.write("client.key", &own.key, 0o600);
    let certified = with(
        server.vars(),
        &[
            ("POSTGRES_HOST", "localhost"),
            ("POSTGRES_USER", "certified"),
            ("POSTGRES_PASSWORD", "certified"),
            ("POSTGRES_SSLMODE", "verify-full"),
            ("POSTGRES_SSLROOTCERT", &roots),
        ],
    );
    let both = [
        ("POSTGRES_SSLCERT", &*certificate),
        ("POSTGRES_SSLKEY", &key),
    ];

    let stranger = Authority::create().sign("certified");
    let foreign_certificate = folder.write("stranger.crt", &stranger.certificate, 0o644);
    let foreign_key = folder.write("stranger.key", &stranger.key, 0o600);
    let foreign = [
        ("POSTGRES_SSLCERT", &*foreign_certificate),
        ("POSTGRES_SSLKEY", &foreign_key),
    ];

    let without = tls_of(&certified);
    let refused = tls_of(&with(certified.clone(), &foreign));
    let shown = tls_of(&with(certified, &both));

    assert!(
        without.contains("requires a valid client certificate"),
        "{without}"
    );
    assert_eq!(
        refused,
        "PostgreSQL is unavailable: localhost refuses TLS with this POSTGRES_SSLCERT, or without one: UnknownCA"
    );
    assert_eq!(shown, "TLSv1.3");
}

#[test]
fn a_password_that_was_changed_on_both_sides_needs_no_restart() {
    let server = PrivatePostgres::create();
    let folder = Folder::create();
    let file = folder.write("password", "tests\n", 0o600);
    let program = start(
        server.vars(),
        &[("POSTGRES_PASSWORD", ""), ("POSTGRES_PASSWORD_FILE", &file)],
    );
    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);

    server.execute("ALTER ROLE tests PASSWORD 'another'");
    folder.write("password", "another\n", 0o600);
    server
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'tests'");

    eventually("it is ready", || client.get("/ready").status == 200);
    eventually("it creates", || post(&client, "Alien") == 201);
}

#[test]
fn a_password_file_that_cannot_be_used_is_named_until_it_can() {
    let database = TestDatabase::create();
    let vars = database.vars("INVENTORY_DB_NAME");
    let password = vars.iter().find(|(key, _)| key == "POSTGRES_PASSWORD");
    let password = password.expect("a password").1.clone();
    for (mode, problem) in [
        (None, "cannot be read: No such file"),
        (Some(0o604), "is open to all users"),
    ] {
        let folder = Folder::create();
        if let Some(mode) = mode {
            folder.write("password", &password, mode);
        }
        let file = folder.path().join("password");
        let file = file.to_str().expect("UTF-8");
        let changes = [("POSTGRES_PASSWORD", ""), ("POSTGRES_PASSWORD_FILE", file)];
        let program = start(vars.clone(), &changes);
        refuses(
            &program,
            &format!("POSTGRES_PASSWORD_FILE names {file}, which {problem}"),
        );

        folder.write("password", &password, 0o640);

        let client = Client::new(program.address());
        eventually("it is ready", || client.get("/ready").status == 200);
        assert!(!program.log().contains(&password));
    }
}

#[test]
fn a_malformed_setting_of_the_server_ends_the_program_before_it_listens() {
    let authority = Authority::create();
    let (folder, signed) = (Folder::create(), authority.sign("client"));
    let another = authority.sign("another").key;
    let roots = authority.file();
    let certificate = folder.write("client.crt", &signed.certificate, 0o644);
    let key = folder.write("client.key", &signed.key, 0o600);
    let open_key = folder.write("open.key", &signed.key, 0o644);
    let another = folder.write("another.key", &another, 0o600);
    let vars = vars_of_no_server();
    let mode = ("POSTGRES_SSLMODE", "verify-full");
    let root = ("POSTGRES_SSLROOTCERT", &*roots);
    let cert = ("POSTGRES_SSLCERT", &*certificate);

    for (changes, expected) in [
        (
            vec![("POSTGRES_SSLMODE", "secret")],
            "POSTGRES_SSLMODE is malformed: it must be disable, prefer",
        ),
        (
            vec![("POSTGRES_SSLMODE", "")],
            "POSTGRES_SSLMODE is set and empty",
        ),
        (
            vec![mode],
            "POSTGRES_SSLROOTCERT is missing: POSTGRES_SSLMODE checks",
        ),
        (
            vec![mode, ("POSTGRES_SSLROOTCERT", "/nowhere")],
            "POSTGRES_SSLROOTCERT names /nowhere, which cannot",
        ),
        (
            vec![mode, ("POSTGRES_SSLROOTCERT", &key)],
            "POSTGRES_SSLROOTCERT names ",
        ),
        (
            vec![root],
            "POSTGRES_SSLROOTCERT is set, and POSTGRES_SSLMODE does not turn TLS on",
        ),
        (
            vec![
                ("POSTGRES_SSLMODE", "require"),
                ("POSTGRES_SSLROOTCERT", "system"),
            ],
            "POSTGRES_SSLMODE must be verify-full",
        ),
        (
            vec![mode, root, cert],
            "POSTGRES_SSLKEY is missing: POSTGRES_SSLCERT is set",
        ),
        (
            vec![mode, root, ("POSTGRES_SSLKEY", &*key)],
            "POSTGRES_SSLCERT is missing: POSTGRES_SSLKEY is set",
        ),
        (
            vec![mode, root, cert, ("POSTGRES_SSLKEY", &*open_key)],
            "POSTGRES_SSLKEY names ",
        ),
        (
            vec![mode, root, cert, ("POSTGRES_SSLKEY", &*another)],
            "POSTGRES_SSLKEY names ",
        ),
        (
            vec![mode, root, cert, ("POSTGRES_SSLKEY", &*certificate)],
            "POSTGRES_SSLKEY names ",
        ),
        (
            vec![("POSTGRES_HOST", "a,,b")],
            "POSTGRES_HOST is malformed: it must be a host",
        ),
        (
            vec![("POSTGRES_HOST", "secret:secret")],
            "POSTGRES_HOST is malformed: it must be a host",
        ),
        (
            vec![("POSTGRES_PASSWORD_FILE", "/nowhere")],
            "POSTGRES_PASSWORD_FILE and POSTGRES_PASSWORD are both set",
        ),
    ] {
        let (status, log) = start(vars.clone(), &changes).wait();

        assert_eq!(status.code(), Some(2), "{log}");
        assert!(
            log.starts_with(&format!("inventory-api: {expected}")),
            "{log}"
        );
        assert!(
            !log.contains("secret") && !log.contains("listening"),
            "{log}"
        );
    }
}

#[test]
fn a_standby_alone_is_named_and_used_once_it_is_promoted() {
    let primary = PrivatePostgres::create();
    let standby = primary.standby();
    let program = start(standby.vars(), &[]);
    refuses(
        &program,
        "POSTGRES_HOST names a standby, which cannot write",
    );

    standby.execute("SELECT pg_promote()");

    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);
    eventually("it creates", || post(&client, "Alien") == 201);
}

#[test]
fn when_the_primary_dies_and_a_standby_is_promoted_no_acknowledged_movie_is_lost() {
    let mut primary = PrivatePostgres::create();
    let standby = primary.standby();
    primary.commit_on_standby();
    // The standby first, so that the writable one has to be found from the start.
    let hosts = format!("{},{}", standby.address(), primary.address());
    let program = start(primary.vars(), &[("POSTGRES_HOST", &hosts)]);
    let client = Client::new(program.address());
    let mut acknowledged = Vec::new();
    let create = |title: String, acknowledged: &mut Vec<String>| {
        let created = post(&client, &title) == 201;
        acknowledged.extend(created.then_some(title));
        created
    };
    eventually("it creates", || {
        create("before".to_owned(), &mut acknowledged)
    });
    for number in 0..20 {
        create(format!("before {number}"), &mut acknowledged);
    }

    primary.kill();
    for number in 0..5 {
        create(format!("between {number}"), &mut acknowledged);
    }
    assert_eq!(client.get("/ready").status, 503);
    standby.execute("SELECT pg_promote()");

    let mut number = 0;
    eventually("it creates again", || {
        number += 1;
        create(format!("after {number}"), &mut acknowledged)
    });
    assert_eq!(client.get("/ready").status, 200);
    let movies = client.get("/api/movies").json;
    let movies = movies.as_array().expect("a list");
    let recorded: Vec<_> = movies
        .iter()
        .filter_map(|movie| movie["title"].as_str())
        .collect();
    assert!(acknowledged.len() > 20, "{acknowledged:?}");
    for title in &acknowledged {
        assert!(recorded.contains(&title.as_str()), "{title}");
    }
}

#[test]
fn hosts_of_which_none_can_write_are_all_named_with_their_reasons() {
    let primary = PrivatePostgres::create();
    let standby = primary.standby();
    let hosts = format!("127.0.0.1:1,{}", standby.address());

    let program = start(standby.vars(), &[("POSTGRES_HOST", &hosts)]);

    let address = standby.address();
    refuses(
        &program,
        &format!(
            "POSTGRES_HOST 127.0.0.1:1: error connecting to server: Connection refused (os error 111); \
             POSTGRES_HOST {address}: it is a standby, which cannot write"
        ),
    );
}

#[test]
fn a_host_that_accepts_connections_and_never_answers_keeps_no_program_from_the_others() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = listener.local_addr().expect("an address");
    let server = PrivatePostgres::create();
    let hosts = format!("{silent},{}", server.address());

    let program = start(server.vars(), &[("POSTGRES_HOST", &hosts)]);
    let client = Client::new(program.address());
    eventually("it is ready", || client.get("/ready").status == 200);
    assert_eq!(post(&client, "Alien"), 201);
    // The sessions that are opened anew pass the silent host over.
    server
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'tests'");
    eventually("movies are created again", || {
        post(&client, "Aliens") == 201
    });
}

#[test]
fn a_program_whose_only_server_never_answers_is_not_ready_and_ends_with_0() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener
        .local_addr()
        .expect("an address")
        .port()
        .to_string();

    let program = start(vars_of_no_server(), &[("POSTGRES_PORT", &port)]);

    refuses(&program, "it accepts connections and does not answer");
    program.signal("TERM");
    let (status, log) = program.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn behind_a_pooler_that_shares_sessions_one_after_another_all_works() {
    let (database, pooler) = (TestDatabase::create(), Pooler::start("session"));
    let port = pooler.address().port().to_string();
    let program = start(
        database.vars("INVENTORY_DB_NAME"),
        &[("POSTGRES_PORT", &port)],
    );
    let client = Client::new(program.address());

    eventually("it is ready", || client.get("/ready").status == 200);

    assert_eq!(post(&client, "Alien"), 201);
    assert_eq!(
        client.get("/api/movies?title=alien").json[0]["title"],
        "Alien"
    );
    assert_eq!(database.count("SELECT count(*) FROM movies"), 1);
}

#[test]
fn a_pooler_that_shares_sessions_between_statements_and_knows_none_is_named_at_the_start() {
    let (database, pooler) = (TestDatabase::create(), Pooler::start("transaction"));
    let port = pooler.address().port().to_string();

    let program = start(
        database.vars("INVENTORY_DB_NAME"),
        &[("POSTGRES_PORT", &port)],
    );

    let cause = "behind a pooler in transaction mode this takes pgbouncer 1.21 or later, with \
                 max_prepared_statements; otherwise set pool_mode = session";
    eventually(cause, || program.log().contains(cause));
    let log = program.log();
    let line = log
        .lines()
        .find(|line| line.contains(cause))
        .expect("a line");
    assert!(line.contains("level=error"), "{line}");
    assert!(line.contains("prepared statements do not last"), "{line}");
}
