# shellcheck shell=bash
# A PostgreSQL and a RabbitMQ for tests, in a folder that is removed with them.

# test_servers_start FOLDER FIRST_PORT [SETTING…]: starts both on five ports from FIRST_PORT; the settings are
# PostgreSQL's. The tests read the addresses and passwords from FOLDER/test.env.
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
    rabbitmq_start "$1/rabbitmq" $(($2 + 1)) $(($2 + 2)) $(($2 + 3)) $(($2 + 4))
}

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
SETTINGS
}

# test_servers_remove FOLDER: stops both servers and removes their data.
test_servers_remove() {
    rabbitmq_stop "$1/rabbitmq" KILL
    postgres_stop "$1/postgres" || true
    postgres_remove "$1/postgres"
    rm -rf "$1"
}
