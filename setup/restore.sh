#!/usr/bin/env bash
# Puts a backup in the place of this machine's database. On the inventory or the billing machine,
# as root. What was there before is kept under another name.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"
source "$repo/setup/lib/machines/backups.sh"

usage() {
    cat <<'USAGE'
Puts a backup in the place of this machine's database.

  sudo setup/restore.sh FILE [--newer-orders]
  setup/restore.sh help | version

The programs are stopped only while the databases change names. Orders that are placed meanwhile
wait in RabbitMQ and are recorded afterwards. With --newer-orders, the orders and dead letters that
the backup lacks are taken over from the former database; without it they are only in there.
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
    [[ -z $newer ]] || step 'Take over the orders that the backup lacks' take_over_orders "$former"
    trap - EXIT
    step "Start ${apps[*]}" pm2 start "${apps[@]}"
    wait_until_healthy
    if [[ -n $newer ]] && has_table "$former" dead_letters; then
        step 'Wait for the table of dead letters' wait_for_dead_letters
        step 'Take over the dead letters that the backup lacks' take_over_dead_letters "$former"
    fi
    say "Done: $database holds"
    note "$(rows "$database" | paste -sd ' ')"
    note "When nothing of the former one is missed: sudo -u postgres dropdb $former"
}

# wait_for_dead_letters: a backup from before there was such a table gets it when the programs start.
wait_for_dead_letters() {
    local deadline=$((SECONDS + 60))
    until has_table "$database" dead_letters; do
        ((SECONDS < deadline)) || die "the programs have made no table of dead letters in $database: their log says why"
        sleep 0.2
    done
}

main "$@"
