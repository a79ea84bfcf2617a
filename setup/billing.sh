#!/usr/bin/env bash
# Provisions the billing machine with RabbitMQ, which has the orders that wait, PostgreSQL, which has the recorded
# orders, billing-consumer, which records them, and billing-api, which lists them, as root, on Debian or Ubuntu. The
# script can be run again at any time.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"

usage() {
    cat <<'USAGE'
Provisions the billing machine with RabbitMQ, PostgreSQL, billing-consumer and billing-api.

  sudo bash setup/billing.sh     on Debian or Ubuntu, with systemd; again at any time
  setup/billing.sh help | version

The settings come from .env and from .env.local, which overrides it. vagrant up runs this script.
USAGE
}

main() {
    local to_orders=()
    take_no_arguments "$@"
    begin_machine billing billing-api billing-consumer
    provide_basics "$(lacking_postgres)" "$(lacking_rabbitmq)"
    [[ -n ${SETTINGS[API_KEYS_FILE]:-} ]] ||
        to_orders=("ip saddr != { ${SETTINGS[GATEWAY_VM_IP]}, ${SETTINGS[INVENTORY_VM_IP]} } tcp dport ${SETTINGS[BILLING_API_PORT]} accept")
    provide_firewall "$(from_monitoring BILLING_API_PORT BILLING_CONSUMER_PORT)" \
        "ip saddr ${SETTINGS[GATEWAY_VM_IP]} tcp dport { ${SETTINGS[RABBITMQ_PORT]}, ${SETTINGS[BILLING_API_PORT]}, ${SETTINGS[BILLING_CONSUMER_PORT]} } accept" \
        "${to_orders[@]}" "$(from_host "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}")"
    # The programs come first, since a build needs memory that the servers would take.
    provide_programs billing-api billing-consumer -- billing-dead-letters
    provide_postgres BILLING_DB_NAME POSTGRES_READER_USER
    provide_rabbitmq
    provide_operator_program billing-dead-letters billing-consumer
    provide_apps
    warn_of_lossy_policies
    end_machine
}

main "$@"
