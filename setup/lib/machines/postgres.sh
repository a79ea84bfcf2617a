# shellcheck shell=bash
# The PostgreSQL that Debian's package brings, as a service of the machine: on loopback only,
# with a role for the programs that owns their database and nothing else, and one that can only read it.
#
# "sudo -i -u postgres psql" works as everywhere: the administrator comes over the Unix socket.

# provide_postgres DATABASE [READER]: the settings that name the database, and the role that can only
# read it.
provide_postgres() {
    step 'Set up PostgreSQL, on loopback' configure_cluster
    step "Make the database ${SETTINGS[$1]} and its roles" make_database "${SETTINGS[$1]}" "${2:+${SETTINGS[$2]}}"
}

# postgres_cluster: the newest, in case an upgrade of Debian has left two. Who has a server's settings may
# have it read any file, so it is read as that user.
postgres_cluster() {
    as_user postgres pg_lsclusters --no-header | sort -V | tail -n 1 | awk '{ print $1, $2 }'
}

configure_cluster() {
    local version name folder restart=false
    read -r version name < <(postgres_cluster) || true
    [[ -n ${name:-} ]] || die 'there is no cluster of PostgreSQL: pg_createcluster makes one'
    folder=/etc/postgresql/$version/$name
    own_folders /etc/postgresql "/etc/postgresql/$version" "$folder" "$folder/conf.d"
    foreign_hba "$folder/pg_hba.conf" | stop_at_foreign || exit
    cluster_settings | write_if_new "$folder/conf.d/crud-master.conf" 644 && restart=true
    { cluster_restarts && server_output; } | write_unit_part postgresql@.service || true
    systemctl enable --quiet postgresql
    if $restart; then
        systemctl restart "postgresql@$version-$name"
    else
        systemctl start "postgresql@$version-$name"
    fi
}

# foreign_hba FILE: says so where it has another rule than those that Debian and Ubuntu make, each of
# which asks for the user of the system or for a password.
foreign_hba() {
    ! sed -E 's/#.*//; s/[[:space:]]+/ /g; s/ $//; /^ ?$/d' "$1" | grep -vxE \
        'local (all|replication) (postgres|all) peer|host (all|replication) all (127\.0\.0\.1/32|::1/128) scram-sha-256' >/dev/null || echo "$1, with rules of its own"
}

cluster_settings() {
    cat <<SETTINGS
# Made by setup/lib/machines/postgres.sh of crud-master.
listen_addresses = 'localhost'
port = ${SETTINGS[POSTGRES_PORT]}
password_encryption = 'scram-sha-256'
SETTINGS
}

# Debian's unit leaves a server that was killed where it fell.
cluster_restarts() {
    cat <<UNIT
[Service]
Restart=on-failure
RestartSec=2
UNIT
}

# make_database NAME [READER]: a statement that fails is logged whole, with the password in it, unless
# the session forbids it.
make_database() {
    foreign_in_cluster "$@" | stop_at_foreign || exit
    {
        echo 'SET log_min_error_statement = panic; SET log_statement = none; SET log_min_duration_statement = -1;'
        sql_nobody_else
        sql_role "${SETTINGS[POSTGRES_USER]}" "${SETTINGS[POSTGRES_PASSWORD]}"
        sql_database "$1" "${SETTINGS[POSTGRES_USER]}"
        [[ -z ${2:-} ]] || {
            sql_role "$2" "${SETTINGS[POSTGRES_READER_PASSWORD]}"
            sql_may_read "$1" "${SETTINGS[POSTGRES_USER]}" "$2"
        }
    } | administrator_psql
}

# foreign_in_cluster NAME [READER]: what has a name of ours in this cluster and is not ours. A role that owns the
# database is of a version that left no mark.
foreign_in_cluster() {
    administrator_psql --tuples-only --no-align <<SQL
SELECT format('the role %I of PostgreSQL', rolname) FROM pg_roles
 WHERE rolname IN ($(sql_text "${SETTINGS[POSTGRES_USER]}"), $(sql_text "${2:-${SETTINGS[POSTGRES_USER]}}"))
   AND shobj_description(oid, 'pg_authid') IS DISTINCT FROM '${our_role:?}'
   AND NOT EXISTS (SELECT FROM pg_database WHERE datname = $(sql_text "$1") AND datdba = pg_roles.oid)
 UNION ALL
SELECT format('the database %I, which belongs to %s', datname, CAST(datdba AS regrole)) FROM pg_database
 WHERE datname = $(sql_text "$1") AND pg_get_userbyid(datdba) <> $(sql_text "${SETTINGS[POSTGRES_USER]}")
   AND shobj_description(datdba, 'pg_authid') IS DISTINCT FROM '${our_role:?}';
SQL
}

# administrator_psql [ARGUMENT…]: as the superuser, to the first error. In the databases of the programs
# it changes owners alone: whatever calls functions or fires triggers there is done by as_owner.
administrator_psql() {
    as_administrator psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
        --port="${SETTINGS[POSTGRES_PORT]}" --dbname=postgres "$@"
}

# as_administrator COMMAND…: over the Unix socket, as the user whom PostgreSQL takes at his word.
# Away from the working directory, which may be closed to him.
as_administrator() (
    cd /
    as_postgres env "${superuser_session[@]:?}" "$@"
)

# as_owner COMMAND…: as the role that owns the database, over the network as the programs do. What is in
# there may be the service's own, functions and triggers included, and SET ROLE could be undone by it.
# The password is in the environment, which nobody but that user reads.
as_owner() (
    cd /
    export PGHOST=${SETTINGS[POSTGRES_HOST]:-127.0.0.1} PGPORT=${SETTINGS[POSTGRES_PORT]} PGUSER=$owner \
        PGPASSWORD=${SETTINGS[POSTGRES_PASSWORD]} "${superuser_session[@]:?}"
    with_environment_as_postgres "$@"
)

# owner_psql [ARGUMENT…]
owner_psql() {
    as_owner psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 "$@"
}

# our_table NAME: with its schema.
our_table() {
    echo "$(sql_name "${SETTINGS[POSTGRES_SCHEMA]:-public}").$(sql_name "$1")"
}

# use_machine_database: what this machine's programs keep, by the settings in force: sets `database`,
# `owner`, `reader` where there is one and, to those that use it, `apps`, of which the last is the owner's.
use_machine_database() {
    local key reader_key=''
    ((EUID == 0)) || die "this takes root: sudo $0"
    if [[ -e ${state:?}/inventory-api.env ]]; then
        key=INVENTORY_DB_NAME apps=(inventory-api)
    elif [[ -e $state/billing-api.env ]]; then
        key=BILLING_DB_NAME reader_key=POSTGRES_READER_USER apps=(billing-api billing-consumer)
    else
        die 'no database of the platform is on this machine: be on the inventory or the billing machine, and provision it first'
    fi
    read_settings "$state/${apps[-1]}.env"
    # shellcheck disable=SC2034 # for those who call
    database=${SETTINGS[$key]}
    owner=${SETTINGS[POSTGRES_USER]}
    reader=${reader_key:+${SETTINGS[$reader_key]:-}}
}

# fill_new_database NAME FILE: a database of that name with what the backup holds, whole or with
# an error. What was left of an earlier try goes first. Of the rights those of today hold, since the backup
# may name roles that are not there.
fill_new_database() {
    drop_database "$1"
    {
        sql_database "$1" "$owner"
        [[ -z ${reader:-} ]] || sql_may_read "$1" "$owner" "$reader"
    } | administrator_psql
    as_owner pg_restore --dbname="$1" --exit-on-error --no-owner --no-privileges <"$2"
}

# drop_database NAME: its owner may have made a template of it, and would again.
drop_database() {
    administrator_psql <<SQL
SELECT format('ALTER DATABASE %I OWNER TO %I', datname, current_user) FROM pg_database WHERE datname = $(sql_text "$1") \gexec
SELECT format('ALTER DATABASE %I IS_TEMPLATE false', datname) FROM pg_database WHERE datname = $(sql_text "$1") \gexec
DROP DATABASE IF EXISTS $(sql_name "$1") WITH (FORCE);
SQL
}

# rows NAME: each table of the database and how many rows it has.
rows() {
    owner_psql --dbname="$1" --tuples-only --no-align \
        --command="SELECT format('SELECT %L || count(*) FROM %I.%I;', tablename || ': ', schemaname, tablename)
                     FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
                    ORDER BY tablename" |
        owner_psql --dbname="$1" --tuples-only --no-align
}
