#!/usr/bin/env bash
# The drill: clients place orders, and read and change movies, without a pause while programs and servers are killed,
# stopped or cut off. At the end the drill compares the answers with the tables. It starts servers of its own and
# removes them afterwards.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"
source "$repo/setup/lib/local/test_servers.sh"

usage() {
    cat <<'USAGE'
The drill places orders among unreadable messages, and reads and changes movies, without a pause while
programs are killed, servers stopped, connections cut, tables locked, disks filled, rights revoked and the
gateway flooded with requests that it refuses. It fails if an order that was answered 200 is not recorded
exactly once, an unreadable message is not exactly one dead letter, a consumer's /ready is wrong, or a
movie is not linearizable.

  setup/drill.sh [FAULTS [SEED]]   at least FAULTS faults (24) and 50,000 orders, for some eight
                                   minutes; SEED determines the order of the faults
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

    DRILL_FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/crud-master-drill-XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    step 'Build the programs' cargo_build "$DRILL_FOLDER" --release --package=gateway \
        --package=inventory --package=billing --package=e2e
    DRILL_PORT=''
    claim_ports DRILL_PORT 5
    test_servers_start "$DRILL_FOLDER" "$DRILL_PORT"
    export DRILL_FOLDER DRILL_PORT TEST_ENV_FILE=$DRILL_FOLDER/test.env

    heading "The drill: $1 faults, in the order of seed $2"
    "$DRILL_FOLDER/programs/drill" "$repo/setup/drill.sh" "$DRILL_FOLDER/programs" "$1" 50000 "$2" || {
        rabbitmqctl list_policies || true
        rabbitmqctl list_queues name policy messages_ready messages_unacknowledged || true
        return 1
    }
}

clean_up() {
    local disk
    trap '' INT TERM HUP
    rabbitmq_stop "$DRILL_FOLDER/rabbitmq" KILL
    postgres_stop "$DRILL_FOLDER/postgres" || true
    for disk in "$DRILL_FOLDER"/{tablespace,small-disk}; do
        ! mountpoint --quiet "$disk" || umount "$disk"
    done
    test_servers_remove "$DRILL_FOLDER"
    give_ports_back
}

# fault NAME: injects or ends a fault in the servers of the running drill, which calls this script.
fault() {
    local postgres rabbitmq=$DRILL_FOLDER/rabbitmq
    postgres=$(postgres_home "$DRILL_FOLDER/postgres")
    case $1 in
        stop-postgres) postgres_stop "$postgres" QUIT ;;
        kill-postgres) kill -KILL "$(postgres_pid "$postgres")" ;;
        start-postgres) test_postgres_start "$DRILL_FOLDER" "$DRILL_PORT" ;;
        hang-commits) sql "ALTER SYSTEM SET synchronous_standby_names = 'nowhere'; SELECT pg_reload_conf();" ;;
        no-hang-commits) sql 'ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf();' ;;
        make-tablespace) make_tablespace ;;
        make-small-disk) make_small_disk ;;
        fill-tablespace) fill_tablespace ;;
        no-fill-tablespace) rm "$DRILL_FOLDER/tablespace/filler" ;;
        stop-rabbitmq) rabbitmq_stop "$rabbitmq" ;;
        # RabbitMQ answers that a queue is declared, or a policy cleared, up to two seconds before that is on its
        # disk. Without the sync it could forget a queue with orders that it has confirmed.
        kill-rabbitmq) rabbitmqctl eval 'mnesia:sync_log().' && rabbitmq_stop "$rabbitmq" KILL ;;
        start-rabbitmq) test_rabbitmq_start "$DRILL_FOLDER" "$DRILL_PORT" ;;
        disk-alarm) rabbitmqctl set_disk_free_limit 100000GB ;;
        no-disk-alarm) rabbitmqctl set_disk_free_limit 50MB ;;
        memory-alarm) rabbitmqctl set_vm_memory_high_watermark absolute 1MB ;;
        no-memory-alarm) rabbitmqctl set_vm_memory_high_watermark 0.4 ;;
        refuse-orders) rabbitmqctl set_policy refuse '.*' '{"max-length":0,"overflow":"reject-publish"}' ;;
        no-refuse-orders) rabbitmqctl clear_policy refuse ;;
        kill-servers) fault kill-postgres && fault kill-rabbitmq ;;
        start-servers) fault start-rabbitmq && fault start-postgres ;;
        *) die "there is no fault called $1" ;;
    esac
}

rabbitmqctl() {
    rabbitmq_run "$DRILL_FOLDER/rabbitmq" rabbitmqctl -q "$@"
}

# sql STATEMENTS: runs them as the administrator, in the database of the tests.
sql() {
    printf '\\connect tests\n%s\n' "$1" |
        postgres_sql "$(postgres_home "$DRILL_FOLDER/postgres")" "$DRILL_PORT"
}

# make_tablespace: makes a tablespace on a disk of its own, which only root can do. The orders move there when it is
# filled for the first time.
make_tablespace() {
    local place=$DRILL_FOLDER/tablespace
    install -d "$place" && mount -t tmpfs -o size=512m tmpfs "$place" || return 1
    install -d -m 700 -o postgres -g postgres "$place/small"
    sql "CREATE TABLESPACE small LOCATION '$place/small'; GRANT CREATE ON TABLESPACE small TO tests;"
}

# make_small_disk: makes a disk for the log of a gateway that is flooded.
make_small_disk() {
    install -d "$DRILL_FOLDER/small-disk" && mount -t tmpfs -o size=4m tmpfs "$DRILL_FOLDER/small-disk"
}

# fill_tablespace: fills the disk to the last block, so that the table cannot grow.
fill_tablespace() {
    sql "SELECT format('ALTER TABLE %I.orders SET TABLESPACE small', schemaname) FROM pg_tables
          WHERE tablename = 'orders' AND tablespace IS NULL \\gexec"
    dd if=/dev/zero of="$DRILL_FOLDER/tablespace/filler" bs=4k status=none || true
}

main "$@"
