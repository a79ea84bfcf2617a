#!/usr/bin/env bash
# Provisions the gateway machine with api-gateway, as root, on Debian or Ubuntu. The script can be run again at any
# time.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"

usage() {
    cat <<'USAGE'
Provisions the gateway machine with api-gateway.

  sudo bash setup/gateway.sh     on Debian or Ubuntu, with systemd; again at any time
  setup/gateway.sh help | version

The settings come from .env and from .env.local, which overrides it. vagrant up runs this script.
USAGE
}

main() {
    take_no_arguments "$@"
    begin_machine gateway api-gateway
    # shellcheck disable=SC2119 # it needs only the packages of all machines
    provide_basics
    provide_firewall "tcp dport ${SETTINGS[API_GATEWAY_PORT]} accept"
    provide_programs api-gateway
    provide_apps
    end_machine
}

main "$@"
