#!/usr/bin/env bash
# The role of a service that wants to be superuser, on a PostgreSQL that is there for tests: it owns its
# database, and whatever setup/ does there must not run what it has left.
#
#   tests/vms/roles.sh HOME PORT    the server's folder, as setup/lib/postgres.sh has it, and its port
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/surroundings.sh"
source "$repo/setup/lib/machine.sh"
source "$repo/setup/lib/backups.sh"
source "$repo/tests/vms/checks.sh"

server=$(readlink -f "$1")
scratch=$(mktemp -d)
trap clean_up EXIT
database=roles_$$
owner=thief_$$
set_setting POSTGRES_PORT "$2"
set_setting POSTGRES_USER "$owner"
set_setting POSTGRES_PASSWORD "$(random_secret)"

main() {
    {
        sql_role "$owner" "${SETTINGS[POSTGRES_PASSWORD]}"
        sql_database "$database" "$owner"
    } | administrator_psql
    cat <(echo 'SET search_path = public;') "$repo"/{inventory,billing}/migrations/*.sql | owner_psql --dbname="$database"
    lays_its_traps
    is 'a trap works on a superuser who is careless' 't' careless_superuser
    provisioning_springs_none
    backup_and_restore_spring_none
    others_keep_what_is_theirs
    echo "$passed passed, ${#failures[@]} failed"
    ((${#failures[@]} == 0))
}

clean_up() {
    local name
    for name in "$database" "$database"_{check,restored,former,tenant}; do
        drop_database "$name" || true
    done
    echo "DROP ROLE IF EXISTS $(sql_name "$owner"), renamed_$$, tenant_$$;" | administrator_psql || true
    rm -rf "$scratch"
}

# as_administrator COMMAND…: the server of the tests has no Unix socket. What each session begins with is
# machine_postgres.sh's own.
as_administrator() {
    env "${superuser_session[@]}" PGHOST=127.0.0.1 PGUSER=postgres PGPASSFILE="$server/pgpass" \
        PATH="$(postgres_programs "$server"):$PATH" "$@"
}

# lays_its_traps: names of PostgreSQL's own, in public and in a schema of the role's name, whichever is
# looked up first; settings for all sessions; and what fires when tables are read and written.
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
INSERT INTO public.orders (message_id, user_id, number_of_items, total_amount) VALUES ('one', 'u', 1, 1);
SQL
}

# is_superuser: by a session in another database.
is_superuser() {
    echo "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = $(sql_text "$owner")" |
        administrator_psql --tuples-only --no-align
}

# careless_superuser: whether a trap works, so that the checks mean something; and the end of it.
careless_superuser() {
    PGHOST=127.0.0.1 PGPORT=${SETTINGS[POSTGRES_PORT]} PGUSER=postgres PGPASSFILE=$server/pgpass \
        "$(postgres_programs "$server")/psql" --no-psqlrc --quiet --dbname="$database" \
        --command='SELECT count(*) FROM pg_roles' >/dev/null
    is_superuser
    echo "ALTER ROLE $(sql_name "$owner") NOSUPERUSER;" | administrator_psql
}

provisioning_springs_none() {
    is 'provisioning goes through' 0 exit_of make_database "$database"
    is 'and does not make the role a superuser' f is_superuser
    # As setup/local.sh up and the drill.
    is 'setup/local.sh up goes through' 0 exit_of local_up
    is 'and does not make the role a superuser' f is_superuser
}

local_up() {
    {
        sql_nobody_else
        sql_role "$owner" "${SETTINGS[POSTGRES_PASSWORD]}"
        sql_database "$database" "$owner"
    } | postgres_sql "$server" "${SETTINGS[POSTGRES_PORT]}"
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

# others_keep_what_is_theirs: POSTGRES_USER is changed on a server that has other tenants.
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

# refused_database NAME: in a shell of its own, which die ends; how many lines say it.
refused_database() {
    (make_database "$1") 2>&1 | grep -c 'go on with TAKE_OVER_FOREIGN=true'
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
