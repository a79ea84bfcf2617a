#!/usr/bin/env bash
# The test of the deployment: makes three machines by the project's own Vagrantfile, from nothing to a running platform,
# and repeats what happens to machines in operation.
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
here=$repo/tests/vms
source "$repo/setup/lib/common/say.sh"
source "$repo/setup/lib/common/usage.sh"
source "$repo/setup/lib/local/readme.sh"
source "$repo/tests/vms/checks.sh"

lab=${VMLAB:-${TMPDIR:-/tmp}/crud-master-vms}
export VMLAB=$lab
# The folder of vagrant is a copy, since the test writes new passwords into it.
project=$lab/project

usage() {
    cat <<'USAGE'
Tests the deployment, on a Debian machine, as root.

  tests/vms/run.sh                  runs the whole test and removes the machines
  tests/vms/run.sh up               makes the machines and leaves them running
  tests/vms/run.sh check            checks running machines
  tests/vms/run.sh vagrant ARG…     runs vagrant for them
  tests/vms/run.sh exec MACHINE…    runs a command as root on gateway, inventory or billing
  tests/vms/run.sh down             removes the machines
  tests/vms/run.sh help | version

VMLAB names the folder (/tmp/crud-master-vms), RELEASE the Debian of the machines (bookworm).
Ports 5000, 8080, 8081 and 15672 must be free. The first machine builds the programs, which are
kept in dist/, as with every vagrant up; if dist/ has programs of these sources already, no machine
builds. With KEEP=1 the machines are left running when a command of the README fails.
USAGE
}

main() {
    answer_help_and_version "$@"
    case ${1:-} in
        '') everything ;;
        up) bring_up ;;
        check) use_running && all_checks && sum_up ;;
        vagrant) use_running && vagrant "${@:2}" ;;
        exec) use_running && on "${@:2}" ;;
        down) take_down ;;
        *) wrong_usage "there is no command $1" ;;
    esac
}

everything() {
    take_lab
    [[ -n ${KEEP:-} ]] || trap take_down EXIT
    trap 'exit 130' INT TERM HUP
    prepare

    part 'The README, from vagrant up' the_readme
    part 'All checks' all_checks
    part 'vagrant provision, with nothing to do' provisioning_again_changes_nothing
    part 'All checks' all_checks
    for machine in "${machines[@]}"; do
        part "Reboot $machine-vm" reboot "$machine"
    done
    part 'A stopped program, and one that was started again' states_survive_a_reboot
    part 'A power failure of all machines' power_failure
    part 'All checks' all_checks
    part 'Programs, servers and PM2 are killed' everything_comes_back
    part 'New passwords' new_passwords
    part 'All checks, with the new passwords' all_checks
    part 'Backup and restore' backups_bring_back
    part 'Dead letters' dead_letters_are_dealt_with
    part 'Logs' logs_are_found_and_rotated
    part 'Memory' memory
    part 'vagrant destroy' destroyed
    sum_up
}

# The lab

# take_lab: takes a lock on the folder, since two runs at the same time would end each other's machines.
take_lab() {
    ((EUID == 0)) || die 'the test makes containers and networks: run it as root'
    mkdir -p "$lab"
    exec {lab_lock}<"$lab"
    flock --nonblock "$lab_lock" || die "another run works in $lab, or has left machines there: wait for it, or remove them with tests/vms/run.sh down"
}

prepare() {
    install_what_is_missing
    [[ -e $lab/base-${RELEASE:-bookworm} ]] ||
        step 'Make the base image' make_base "$lab/base-${RELEASE:-bookworm}"
    ln -sfnT "base-${RELEASE:-bookworm}" "$lab/base"
    "$here/lab.sh" netdown 2>/dev/null || true
    "$here/lab.sh" net
    copy_project
    rm -f "$lab"/*.log
}

install_what_is_missing() {
    local packages=(mmdebstrap slirp4netns vagrant rsync openssh-client netcat-openbsd iproute2 curl python3)
    dpkg --status "${packages[@]}" >/dev/null 2>&1 || step "Install ${packages[*]}" install_lab_packages
}

install_lab_packages() {
    apt-get update --quiet || true
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${packages[@]}"
}

make_base() {
    rm -rf "$1.new"
    "$here/base.sh" "$1.new" "${RELEASE:-bookworm}"
    mv "$1.new" "$1"
}

# copy_project: copies the files that git would commit, and dist/.
copy_project() {
    rm -rf "$project"
    mkdir -p "$project"
    (cd "$repo" && git ls-files -z --cached --others --exclude-standard | xargs -0 tar -cf - --ignore-failed-read) |
        tar -C "$project" -xf -
    rm -f "$project/.env.local"
    [[ ! -d $repo/dist ]] || cp -r "$repo/dist" "$project/dist"
}

bring_up() {
    take_lab
    prepare
    vagrant up
}

use_running() {
    [[ -d $project ]] || die 'there are no machines: make them with tests/vms/run.sh up'
}

take_down() {
    trap '' INT TERM HUP
    local machine
    for machine in "${machines[@]}"; do
        [[ ! -d $lab/machines/$machine-vm ]] || "$here/lab.sh" destroy "$machine-vm" || true
    done
    "$here/lab.sh" netdown 2>/dev/null || true
    rm -rf "$project" "$lab/vagrant" "$lab/machines"
}

# vagrant ARGUMENT…: runs vagrant and keeps its output, in which the test searches for secrets.
vagrant() (
    cd "$project"
    "$here/vagrant" "$@" 2>&1 | tee -a "$lab/vagrant.log"
)

# The parts

times=()

# part TITLE COMMAND…: runs a part of the test.
part() {
    local started=$SECONDS before=$passed
    heading "$1"
    "${@:2}"
    times+=("$(printf '%5d s  %3d checks  %s' $((SECONDS - started)) $((passed - before)) "$1")")
}

# the_readme: runs the README's section on VMs, then its tour on the machines.
the_readme() {
    if ! (cd "$project" && run_tour README.md vms); then
        die 'README.md: the commands of the section "Deploy to VMs" fail'
    fi
    # Vagrant in this checkout would leave dist/ too; with it the next run need not build.
    cp -r "$project/dist" "$repo"
    # The tour expects a new platform.
    is 'the movies can be emptied' 200 status http://localhost:5000/api/movies --request DELETE
    on inventory sudo -i -u postgres psql movies_db -qc 'ALTER TABLE movies ALTER id RESTART'
    (cd "$project" && run_tour README.md tour 'setup/local.sh pm2=on billing pm2' \
        'setup/local.sh psql billing_db=on billing sudo -i -u postgres psql billing_db') ||
        die 'README.md: the commands of the tour fail'
    passed=$((passed + 2))
}

pids() {
    local machine
    for machine in "${machines[@]}"; do
        on "$machine" bash -c "pgrep -f '^/opt/crud-master/bin|^/var/lib/crud-master/programs|beam.smp|God Daemon|bin/postgres -D'" | paste -sd ' '
    done
}

provisioning_again_changes_nothing() {
    local before machine
    before=$(pids)
    is 'it succeeds' 0 exit_of vagrant provision
    for machine in "${machines[@]}"; do
        is "$machine does not need a HOME" 0 exit_of on "$machine" env -u HOME bash "/vagrant/setup/$machine.sh"
    done
    is 'no program and no server was restarted' "$before" pids
}

reboot() {
    "$here/lab.sh" reboot "$1-vm"
    programs_are_online
    orders_survive_a_stopped_consumer
    only_what_is_meant_to_be_open_is_open
}

states_survive_a_reboot() {
    on billing pm2 stop billing-api --silent >/dev/null
    "$here/lab.sh" reboot billing-vm
    is 'what was stopped stays stopped' 'billing-api=stopped billing-consumer=online' apps_of billing
    on billing pm2 start billing-api --silent >/dev/null
    "$here/lab.sh" reboot billing-vm
    is 'what was started again comes back' 'billing-api=online billing-consumer=online' apps_of billing
    programs_are_online
}

# power_failure: ends all machines without a shutdown, with orders in the queue, and starts them at the same time.
power_failure() {
    local machine user=power-$RANDOM starts=()
    on billing pm2 stop billing-consumer --silent >/dev/null
    is 'an order is taken while the consumer is stopped' 200 place_order "$user"
    on billing pm2 start billing-consumer --silent >/dev/null
    for machine in "${machines[@]}"; do
        "$here/lab.sh" cut "$machine-vm"
    done
    for machine in "${machines[@]}"; do
        "$here/lab.sh" start "$machine-vm" &
        starts+=("$!")
    done
    wait "${starts[@]}"
    programs_are_online
    becomes 'the order that was taken is recorded, once' 1 orders_of "$user"
}

everything_comes_back() {
    on gateway pkill -KILL -x api-gateway
    on inventory pkill -KILL -x inventory-api
    programs_are_online
    on gateway pkill -KILL -f 'God Daemon'
    becomes 'PM2 comes back with its list' api-gateway=online apps_of gateway
    is 'and no program runs twice' 'api-gateway api-gateway' users_of gateway
    # shellcheck disable=SC2016 # for the other shell
    on inventory bash -c 'kill -KILL "$(head -n 1 /var/lib/postgresql/*/main/postmaster.pid)"'
    on billing pkill -KILL -f beam.smp
    becomes 'orders are taken again' 200 place_order "killed-$RANDOM"
    programs_are_online
    movies_go_from_creation_to_end
    orders_survive_a_stopped_consumer
}

new_passwords() {
    local old_postgres old_broker
    old_postgres=$(setting POSTGRES_PASSWORD)
    old_broker=$(setting RABBITMQ_USER):$(setting RABBITMQ_PASSWORD)
    is 'setup/secrets.sh makes them' 0 exit_of "$project/setup/secrets.sh"
    is 'they are for the eyes of their owner' 600 stat -c %a "$project/.env.local"
    is 'vagrant provision takes them up' 0 exit_of vagrant provision
    becomes 'everything is ready' '200 200 200' ready
    is 'the broker refuses the old one' 401 broker "$old_broker" GET overview
    is 'PostgreSQL refuses the old one' refused old_password_at inventory movies_db "$old_postgres"
    is 'on both machines' refused old_password_at billing billing_db "$old_postgres"
    is 'nothing warns any longer' '' grep_last_provisioning WARNING
}

old_password_at() {
    # shellcheck disable=SC2016 # for the other shell
    on "$1" bash -c 'PGPASSWORD=$0 psql --host=127.0.0.1 --username=crud_master --dbname="$1" -c "SELECT 1" 2>&1 |
        grep -q "password authentication failed" && echo refused' "$3" "$2"
}

grep_last_provisioning() {
    tac "$lab/vagrant.log" | sed '/Running action triggers before provision/q' | grep "$1"
}

backups_bring_back() {
    local id user=backup-$RANDOM dump
    id=$(said id http://localhost:5000/api/movies "${json[@]}" --data '{"title": "Kept", "description": "In the backup"}')
    is 'an order is taken' 200 place_order "$user"
    becomes 'and recorded' 1 orders_of "$user"
    is 'the movies are backed up' 0 exit_of on inventory bash /vagrant/setup/backup.sh
    is 'the orders are backed up' 0 exit_of on billing bash /vagrant/setup/backup.sh
    is 'the movies are lost' 200 status http://localhost:5000/api/movies --request DELETE
    is 'another order is taken' 200 place_order "$user"
    becomes 'and recorded, after the backup' 2 orders_of "$user"

    dump=$(on inventory bash -c 'ls /var/backups/crud-master/movies_db-*.dump')
    is 'the movies are restored' 0 exit_of on inventory bash /vagrant/setup/restore.sh "$dump"
    is 'the lost one is back' Kept said title "http://localhost:5000/api/movies/$id"
    dump=$(on billing bash -c 'ls /var/backups/crud-master/billing_db-*.dump')
    is 'the orders are restored' 0 exit_of on billing bash /vagrant/setup/restore.sh "$dump" --newer-orders
    is 'with those since the backup' 2 orders_of "$user"
    is 'an order is taken after the restore' 200 place_order "$user"
    becomes 'and recorded' 3 orders_of "$user"
    is 'no database of the checks is left' '' leftovers
    programs_are_online
}

dead_letters_are_dealt_with() {
    local user
    user="$(setting RABBITMQ_USER):$(setting RABBITMQ_PASSWORD)"
    is 'nonsense can be published' 200 broker "$user" POST exchanges/%2F/amq.default/publish \
        '{"routing_key": "billing_queue", "payload": "no order", "payload_encoding": "string", "properties": {}}'
    becomes 'it is put aside' '1 of 1 dead letters' dead_letters list
    is 'it can be thrown away' 0 exit_of on billing billing-dead-letters drop "$(oldest_dead_letter)"
    is 'and is gone' '0 of 0 dead letters' dead_letters list
}

dead_letters() {
    on billing billing-dead-letters "$@" | tail -n 1
}

oldest_dead_letter() {
    on billing billing-dead-letters list --limit 1 | awk 'NR == 1 { print $1 }'
}

logs_are_found_and_rotated() {
    one_request_is_found_on_its_way
    on gateway logrotate --force /etc/logrotate.d/crud-master
    is 'the former log is kept' 0 exit_of on gateway test -s /var/log/crud-master/api-gateway.log.1
    one_request_is_found_on_its_way
    is 'nobody but the administrators reads the logs' '750 root adm' on gateway stat -c '%a %U %G' /var/log/crud-master
}

one_request_is_found_on_its_way() {
    local id=request-$RANDOM-$RANDOM
    is 'a request is answered' 200 status http://localhost:5000/api/movies --header "X-Request-Id: $id"
    becomes 'it is in the log of the gateway' 1 lines_with gateway "$id"
    becomes 'and under the same id in that of the inventory' 1 lines_with inventory "$id"
}

lines_with() {
    on "$1" bash -c "cat /var/log/crud-master/*.log | grep -cF '$2'"
}

leftovers() {
    local machine
    for machine in inventory billing; do
        on "$machine" sudo -i -u postgres psql -Atc "SELECT datname FROM pg_database WHERE datname ~ '_(check|restored)$'"
    done
}

destroyed() {
    is 'it succeeds' 0 exit_of vagrant destroy --force
    is 'and leaves no machine' 3 not_created
}

not_created() {
    vagrant status --machine-readable | grep -c ',state,not_created'
}

sum_up() {
    heading 'Times'
    printf '%s\n' "${times[@]}"
    if ((${#failures[@]} > 0)); then
        heading 'Failed'
        printf '         %s\n' "${failures[@]}"
    fi
    echo "$passed passed, ${#failures[@]} failed"
    ((${#failures[@]} == 0))
}

main "$@"
