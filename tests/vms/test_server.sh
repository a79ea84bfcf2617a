# shellcheck shell=bash
# What a machine does to its PostgreSQL, done to the server that is there for tests. Before: SERVER, its folder.
source "${repo:?}/setup/lib/machines/machine.sh"
source "$repo/setup/lib/machines/backups.sh"
source "$repo/setup/lib/local/postgres.sh"
source "$repo/tests/vms/checks.sh"

# as_administrator COMMAND…: in the place of the one in machines/postgres.sh, since this server has no Unix socket.
as_administrator() {
    env "${superuser_session[@]}" PGHOST=127.0.0.1 PGUSER=postgres PGPASSFILE="${server:?}/pgpass" \
        PATH="$(postgres_programs "$server"):$PATH" "$@"
}
