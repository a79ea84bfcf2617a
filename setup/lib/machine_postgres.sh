# shellcheck shell=bash
# The PostgreSQL that Debian's package brings, as a service of the machine: on loopback only,
# with a role for the programs that owns their database and nothing else.
#
# "sudo -i -u postgres psql" works as everywhere: the administrator comes over the Unix socket.

# provide_postgres DATABASE: DATABASE is the setting that names it.
provide_postgres() {
    step 'Set up PostgreSQL, on loopback' configure_cluster
    step "Make the database ${SETTINGS[$1]} and the role that owns it" make_database "${SETTINGS[$1]}"
}

# postgres_cluster: the newest, in case an upgrade of Debian has left two.
postgres_cluster() {
    pg_lsclusters --no-header | sort -V | tail -n 1 | awk '{ print $1, $2 }'
}

configure_cluster() {
    local version name folder restart=false
    read -r version name < <(postgres_cluster) || true
    [[ -n ${name:-} ]] || die 'there is no cluster of PostgreSQL: pg_createcluster makes one'
    folder=/etc/postgresql/$version/$name
    install -d "$folder/conf.d"
    cluster_settings | write_if_new "$folder/conf.d/crud-master.conf" 644 && restart=true
    cluster_restarts | write_if_new_in "/etc/systemd/system/postgresql@.service.d" || true
    systemctl enable --quiet postgresql
    if $restart; then
        systemctl restart "postgresql@$version-$name"
    else
        systemctl start "postgresql@$version-$name"
    fi
}

cluster_settings() {
    cat <<SETTINGS
# Made by setup/lib/machine_postgres.sh of crud-master.
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

# write_if_new_in FOLDER: an addition to a unit.
write_if_new_in() {
    install -d "$1"
    write_if_new "$1/crud-master.conf" 644 && systemctl daemon-reload
}

# make_database NAME: a statement that fails is logged whole, with the password in it, unless
# the session forbids it.
make_database() {
    {
        echo 'SET log_min_error_statement = panic; SET log_statement = none; SET log_min_duration_statement = -1;'
        sql_nobody_else
        sql_role "${SETTINGS[POSTGRES_USER]}" "${SETTINGS[POSTGRES_PASSWORD]}"
        sql_database "$1" "${SETTINGS[POSTGRES_USER]}"
    } | administrator_psql
}

# administrator_psql [ARGUMENT…]: as the superuser, to the first error.
administrator_psql() (
    cd /
    bare setpriv --reuid=postgres --regid=postgres --init-groups -- \
        psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --port="${SETTINGS[POSTGRES_PORT]}" \
        --dbname=postgres "$@"
)
