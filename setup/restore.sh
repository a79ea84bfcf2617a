#!/usr/bin/env bash
# Puts a backup in the place of this machine's database. On the inventory or the billing machine,
# as root. What was there before is kept under another name.
# shellcheck source-path=SCRIPTDIR/..
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
source "$repo/setup/lib/machine.sh"

usage() {
    cat <<'USAGE'
Puts a backup in the place of this machine's database.

  sudo setup/restore.sh FILE [--newer-orders]
  setup/restore.sh help | version

The programs are stopped only while the databases change names. Orders that are placed meanwhile
wait in RabbitMQ and are recorded afterwards. With --newer-orders, the orders that were recorded
since the backup are taken over from the former database; without it they are only in there.
USAGE
}

main() {
    local file=${1:-} newer=${2:-} former
    answer_help_and_version "$@"
    if [[ -z $file || $file == -* || ${newer:---newer-orders} != --newer-orders ]] || (($# > 2)); then
        wrong_usage 'it takes the file of a backup'
    fi
    [[ -r $file ]] || die "$file cannot be read: name a file that setup/backup.sh has written, and be root"
    use_machine_database
    [[ -z $newer || ${apps[0]} == billing-api ]] || die 'only the billing machine has orders: leave --newer-orders out here'
    former=${database}_before_$(date -u +%Y%m%dT%H%M%SZ)

    step "Restore into ${database}_restored" fill_new_database "${database}_restored" "$file"
    note "$(rows "${database}_restored" | paste -sd ' ')"
    # Whatever goes wrong from here on, the programs come back.
    trap 'pm2 start "${apps[@]}" >/dev/null' EXIT
    step "Stop ${apps[*]}" pm2 stop "${apps[@]}"
    step "Keep the former database as $former" exchange "$former"
    [[ -z $newer ]] || step 'Take over the orders that were recorded since the backup' take_over_newer "$former"
    trap - EXIT
    step "Start ${apps[*]}" pm2 start "${apps[@]}"
    wait_until_healthy
    say "Done: $database holds"
    note "$(rows "$database" | paste -sd ' ')"
    note "When nothing of the former one is missed: sudo -u postgres dropdb $former"
}

# exchange FORMER: both renamings or none; somebody may look at the database at this moment.
exchange() {
    administrator_psql <<SQL
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname IN ($(sql_text "$database"), $(sql_text "${database}_restored")) \g /dev/null
BEGIN;
ALTER DATABASE $(sql_name "$database") RENAME TO $(sql_name "$1");
ALTER DATABASE $(sql_name "${database}_restored") RENAME TO $(sql_name "$database");
COMMIT;
SQL
}

# take_over_newer FORMER: under the numbers that their owners may know. The next order gets a
# number after all of them.
take_over_newer() {
    local columns='id, message_id, user_id, number_of_items, total_amount, created_at' last
    last=$(administrator_psql --dbname="$database" --tuples-only --no-align \
        --command='SELECT coalesce(max(id), 0) FROM orders')
    administrator_psql --dbname="$1" \
        --command="COPY (SELECT $columns FROM orders WHERE id > $last) TO STDOUT" |
        administrator_psql --dbname="$database" \
            --command='CREATE TEMPORARY TABLE newer (LIKE orders)' \
            --command="COPY newer ($columns) FROM STDIN" \
            --command="INSERT INTO orders ($columns) OVERRIDING SYSTEM VALUE SELECT * FROM newer
                       ON CONFLICT DO NOTHING" \
            --command="SELECT setval(pg_get_serial_sequence('orders', 'id'), max(id)) FROM orders"
}

main "$@"
