# shellcheck shell=bash
# A PostgreSQL server in a folder of its own, HOME in these functions. It listens on loopback only, and not on a Unix
# socket, whose path may be too long.
#
#   HOME/data      the cluster
#   HOME/log       the log of the server
#   HOME/pgpass    the superuser's password, in the form that psql reads

# postgres_programs HOME: prints the folder of the programs of the cluster's version or, before there is a cluster, of the
# newest version. Programs of these names elsewhere on the PATH are not used.
postgres_programs() {
    local version='*' initdb
    # The user postgres can write there, and root starts the program of that version.
    [[ ! -f $1/data/PG_VERSION ]] || version=$(as_postgres head -c 16 "$1/data/PG_VERSION")
    [[ $version == '*' || $version =~ ^[0-9]+$ ]] || die "$1/data/PG_VERSION names no version of PostgreSQL: reset, and start again"
    initdb=$(compgen -G "/usr/lib/postgresql/$version/bin/initdb" | sort -V | tail -n 1) || true
    [[ -n $initdb ]] || die "there is no PostgreSQL in /usr/lib/postgresql/$version: install the package postgresql${version:+-$version}, or reset and start again"
    dirname "$initdb"
}

# postgres_place HOME: makes the folder. If the user postgres cannot reach it, as below /root, the data is in /var/lib
# and HOME is a link to it.
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

# postgres_home HOME: prints the folder to which HOME is a link, or HOME.
postgres_home() {
    readlink "$1" || echo "$1"
}

# postgres_start HOME PORT [SETTING…]: starts the server; a server that runs with equal settings stays.
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

# postgres_create HOME: makes the cluster in another folder and moves it into place when it is complete, so that an
# interruption leaves no incomplete cluster.
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

# postgres_forget_stale_pid HOME: after a kill or a power cut the pid file may name another process by now, and the server
# would refuse to start.
postgres_forget_stale_pid() {
    local pid
    pid=$(pid_in "$1/data/postmaster.pid") || return 0
    if [[ -d /proc/$pid ]]; then
        as_postgres rm -f "$1/data/postmaster.pid"
    fi
}

# postgres_pid HOME: prints the server's pid, if it runs. The working directory of the server is its data.
postgres_pid() {
    local pid
    pid=$(pid_in "$1/data/postmaster.pid") && [[ /proc/$pid/cwd -ef $1/data ]] && echo "$pid"
}

# postgres_stop HOME [SIGNAL]: sends SIGNAL (INT, a fast shutdown, which ends the sessions and loses nothing). A signal
# needs no program of PostgreSQL, which may have been removed.
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

# postgres_remove HOME: removes the folder, or the link and its target.
postgres_remove() {
    local place
    place=$(postgres_home "$1")
    rm -rf "$1" "$place"
    [[ $place != /var/lib/crud-master/* ]] ||
        rmdir --ignore-fail-on-non-empty /var/lib/crud-master
}

# postgres_sql HOME PORT: runs the SQL on its input as the superuser, to the first error. The passwords in the SQL are on
# no command line.
postgres_sql() (
    programs=$(postgres_programs "$1")
    cd /
    as_postgres env "${superuser_session[@]:?}" PGPASSFILE="$1/pgpass" "$programs/psql" \
        --no-psqlrc --quiet --set=ON_ERROR_STOP=1 \
        --host=127.0.0.1 --port="$2" --username=postgres --dbname=postgres
)
