# shellcheck shell=bash
# Runs a machine's operations on PostgreSQL on the server for tests. SERVER must be set to its folder before.
source "${repo:?}/setup/lib/machines/machine.sh"
source "$repo/setup/lib/machines/backups.sh"
source "$repo/setup/lib/local/postgres.sh"
source "$repo/tests/vms/checks.sh"

# as_administrator COMMAND…: replaces the function of machines/postgres.sh, since this server has no Unix socket.
as_administrator() {
    env "${superuser_session[@]}" PGHOST=127.0.0.1 PGUSER=postgres PGPASSFILE="${server:?}/pgpass" \
        PATH="$(postgres_programs "$server"):$PATH" "$@"
}
