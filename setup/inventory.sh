#!/usr/bin/env bash
# Provisions the inventory machine: PostgreSQL with the movies, and inventory-api before it. As
# root, on Debian or Ubuntu; can be run again at any time.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"

usage() {
    cat <<'USAGE'
Provisions the inventory machine: PostgreSQL with the movies, and inventory-api before it.

  sudo bash setup/inventory.sh     on Debian or Ubuntu, with systemd; again at any time
  setup/inventory.sh help | version

Settings come from .env, and over it from .env.local. vagrant up runs this by itself.
USAGE
}

main() {
    take_no_arguments "$@"
    begin_machine inventory inventory-api
    provide_basics "$(lacking_postgres)"
    provide_firewall "$(to_service INVENTORY_API_PORT)"
    # Before the server has its memory, in case it is built here.
    provide_programs inventory-api
    provide_postgres INVENTORY_DB_NAME
    provide_apps
    end_machine
}

main "$@"
