#!/usr/bin/env bash
# Replaces this machine's database with a backup, on the inventory or the billing machine, as root. The former database
# is kept under another name.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"
source "$repo/setup/lib/machines/backups.sh"

usage() {
    cat <<'USAGE'
Replaces this machine's database with a backup.

  sudo setup/restore.sh FILE [--newer-orders]
  setup/restore.sh help | version

The programs are stopped only while the databases are renamed. Orders that are placed meanwhile
wait in RabbitMQ and are recorded afterwards. With --newer-orders, the script copies the orders and
dead letters that the backup lacks from the former database; without it they are only in that one.
USAGE
}

main() {
    local file=${1:-} newer=${2:-} former
    answer_help_and_version "$@"
    if [[ -z $file || $file == -* || ${newer:---newer-orders} != --newer-orders ]] || (($# > 2)); then
        wrong_usage 'the script takes the file of a backup'
    fi
    [[ -r $file ]] || die "$file cannot be read: name a file that setup/backup.sh has written, and run this as root"
    use_machine_database
    [[ -z $newer || ${apps[0]} == billing-api ]] || die 'only the billing machine has orders: leave --newer-orders out here'
    former=${database}_before_$(date -u +%Y%m%dT%H%M%SZ)

    step "Restore into ${database}_restored" fill_new_database "${database}_restored" "$file"
    note "$(rows "${database}_restored" | paste -sd ' ')"
    # The programs are started again even if a later step fails.
    trap 'pm2 start "${apps[@]}" >/dev/null' EXIT
    step "Stop ${apps[*]}" pm2 stop "${apps[@]}"
    step "Keep the former database as $former" exchange "$former"
    [[ -z $newer ]] || step 'Copy the orders that the backup lacks' take_over_orders "$former"
    trap - EXIT
    step "Start ${apps[*]}" pm2 start "${apps[@]}"
    wait_until_healthy
    if [[ -n $newer ]] && has_table "$former" dead_letters; then
        step 'Wait for the table of dead letters' wait_for_dead_letters
        step 'Copy the dead letters that the backup lacks' take_over_dead_letters "$former"
    fi
    say "Done: $database has"
    note "$(rows "$database" | paste -sd ' ')"
    note "When the former database is no longer needed: sudo -u postgres dropdb $former"
}

# wait_for_dead_letters: an old backup has no table of dead letters; the programs make it when they start.
wait_for_dead_letters() {
    local deadline=$((SECONDS + 60))
    until has_table "$database" dead_letters; do
        ((SECONDS < deadline)) || die "the programs have made no table of dead letters in $database: the cause is in their log"
        sleep 0.2
    done
}

main "$@"
