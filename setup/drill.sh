#!/usr/bin/env bash
# The drill: orders are placed, and movies read and changed, without a pause while whatever they
# pass is killed, stopped or cut off, and at the end the books are compared. On servers of its own,
# which are gone afterwards.
# shellcheck source-path=SCRIPTDIR/..
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source "$repo/setup/lib/servers.sh"
source "$repo/setup/lib/test_servers.sh"

usage() {
    cat <<'USAGE'
Places orders, and reads and changes movies, without a pause while programs are killed, servers
stopped and links cut, and fails if an order that was answered 200 is not recorded exactly once, or
if a movie is not linearizable.

  setup/drill.sh [FAULTS [SEED]]   at least so many faults (24) and 50,000 orders, some five
                                   minutes; the same SEED gives the same order of faults
  setup/drill.sh help | version
USAGE
}

main() {
    answer_help_and_version "$@"
    case ${1:-} in
        fault) fault "$2" >>"$DRILL_FOLDER/faults.log" 2>&1 ;;
        *)
            [[ ${1:-24} =~ ^[1-9][0-9]*$ && ${2:-1} =~ ^[0-9]+$ && $# -le 2 ]] ||
                wrong_usage 'FAULTS and SEED are whole numbers'
            drill "${1:-24}" "${2:-$RANDOM}"
            ;;
    esac
}

# drill FAULTS SEED
drill() {
    local missing
    require_debian
    mapfile -t missing < <(lacking_basics && lacking_servers)
    install_packages "${missing[@]}"
    install_rust
    cd "$repo"
    step 'Build the programs' cargo build --release --locked --package=gateway \
        --package=inventory --package=billing --package=e2e

    DRILL_FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/crud-master-drill-XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    DRILL_PORT=''
    claim_ports DRILL_PORT 5
    test_servers_start "$DRILL_FOLDER" "$DRILL_PORT"
    export DRILL_FOLDER DRILL_PORT TEST_ENV_FILE=$DRILL_FOLDER/test.env

    heading "The drill: $1 faults, in the order of seed $2"
    local programs=${CARGO_TARGET_DIR:-target}/release
    "$programs/drill" "$repo/setup/drill.sh" "$programs" "$1" 50000 "$2"
}

clean_up() {
    trap '' INT TERM HUP
    test_servers_remove "$DRILL_FOLDER"
    give_ports_back
}

# fault NAME: what the drill asks for, with the servers of the drill that runs.
fault() {
    local postgres rabbitmq=$DRILL_FOLDER/rabbitmq
    postgres=$(readlink -f "$DRILL_FOLDER/postgres")
    case $1 in
        stop-postgres) postgres_stop "$postgres" immediate ;;
        kill-postgres) kill -KILL "$(postgres_pid "$postgres")" ;;
        start-postgres) test_postgres_start "$DRILL_FOLDER" "$DRILL_PORT" ;;
        stop-rabbitmq) rabbitmq_stop "$rabbitmq" ;;
        kill-rabbitmq) rabbitmq_stop "$rabbitmq" KILL ;;
        start-rabbitmq) test_rabbitmq_start "$DRILL_FOLDER" "$DRILL_PORT" ;;
        disk-alarm) rabbitmq_run "$rabbitmq" rabbitmqctl -q set_disk_free_limit 100000GB ;;
        no-disk-alarm) rabbitmq_run "$rabbitmq" rabbitmqctl -q set_disk_free_limit 50MB ;;
        *) die "there is no fault called $1" ;;
    esac
}

main "$@"
