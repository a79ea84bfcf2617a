#!/usr/bin/env bash
# Provisions the inventory machine with PostgreSQL, which has the movies, and inventory-api, as root, on Debian or
# Ubuntu. The script can be run again at any time.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"

usage() {
    cat <<'USAGE'
Provisions the inventory machine with PostgreSQL, which has the movies, and inventory-api.

  sudo bash setup/inventory.sh     on Debian or Ubuntu, with systemd; again at any time
  setup/inventory.sh help | version

The settings come from .env and from .env.local, which overrides it. vagrant up runs this script.
USAGE
}

main() {
    take_no_arguments "$@"
    begin_machine inventory inventory-api
    provide_basics "$(lacking_postgres)"
    provide_firewall "$(to_service INVENTORY_API_PORT)"
    # The programs come first, since a build needs memory that the server would take.
    provide_programs inventory-api
    provide_postgres INVENTORY_DB_NAME
    provide_apps
    end_machine
}

main "$@"
