# shellcheck shell=bash
# A PostgreSQL and a RabbitMQ for tests, in a folder that is removed with them.

# test_servers_start FOLDER FIRST_PORT [SETTING…]: starts both on five ports from FIRST_PORT; the settings are
# PostgreSQL's. The tests read the addresses and passwords from FOLDER/test.env. If TEST_TLS_PORT is set, RabbitMQ
# listens with TLS on that port too.
test_servers_start() {
    local folder=$1 port=$2
    chmod 711 "$folder" # PostgreSQL runs as another user, who must reach its folder
    step 'Start PostgreSQL' test_postgres_start "$folder" "$port" "${@:3}"
    step 'Start RabbitMQ' test_rabbitmq_start "$folder" "$port"
    step 'Make a database and an ordinary role' make_test_database "$folder" "$port"
}

test_postgres_start() {
    postgres_start "$1/postgres" "$2" 'max_connections = 400' "${@:3}"
}

test_rabbitmq_start() {
    local settings=()
    if [[ -n ${TEST_TLS_PORT:-} ]]; then
        [[ -d $1/tls ]] || make_test_certificates "$1/tls"
        settings=(
            "listeners.ssl.loopback = 127.0.0.1:$TEST_TLS_PORT"
            "ssl_options.cacertfile = $1/tls/ca.pem"
            "ssl_options.certfile = $1/tls/server.pem"
            "ssl_options.keyfile = $1/tls/server.key"
            'ssl_options.verify = verify_peer'
            'ssl_options.fail_if_no_peer_cert = false'
        )
    fi
    rabbitmq_start "$1/rabbitmq" $(($2 + 1)) $(($2 + 2)) $(($2 + 3)) $(($2 + 4)) rabbit@localhost "${settings[@]}"
}

# make_test_certificates FOLDER: makes an authority, and two certificates that it has signed: one of the server, for
# the name localhost and no address, and one of a client.
make_test_certificates() (
    umask 077
    mkdir "$1"
    cd "$1" || exit
    new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc)
    openssl req -x509 "${new_key[@]}" -keyout ca.key -out ca.pem -days 2 -subj '/CN=test authority' 2>&1
    for who in server client; do
        openssl req -new "${new_key[@]}" -keyout "$who.key" -out "$who.csr" -subj "/CN=test $who" 2>&1
        openssl x509 -req -in "$who.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out "$who.pem" \
            -extfile <(echo 'subjectAltName = DNS:localhost') 2>&1
    done
)

# make_test_database FOLDER PORT: makes two databases, of which one is not in UTF-8. Each test makes a schema of its own in
# one of them, and lets the role that can only read read there. The extension is made here, since it exists once in a
# database and tests run at the same time.
make_test_database() {
    local folder=$1 port=$2 password reader_password
    password=$(random_secret)
    reader_password=$(random_secret)
    {
        sql_role tests "$password"
        sql_role tests_reader "$reader_password"
        sql_database tests tests
        echo 'GRANT CONNECT ON DATABASE tests TO tests_reader;'
        echo 'CREATE EXTENSION IF NOT EXISTS pg_trgm SCHEMA public;'
        cat <<'SQL'
SELECT 'CREATE DATABASE tests_latin1 OWNER tests TEMPLATE template0 ENCODING ''LATIN1'' '
       'LC_COLLATE ''C'' LC_CTYPE ''C'''
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'tests_latin1') \gexec
SQL
    } | postgres_sql "$(postgres_home "$folder/postgres")" "$port"
    install -m 600 /dev/null "$folder/test.env"
    cat >"$folder/test.env" <<SETTINGS
POSTGRES_HOST=127.0.0.1
POSTGRES_PORT=$port
POSTGRES_USER=tests
POSTGRES_PASSWORD=$password
POSTGRES_READER_USER=tests_reader
POSTGRES_READER_PASSWORD=$reader_password
POSTGRES_DB=tests
RABBITMQ_HOST=127.0.0.1
RABBITMQ_PORT=$((port + 1))
RABBITMQ_MANAGEMENT_PORT=$((port + 2))
RABBITMQ_USER=setup
RABBITMQ_PASSWORD=$(<"$folder/rabbitmq/administrator")
RABBITMQ_TLS_PORT=${TEST_TLS_PORT:-}
RABBITMQ_TLS_FOLDER=$folder/tls
SETTINGS
}

# test_servers_remove FOLDER: stops both servers and removes their data.
test_servers_remove() {
    rabbitmq_stop "$1/rabbitmq" KILL
    postgres_stop "$1/postgres" || true
    postgres_remove "$1/postgres"
    rm -rf "$1"
}
