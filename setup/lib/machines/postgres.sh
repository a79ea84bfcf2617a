# shellcheck shell=bash
# PostgreSQL from Debian's package, as a service of the machine. It listens on loopback only, and has a role for the
# programs that owns their database and nothing else, and a role that can only read that database.
#
# The administrator connects over the Unix socket: "sudo -i -u postgres psql" works as usual.

# provide_postgres DATABASE [READER]: the arguments are the settings that name the database and the role that can only
# read it.
provide_postgres() {
    step 'Set up PostgreSQL, on loopback' configure_cluster
    step "Make the database ${SETTINGS[$1]} and its roles" make_database "${SETTINGS[$1]}" "${2:+${SETTINGS[$2]}}"
}

# postgres_cluster: prints the version and the name of the newest cluster, since an upgrade of Debian may leave two. The
# command runs as the user postgres, who can change the settings that it reads, and with them make it read any file.
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

# foreign_hba FILE: prints a line if the file has a rule other than those of Debian and Ubuntu, which require the system's
# user or a password.
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

# cluster_restarts: makes systemd restart a server that was killed, which Debian's unit does not.
cluster_restarts() {
    cat <<UNIT
[Service]
Restart=on-failure
RestartSec=2
UNIT
}

# make_database NAME [READER]: makes the database and its roles. The session turns off the logging of statements, since a
# statement with a password might fail and be logged.
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

# foreign_in_cluster NAME [READER]: prints the roles and the database with these names that this project did not make. A
# role without our comment that owns the database was made by an older version.
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

# administrator_psql [ARGUMENT…]: runs SQL as the superuser, to the first error. In the databases of the programs it only
# changes owners; SQL that could call functions or triggers there is run by as_owner.
administrator_psql() {
    as_administrator psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
        --port="${SETTINGS[POSTGRES_PORT]}" --dbname=postgres "$@"
}

# as_administrator COMMAND…: runs the command as the user postgres, whom PostgreSQL accepts over the Unix socket. The
# working directory is changed, since that user may have no right to it.
as_administrator() (
    cd /
    as_postgres env "${superuser_session[@]:?}" "$@"
)

# as_owner COMMAND…: connects as the role that owns the database, over the network as the programs do. The database may
# have functions and triggers of the service, which could undo a SET ROLE of the superuser. The password is in the
# environment, which only that user can read.
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

# our_table NAME: prints the name with its schema.
our_table() {
    echo "$(sql_name "${SETTINGS[POSTGRES_SCHEMA]:-public}").$(sql_name "$1")"
}

# use_machine_database: finds this machine's database by the settings in force. Sets `database`, `owner`, `reader` if there
# is one, and `apps` to the programs that use the database; the last one connects as the owner.
use_machine_database() {
    local key reader_key=''
    ((EUID == 0)) || die "only root can do this: sudo $0"
    if [[ -e ${state:?}/inventory-api.env ]]; then
        key=INVENTORY_DB_NAME apps=(inventory-api)
    elif [[ -e $state/billing-api.env ]]; then
        key=BILLING_DB_NAME reader_key=POSTGRES_READER_USER apps=(billing-api billing-consumer)
    else
        die 'this machine has no database of the platform: run this on the inventory or the billing machine, after it was provisioned'
    fi
    read_settings "$state/${apps[-1]}.env"
    # shellcheck disable=SC2034 # the callers use it
    database=${SETTINGS[$key]}
    owner=${SETTINGS[POSTGRES_USER]}
    reader=${reader_key:+${SETTINGS[$reader_key]:-}}
}

# fill_new_database NAME FILE: makes a database of that name with the content of the backup, completely or with an error. A
# database of an earlier try is dropped first. The rights are those of the present settings, since the backup may name
# roles that do not exist.
fill_new_database() {
    drop_database "$1"
    {
        sql_database "$1" "$owner"
        [[ -z ${reader:-} ]] || sql_may_read "$1" "$owner" "$reader"
    } | administrator_psql
    as_owner pg_restore --dbname="$1" --exit-on-error --no-owner --no-privileges <"$2"
}

# drop_database NAME: changes the owner first, who could otherwise make the database a template again.
drop_database() {
    administrator_psql <<SQL
SELECT format('ALTER DATABASE %I OWNER TO %I', datname, current_user) FROM pg_database WHERE datname = $(sql_text "$1") \gexec
SELECT format('ALTER DATABASE %I IS_TEMPLATE false', datname) FROM pg_database WHERE datname = $(sql_text "$1") \gexec
DROP DATABASE IF EXISTS $(sql_name "$1") WITH (FORCE);
SQL
}

# rows NAME: prints each table of the database with its number of rows.
rows() {
    owner_psql --dbname="$1" --tuples-only --no-align \
        --command="SELECT format('SELECT %L || count(*) FROM %I.%I;', tablename || ': ', schemaname, tablename)
                     FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
                    ORDER BY tablename" |
        owner_psql --dbname="$1" --tuples-only --no-align
}
