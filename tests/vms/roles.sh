#!/usr/bin/env bash
# Tests the roles of PostgreSQL and the users of RabbitMQ that setup/ makes, on servers for tests. The role of a service
# tries to become superuser: it owns its database, and no operation of setup/ may run code that it has left there. The
# reading role can only read, the publishing user can only publish.
#
#   tests/vms/roles.sh FOLDER PORT    the folder of the servers (setup/lib/local/test_servers.sh) and their first port
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/tests/vms/test_server.sh"

server=$(readlink -f "$1/postgres")
broker_home=$1/rabbitmq
management_port=$(($2 + 2))
scratch=$(mktemp -d)
trap clean_up EXIT
database=roles_$$
owner=thief_$$
reader=reader_$$
set_setting POSTGRES_PORT "$2"
set_setting POSTGRES_USER "$owner"
set_setting POSTGRES_PASSWORD "$(random_secret)"
set_setting POSTGRES_READER_PASSWORD "$(random_secret)"

main() {
    {
        sql_role "$owner" "${SETTINGS[POSTGRES_PASSWORD]}"
        sql_database "$database" "$owner"
    } | administrator_psql
    cat <(echo 'SET search_path = public;') "$repo"/{inventory,billing}/migrations/*.sql | owner_psql --dbname="$database"
    lays_its_traps
    is 'a trap works on a superuser who is careless' 't' careless_superuser
    provisioning_springs_none
    who_reads_can_only_read "$database"
    backup_and_restore_spring_none
    who_reads_can_only_read "$database"
    others_keep_what_is_theirs
    settings_of_the_role_stop_nothing
    who_publishes_can_only_publish
    echo "$passed passed, ${#failures[@]} failed"
    ((${#failures[@]} == 0))
}

clean_up() {
    local name
    for name in "$database" "$database"_{check,restored,former,tenant,set,set_check}; do
        drop_database "$name" || true
    done
    echo "DROP ROLE IF EXISTS $(sql_name "$owner"), $(sql_name "$reader"), renamed_$$, tenant_$$;" | administrator_psql || true
    for name in queues/%2F/{roles,loot}_$$ users/{gateway,consumer}_$$; do
        broker_api DELETE "$name" '{}' 2>/dev/null || true
    done
    rm -rf "$scratch"
}

# lays_its_traps: makes objects with names of PostgreSQL's own, in public and in a schema of the role's name, settings for
# all sessions, and triggers and rules that run when tables are read or written.
lays_its_traps() {
    owner_psql --dbname="$database" >/dev/null <<SQL
CREATE FUNCTION public.spring() RETURNS boolean LANGUAGE plpgsql AS \$\$ BEGIN
    EXECUTE 'ALTER ROLE "$owner" SUPERUSER'; RETURN true;
EXCEPTION WHEN insufficient_privilege THEN RETURN true; END \$\$;
CREATE SCHEMA "$owner";
SELECT format(t, s) FROM unnest(ARRAY['public', '$owner']) AS s, unnest(ARRAY[
    'CREATE VIEW %I.pg_roles AS SELECT * FROM pg_catalog.pg_roles WHERE public.spring()',
    'CREATE VIEW %I.pg_database AS SELECT * FROM pg_catalog.pg_database WHERE public.spring()',
    'CREATE VIEW %I.pg_tables AS SELECT * FROM pg_catalog.pg_tables WHERE public.spring()',
    'CREATE FUNCTION %I.eq(name, text) RETURNS boolean LANGUAGE sql AS ''SELECT public.spring()''',
    'CREATE OPERATOR %1\$I.= (LEFTARG = name, RIGHTARG = text, FUNCTION = %1\$I.eq)',
    'CREATE OPERATOR %1\$I.<> (LEFTARG = name, RIGHTARG = text, FUNCTION = %1\$I.eq)',
    'CREATE OPERATOR %1\$I.!~ (LEFTARG = name, RIGHTARG = text, FUNCTION = %1\$I.eq)',
    'CREATE FUNCTION %I.lower(text) RETURNS text LANGUAGE sql AS ''SELECT CAST(public.spring() AS text)''',
    'CREATE FUNCTION %I.format(text, name, text) RETURNS text LANGUAGE sql AS ''SELECT CAST(public.spring() AS text)''',
    'CREATE FUNCTION %I.format(text, name, unknown) RETURNS text LANGUAGE sql AS ''SELECT CAST(public.spring() AS text)''',
    'CREATE FUNCTION %I.quote_ident(name) RETURNS text LANGUAGE sql AS ''SELECT CAST(public.spring() AS text)''',
    'CREATE FUNCTION %I.current_database() RETURNS name LANGUAGE sql AS ''SELECT CAST(public.spring() AS name)''']) AS t
 WHERE t NOT LIKE '%unknown%' \gexec
ALTER DATABASE "$database" SET search_path = "$owner", public, pg_catalog;
ALTER DATABASE "$database" SET standard_conforming_strings = off;
CREATE FUNCTION public.springs() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN
    PERFORM public.spring(); RETURN NEW; END \$\$;
CREATE TRIGGER springs BEFORE INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.springs();
CREATE FUNCTION public.springing(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS \$\$ BEGIN
    RESET ROLE; RETURN public.spring();
EXCEPTION WHEN OTHERS THEN RETURN true; END \$\$;
ALTER TABLE public.orders ADD CONSTRAINT springs CHECK (public.springing(user_id));
CREATE TABLE public.rows_of AS SELECT 1 AS id;
ALTER TABLE public.rows_of ENABLE ROW LEVEL SECURITY;
-- This is the default before PostgreSQL 15.
GRANT CREATE ON SCHEMA public TO PUBLIC;
INSERT INTO public.orders (message_id, user_id, number_of_items, total_amount) VALUES ('one', 'u', 1, 1);
SQL
}

# is_superuser: whether the role is superuser, by a session in another database.
is_superuser() {
    echo "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = $(sql_text "$owner")" |
        administrator_psql --tuples-only --no-align
}

# careless_superuser: shows that a trap works, since the checks would otherwise prove nothing, and undoes its effect.
careless_superuser() {
    PGHOST=127.0.0.1 PGPORT=${SETTINGS[POSTGRES_PORT]} PGUSER=postgres PGPASSFILE=$server/pgpass \
        "$(postgres_programs "$server")/psql" --no-psqlrc --quiet --dbname="$database" \
        --command='SELECT count(*) FROM pg_roles' >/dev/null
    is_superuser
    echo "ALTER ROLE $(sql_name "$owner") NOSUPERUSER;" | administrator_psql
}

provisioning_springs_none() {
    is 'provisioning goes through' 0 exit_of make_database "$database" "$reader"
    is 'and does not make the role a superuser' f is_superuser
    # setup/local.sh up and the drill do this.
    is 'setup/local.sh up goes through' 0 exit_of local_up
    is 'and does not make the role a superuser' f is_superuser
}

local_up() {
    {
        sql_nobody_else
        sql_role "$owner" "${SETTINGS[POSTGRES_PASSWORD]}"
        sql_database "$database" "$owner"
        sql_role "$reader" "${SETTINGS[POSTGRES_READER_PASSWORD]}"
        sql_may_read "$database" "$owner" "$reader"
    } | postgres_sql "$server" "${SETTINGS[POSTGRES_PORT]}"
}

# who_reads_can_only_read DATABASE: the role reads tables that the owner made before and after the role. The table
# "locked" belongs to another role in this database.
who_reads_can_only_read() {
    local sql other
    printf '%s\n' "\\connect $1" 'CREATE TABLE IF NOT EXISTS public.locked (id int);' | administrator_psql
    is 'the owner makes tables as before' 0 exit_of owner_psql --dbname="$1" \
        --command='CREATE TABLE public.made_later AS SELECT 7 AS id'
    is 'who reads sees the orders' 1 as_reader "$1" 'SELECT count(*) FROM public.orders'
    is 'and the dead letters' 0 as_reader "$1" 'SELECT count(*) FROM public.dead_letters'
    is 'and what a migration makes later' 7 as_reader "$1" 'SELECT id FROM public.made_later'
    for sql in "INSERT INTO public.orders (user_id, number_of_items, total_amount) VALUES ('u', 1, 1)" \
        "UPDATE public.orders SET user_id = 'u'" 'DELETE FROM public.orders' 'TRUNCATE public.orders' \
        'SELECT FROM public.orders FOR UPDATE' 'LOCK TABLE public.orders IN SHARE MODE' \
        "SELECT nextval('public.orders_id_seq')" 'ALTER TABLE public.orders ADD loot int' 'DROP TABLE public.orders' \
        'CREATE TABLE public.loot (id int)' 'CREATE TEMPORARY TABLE loot (id int)' 'CREATE SCHEMA loot' \
        'SELECT FROM public.locked' "SET ROLE \"$owner\"" 'CREATE ROLE loot' "COPY (SELECT 1) TO PROGRAM 'true'"; do
        is "refused: $sql" refused as_reader "$1" "$sql"
    done
    for other in postgres template1; do
        is "it may not enter the database $other" refused as_reader "$other" 'SELECT 1'
    done
    is 'and is nobody special' 'f|f|f|f|f' as_reader "$1" \
        'SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = current_user'
    owner_psql --dbname="$1" --command='DROP TABLE public.made_later'
    printf '%s\n' "\\connect $1" 'DROP TABLE public.locked;' | administrator_psql
}

# as_reader DATABASE SQL: connects over the network, as billing-api does; prints the answer, or "refused".
as_reader() {
    local said
    said=$(PGPASSWORD=${SETTINGS[POSTGRES_READER_PASSWORD]} PGOPTIONS='-c search_path=pg_catalog' \
        "$(postgres_programs "$server")/psql" --no-psqlrc --quiet --tuples-only --no-align --host=127.0.0.1 \
        --port="${SETTINGS[POSTGRES_PORT]}" --username="$reader" --dbname="$1" \
        --command='BEGIN' --command="$2" 2>&1) || true
    [[ ! $said =~ (permission denied|must be (owner|superuser)) ]] || said=refused
    echo "$said"
}

backup_and_restore_spring_none() {
    is 'a backup is made' 0 exit_of dump_database "$scratch/dump"
    is 'it can be proven' 0 exit_of fill_new_database "${database}_check" "$scratch/dump"
    is 'its rows are counted' 'orders: 1' said_of_orders
    is 'the restored one takes the place' 0 exit_of exchanged
    is 'with newer orders' 0 exit_of take_over_orders "${database}_former"
    is 'and dead letters' 0 exit_of take_over_dead_letters "${database}_former"
    is 'the tables are looked for' 0 exit_of has_table "$database" dead_letters
    is 'none of which makes the role a superuser' f is_superuser
}

said_of_orders() {
    rows "${database}_check" | grep orders
}

exchanged() {
    drop_database "${database}_check"
    fill_new_database "${database}_restored" "$scratch/dump" && exchange "${database}_former"
}

# others_keep_what_is_theirs: changes POSTGRES_USER on a server with other tenants.
others_keep_what_is_theirs() {
    echo "CREATE ROLE tenant_$$ LOGIN; CREATE DATABASE ${database}_tenant OWNER tenant_$$;" | administrator_psql
    printf '%s\n' "\\connect $database" "CREATE TABLE public.of_tenant (id int);" \
        "ALTER TABLE public.of_tenant OWNER TO tenant_$$;" | administrator_psql
    set_setting POSTGRES_USER "renamed_$$"
    is 'POSTGRES_USER can be changed' 0 exit_of make_database "$database"
    is 'the database goes over to the new role' "renamed_$$" owner_of "$database"
    is 'with what is in it' "renamed_$$" owner_in "$database" orders
    is 'its other database stays' "$owner" owner_of "${database}_former"
    is 'the database of another tenant stays' "tenant_$$" owner_of "${database}_tenant"
    is 'and so does his table in ours' "tenant_$$" owner_in "$database" of_tenant

    is 'a database of another is not taken' 1 refused_database "${database}_tenant"
    is 'it is still his' "tenant_$$" owner_of "${database}_tenant"
    set_setting POSTGRES_USER "tenant_$$"
    is 'nor is a role of another' 1 refused_database "$database"
    set_setting POSTGRES_USER "renamed_$$"
    set_setting TAKE_OVER_FOREIGN true
    is 'unless that is asked for' 0 exit_of make_database "${database}_tenant"
    is 'which moves the database' "renamed_$$" owner_of "${database}_tenant"
}

# settings_of_the_role_stop_nothing: the owner of a database can set more than its content.
settings_of_the_role_stop_nothing() {
    local name=${database}_set sql
    set_setting POSTGRES_USER "$owner"
    is 'a database is made' 0 exit_of make_database "$name"
    owner_psql --dbname="$name" --command='CREATE TABLE public.kept AS SELECT 1 AS id'
    for sql in "ALTER ROLE \"$owner\" SET default_transaction_read_only = on" \
        "ALTER ROLE \"$owner\" SET statement_timeout = '1ms'" \
        "ALTER ROLE \"$owner\" IN DATABASE $name SET default_transaction_read_only = on" \
        "ALTER ROLE \"$owner\" SET local_preload_libraries = 'nowhere'" \
        "ALTER DATABASE $name SET default_transaction_read_only = on" \
        "ALTER DATABASE $name SET statement_timeout = '1ms'" \
        "ALTER DATABASE $name SET local_preload_libraries = 'nowhere'" \
        "ALTER DATABASE $name SET default_tablespace = 'nowhere'" \
        "ALTER DATABASE $name IS_TEMPLATE true" \
        "ALTER DATABASE $name CONNECTION LIMIT 0" \
        "ALTER DATABASE $name ALLOW_CONNECTIONS false"; do
        is "the owner says: $sql" 0 exit_of owner_psql --dbname="${database}_former" --command="$sql"
        is 'provisioning goes through' 0 exit_of make_database "$name"
        is 'and the program works as before' 'UPDATE 1' as_program "$name" 'UPDATE public.kept SET id = 1'
        owner_psql --dbname="${database}_former" --command="$sql" 2>/dev/null
        is 'a backup can be proven' 0 exit_of proven "$name" "$sql"
        echo "ALTER DATABASE $name ALLOW_CONNECTIONS true CONNECTION LIMIT -1" | administrator_psql
    done
    owner_psql --dbname="${database}_former" --command="ALTER DATABASE $name IS_TEMPLATE true"
    is 'a template is dropped' 0 exit_of drop_database "$name"
}

# as_program DATABASE SQL: runs SQL with only the settings of the role and the database.
as_program() {
    PGPASSWORD=${SETTINGS[POSTGRES_PASSWORD]} "$(postgres_programs "$server")/psql" --no-psqlrc --tuples-only \
        --host=127.0.0.1 --port="${SETTINGS[POSTGRES_PORT]}" --username="$owner" --dbname="$1" --command="$2"
}

# proven DATABASE SQL: makes and restores a backup; of another database, if SQL has closed this one to connections.
proven() {
    local database=$1 check=$1_check
    case $2 in *LIMIT* | *CONNECTIONS*) database+=_former database=${database/_set/} ;; esac
    dump_database "$scratch/dump_set" && fill_new_database "$check" "$scratch/dump_set" && drop_database "$check"
}

# who_publishes_can_only_publish: checks also that the consumer's user publishes nothing. RabbitMQ's page acts with the
# rights of its user, as a program does over AMQP; only in this test may the consumer's user see the page.
who_publishes_can_only_publish() {
    local queue=queues/%2F/roles_$$
    set_setting RABBITMQ_QUEUE "roles_$$"
    set_setting RABBITMQ_USER "gateway_$$"
    set_setting RABBITMQ_CONSUMER_USER "consumer_$$"
    set_setting RABBITMQ_PASSWORD "$(random_secret)"
    set_setting RABBITMQ_CONSUMER_PASSWORD "$(random_secret)"
    is 'the queue and its users are made' 0 exit_of rabbitmq_provide "$broker_home" "$management_port"
    is 'a second time too' 0 exit_of rabbitmq_provide "$broker_home" "$management_port"
    is 'who consumes may not look at the page' refused broker RABBITMQ_CONSUMER GET overview
    broker_api PUT "users/consumer_$$" "{\"password\": \"${SETTINGS[RABBITMQ_CONSUMER_PASSWORD]}\", \"tags\": \"management\"}"

    is 'who publishes may look at the page' 200 broker RABBITMQ GET "$queue"
    is 'and publishes' 200 broker RABBITMQ POST exchanges/%2F/amq.default/publish "$(message "roles_$$")"
    is 'but gets nothing' refused broker RABBITMQ POST "$queue/get" "$one"
    is 'nor purges' refused broker RABBITMQ DELETE "$queue/contents"
    is 'nor deletes' refused broker RABBITMQ DELETE "$queue"
    is 'nor makes a queue' refused broker RABBITMQ PUT "queues/%2F/loot_$$" '{"durable": true}'
    is 'nor declares the one of orders' refused broker RABBITMQ PUT "$queue" '{"durable": true}'
    is 'nor publishes elsewhere' refused broker RABBITMQ POST exchanges/%2F/amq.direct/publish "$(message "roles_$$")"
    is 'nor binds' refused broker RABBITMQ POST "bindings/%2F/e/amq.fanout/q/roles_$$" '{}'
    is 'nor changes users' refused broker RABBITMQ PUT users/thief '{"password": "x", "tags": "administrator"}'

    is 'who consumes gets what was published' 200 broker RABBITMQ_CONSUMER POST "$queue/get" "$one"
    is 'declares the queue' 204 broker RABBITMQ_CONSUMER PUT "$queue" '{"durable": true}'
    is 'but no other' refused broker RABBITMQ_CONSUMER PUT "queues/%2F/loot_$$" '{"durable": true}'
    is 'publishes nothing' refused broker RABBITMQ_CONSUMER POST exchanges/%2F/amq.default/publish "$(message "roles_$$")"
    is 'nor elsewhere' refused broker RABBITMQ_CONSUMER POST exchanges/%2F/amq.direct/publish "$(message "roles_$$")"
    broker_api PUT "queues/%2F/loot_$$" '{"durable": true}'
    is 'and reads no other queue' refused broker RABBITMQ_CONSUMER POST "queues/%2F/loot_$$/get" "$one"
}

one='{"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"}'

# message QUEUE: prints a message for the queue as JSON.
message() {
    echo "{\"routing_key\": \"$1\", \"payload\": \"x\", \"payload_encoding\": \"string\", \"properties\": {}}"
}

# broker SETTINGS METHOD PATH [JSON]: prints the status of the answer of RabbitMQ's page to the user SETTINGS_USER, or
# "refused".
broker() {
    local said
    said=$(curl --disable --noproxy '*' --silent --max-time 30 --write-out '\n%{http_code}' \
        --config <(echo "user = \"${SETTINGS[${1}_USER]}:${SETTINGS[${1}_PASSWORD]}\"") --request "$2" \
        --header 'Content-Type: application/json' --data-binary @- \
        "http://127.0.0.1:$management_port/api/$3" <<<"${4:-{\}}")
    [[ ! $said =~ ACCESS_REFUSED|\"not_authorised\" ]] || said=refused
    tail -n 1 <<<"$said"
}

broker_api() {
    rabbitmq_api "$broker_home" "$management_port" "$@"
}

# refused_database NAME: runs in a shell of its own, which die ends; prints how many lines refuse the database.
refused_database() {
    (make_database "$1") 2>&1 | grep -c 'set TAKE_OVER_FOREIGN=true'
}

owner_of() {
    echo "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $(sql_text "$1")" |
        administrator_psql --tuples-only --no-align
}

owner_in() {
    echo "SELECT tableowner FROM pg_tables WHERE tablename = $(sql_text "$2")" |
        administrator_psql --tuples-only --no-align --dbname="$1"
}

main
