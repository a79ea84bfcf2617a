#!/usr/bin/env bash
# Makes a backup of this machine's database in PostgreSQL's custom format, and restores it as a test, on the inventory
# or the billing machine, as root. The programs continue to work meanwhile.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"
source "$repo/setup/lib/machines/backups.sh"

usage() {
    cat <<USAGE
Makes a backup of this machine's database.

  sudo setup/backup.sh [FOLDER]     into FOLDER (/var/backups/crud-master)
  setup/backup.sh help | version

Each backup is restored into a database of its own as a test. The newest $backups_kept backups are kept.
A backup does not contain orders that wait in RabbitMQ; docs/OPERATIONS.md describes how to move them.
USAGE
}

main() {
    local folder=${1:-/var/backups/crud-master}
    answer_help_and_version "$@"
    if (($# > 1)) || [[ $folder == -* ]]; then
        wrong_usage 'the script takes at most one folder'
    fi
    [[ $folder == /* ]] || folder=$PWD/$folder
    use_machine_database
    install -d -m 700 "$folder"
    umask 077
    file=$folder/$database-$(date -u +%Y%m%dT%H%M%SZ).dump
    trap 'rm -f "$file.part"' EXIT
    step "Back up $database" dump_database "$file.part"
    step "Restore it into ${database}_check, as a test" fill_new_database "${database}_check" "$file.part"
    note "$(rows "${database}_check" | paste -sd ' ')"
    drop_database "${database}_check"
    mv "$file.part" "$file"
    remove_old_backups "$folder"
    say "Done: $file, $(stat -c %s "$file") bytes"
}

main "$@"
