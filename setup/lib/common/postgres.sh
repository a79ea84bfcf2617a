# shellcheck shell=bash
# A PostgreSQL server in a folder of its own, the HOME of these functions: on loopback only,
# without Unix sockets, whose paths may be too long for one.
#
#   HOME/data      the cluster
#   HOME/log       what the server says
#   HOME/pgpass    the superuser's password, in the form that psql reads

# postgres_programs HOME: where the programs are that suit the cluster in HOME: those of its
# own version or, before there is one, the newest. Programs of these names elsewhere on the
# PATH may be anything.
postgres_programs() {
    local version='*' initdb
    # The user postgres may write there, and root starts what is found.
    [[ ! -f $1/data/PG_VERSION ]] || version=$(as_postgres head -c 16 "$1/data/PG_VERSION")
    [[ $version == '*' || $version =~ ^[0-9]+$ ]] || die "$1/data/PG_VERSION names no version of PostgreSQL: reset and begin anew"
    initdb=$(compgen -G "/usr/lib/postgresql/$version/bin/initdb" | sort -V | tail -n 1) || true
    [[ -n $initdb ]] || die "there is no PostgreSQL in /usr/lib/postgresql/$version: install the package postgresql${version:+-$version}, or reset and begin anew"
    dirname "$initdb"
}

# as_postgres COMMAND…: PostgreSQL refuses to run as root; root runs it as the user postgres.
as_postgres() {
    if ((EUID == 0)); then
        as_user postgres "$@"
    else
        bare "$@"
    fi
}

# with_environment_as_postgres COMMAND…: with the caller's variables, for a password that is to be on no
# command line.
with_environment_as_postgres() {
    if ((EUID == 0)); then
        as_user --with-environment postgres "$@"
    else
        "$@"
    fi
}

# postgres_place HOME: makes the folder. A checkout below /root, say, is closed to the user
# postgres: then the data lies in /var/lib, and HOME is a link to it.
postgres_place() {
    local home=$1 place
    [[ ! -d $home ]] || return 0
    if ((EUID != 0)); then
        install -d -m 700 "$home"
    elif as_postgres test -x "$(dirname "$home")"; then
        install -d -m 700 -o postgres -g postgres "$home"
    else
        install -d -m 755 /var/lib/crud-master
        place=$(mktemp -d /var/lib/crud-master/XXXXXXXX)
        chown postgres:postgres "$place"
        ln -sfn "$place" "$home"
    fi
}

# postgres_home HOME: where it leads to, if it is such a link.
postgres_home() {
    readlink "$1" || echo "$1"
}

# postgres_start HOME PORT [SETTING…]: what runs already with the same settings stays.
postgres_start() {
    local home programs settings
    postgres_place "$1"
    home=$(postgres_home "$1")
    settings=$(postgres_settings "${@:2}")
    [[ -f $home/data/PG_VERSION ]] || postgres_create "$home"

    if postgres_pid "$home" >/dev/null; then
        [[ $(<"$home/data/local.conf") != "$settings" ]] || return 0
        postgres_stop "$home"
    fi
    as_postgres tee "$home/data/local.conf" <<<"$settings" >/dev/null
    postgres_forget_stale_pid "$home"
    programs=$(postgres_programs "$home")
    detached as_postgres "$programs/pg_ctl" start --pgdata="$home/data" --log="$home/log" \
        --wait --timeout=120 --silent || {
        tail -n 10 "$home/log"
        return 1
    }
}

postgres_settings() {
    local setting
    echo "listen_addresses = '127.0.0.1'"
    echo "unix_socket_directories = ''"
    echo "port = $1"
    for setting in "${@:2}"; do
        echo "$setting"
    done
}

# postgres_create HOME: made aside and moved into place when it is whole, so that an
# interruption leaves nothing that looks like a cluster.
postgres_create() {
    local home=$1 programs secret
    programs=$(postgres_programs "$home")
    secret=$(random_secret)
    as_postgres rm -rf "$home/data.new"
    as_postgres install -m 600 /dev/null "$home/pgpass"
    as_postgres tee "$home/pgpass" <<<"127.0.0.1:*:*:postgres:$secret" >/dev/null
    as_postgres install -m 600 /dev/null "$home/password"
    as_postgres tee "$home/password" <<<"$secret" >/dev/null
    as_postgres "$programs/initdb" --pgdata="$home/data.new" --username=postgres \
        --pwfile="$home/password" --auth=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 --lc-collate=C
    as_postgres rm "$home/password"
    as_postgres tee -a "$home/data.new/postgresql.conf" <<<"include 'local.conf'" >/dev/null
    as_postgres touch "$home/data.new/local.conf"
    as_postgres mv "$home/data.new" "$home/data"
}

# postgres_forget_stale_pid HOME: after a kill or a power cut the file may name a process that
# is somebody else's by now, for which the server would refuse to start.
postgres_forget_stale_pid() {
    local pid
    pid=$(pid_in "$1/data/postmaster.pid") || return 0
    if [[ -d /proc/$pid ]]; then
        as_postgres rm -f "$1/data/postmaster.pid"
    fi
}

# postgres_pid HOME: the server's pid, if it runs. Its working directory is its data.
postgres_pid() {
    local pid
    pid=$(pid_in "$1/data/postmaster.pid") && [[ /proc/$pid/cwd -ef $1/data ]] && echo "$pid"
}

# postgres_stop HOME [SIGNAL]: a fast shutdown, unless another is asked for, which ends the
# sessions and loses nothing. A signal needs none of PostgreSQL's programs, which may be gone.
postgres_stop() {
    local home pid waited
    home=$(postgres_home "$1")
    pid=$(postgres_pid "$home") || return 0
    kill -s "${2:-INT}" "$pid"
    for ((waited = 0; waited < 1200; waited++)); do
        postgres_pid "$home" >/dev/null || return 0
        sleep 0.1
    done
    tail -n 10 "$home/log"
    return 1
}

# postgres_remove HOME: the folder, and where it leads to.
postgres_remove() {
    local place
    place=$(postgres_home "$1")
    rm -rf "$1" "$place"
    [[ $place != /var/lib/crud-master/* ]] ||
        rmdir --ignore-fail-on-non-empty /var/lib/crud-master
}

# What every session of a superuser begins with, and of the owner. A database may belong to the role of a service,
# which may then make tables, functions and operators with the names of PostgreSQL's own, and give settings to
# all sessions there or of its own: these win over its. The folders of the client's own settings are not asked.
superuser_session=(
    PGOPTIONS="-c search_path=pg_catalog,pg_temp -c role=none -c standard_conforming_strings=on
        -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed
        -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0
        -c local_preload_libraries= -c default_tablespace= -c temp_tablespaces= -c default_table_access_method=heap
        -c row_security=on -c xmloption=content"
    PGCLIENTENCODING=UTF8 PGSYSCONFDIR=/nonexistent HOME=/nonexistent
)

# postgres_sql HOME PORT: runs the SQL on its input as the superuser, to the first error. The
# passwords in it are on no command line that way.
postgres_sql() (
    programs=$(postgres_programs "$1")
    cd /
    as_postgres env "${superuser_session[@]}" PGPASSFILE="$1/pgpass" "$programs/psql" \
        --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
        --host=127.0.0.1 --port="$2" --username=postgres --dbname=postgres
)

# What tells a role of ours from those of others; an ordinary role cannot write it.
our_role='Made by setup/ of crud-master.'

# sql_role NAME PASSWORD: prints the SQL that makes the role and sets its password. What it has set for its own
# sessions goes, and with it the sessions that have begun so.
sql_role() {
    cat <<SQL
SELECT format('CREATE ROLE %I', $(sql_text "$1"))
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $(sql_text "$1")) \gexec
ALTER ROLE $(sql_name "$1") LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD $(sql_text "$2");
COMMENT ON ROLE $(sql_name "$1") IS '$our_role';
SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_db_role_setting ON setrole = usesysid
 WHERE usename = $(sql_text "$1") \g /dev/null
ALTER ROLE $(sql_name "$1") RESET ALL;
SELECT format('ALTER ROLE %I IN DATABASE %I RESET ALL', $(sql_text "$1"), datname)
  FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase JOIN pg_roles ON pg_roles.oid = setrole
 WHERE rolname = $(sql_text "$1") \gexec
SQL
}

# sql_database NAME OWNER: prints the SQL that makes the database, for its owner alone. Where it has
# another owner, as after a change of POSTGRES_USER, it goes over to the new one with what the former
# owns in it. REASSIGN OWNED takes along other databases of the former one, which get it back. Whatever its owner
# has set that keeps people out, or sessions from writing, goes first, from outside.
sql_database() {
    cat <<SQL
SELECT format('CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING ''UTF8'' '
              'LC_COLLATE ''C'' LC_CTYPE ''C.UTF-8''', $(sql_text "$1"), $(sql_text "$2"))
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = $(sql_text "$1")) \gexec
ALTER DATABASE $(sql_name "$1") IS_TEMPLATE false ALLOW_CONNECTIONS true CONNECTION LIMIT -1;
SELECT pg_terminate_backend(pid) FROM pg_stat_activity JOIN pg_db_role_setting ON setdatabase = datid
 WHERE datname = $(sql_text "$1") AND setrole = 0 AND pid <> pg_backend_pid() \g /dev/null
ALTER DATABASE $(sql_name "$1") RESET ALL;
REVOKE ALL ON DATABASE $(sql_name "$1") FROM PUBLIC;
\connect $(sql_name "$1")
BEGIN;
SELECT datdba AS former FROM pg_database WHERE datname = current_database() \gset
SELECT coalesce(string_agg(format('ALTER %s %I OWNER TO %s;', kind, name, CAST(:former AS regrole)), ' '), '') AS back
  FROM (SELECT 'DATABASE', datname FROM pg_database WHERE datdba = :former AND datname <> current_database()
         UNION ALL
        SELECT 'TABLESPACE', spcname FROM pg_tablespace WHERE spcowner = :former) AS others (kind, name) \gset
SELECT format('REASSIGN OWNED BY %I TO %I', rolname, $(sql_text "$2")) FROM pg_roles
 WHERE oid = :former AND NOT rolsuper AND rolname <> $(sql_text "$2") \gexec
:back
ALTER DATABASE $(sql_name "$1") OWNER TO $(sql_name "$2");
COMMIT;
SQL
}

# sql_may_read DATABASE OWNER READER: prints the SQL that lets a role read the owner's tables in the schema
# of the programs, those that the owner makes later included, and do nothing else. Before PostgreSQL 15
# everybody may make tables in "public".
sql_may_read() {
    local owner reader schema
    owner=$(sql_text "$2") reader=$(sql_text "$3") schema=$(sql_text "${SETTINGS[POSTGRES_SCHEMA]:-public}")
    cat <<SQL
GRANT CONNECT ON DATABASE $(sql_name "$1") TO $(sql_name "$3");
\connect $(sql_name "$1")
SELECT format('GRANT CREATE ON SCHEMA %1\$I TO %2\$I; REVOKE CREATE ON SCHEMA %1\$I FROM PUBLIC', nspname, $owner)
  FROM pg_namespace WHERE nspname = $schema
   AND EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = 0 AND privilege_type = 'CREATE') \gexec
SELECT format('GRANT USAGE ON SCHEMA %1\$I TO %3\$I; '
              'ALTER DEFAULT PRIVILEGES FOR ROLE %2\$I IN SCHEMA %1\$I GRANT SELECT ON TABLES TO %3\$I',
              nspname, $owner, $reader)
  FROM pg_namespace WHERE nspname = $schema \gexec
SELECT format('GRANT SELECT ON TABLE %I.%I TO %I', nspname, relname, $reader)
  FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
 WHERE nspname = $schema AND relkind IN ('r', 'p') AND pg_get_userbyid(relowner) = $owner \gexec
SQL
}

# sql_nobody_else: prints the SQL that closes the databases every cluster comes with.
sql_nobody_else() {
    echo 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;'
}
