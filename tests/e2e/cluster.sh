#!/usr/bin/env bash
# Runs a RabbitMQ cluster of three nodes on this machine, the gateway and the consumer, and a load of orders, while each
# node in turn is killed and started again. At the end every order that was answered 200 must be recorded exactly once.
# The script removes everything afterwards.
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"

nodes=(1 2 3)
workers=4
# How many answers come between one event and the next.
orders_between=500

usage() {
    cat <<'USAGE'
Places orders through a RabbitMQ cluster of three nodes on this machine, while each node in turn is
killed, and checks that every order that was answered 200 is recorded exactly once. This takes some
minutes; the script removes everything afterwards.

  tests/e2e/cluster.sh
  tests/e2e/cluster.sh help | version
USAGE
}

main() {
    take_no_arguments "$@"
    cd "$repo"
    folder=$(mktemp -d "${TMPDIR:-/tmp}/crud-master-cluster-XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    chmod 711 "$folder" # PostgreSQL runs as another user, who must reach its folder
    first_port=''
    claim_ports first_port 16

    step 'Build the gateway and the consumer' cargo_build "$folder" -p gateway -p billing
    step 'Start PostgreSQL' postgres_start "$folder/postgres" "$first_port" 'max_connections = 50'
    step 'Make the database' make_database
    step 'Start three nodes of RabbitMQ' start_nodes
    step 'Make them a cluster' join_nodes
    step 'Start the gateway and the consumer' start_programs
    start_load
    for node in "${nodes[@]}"; do
        await_orders "before node $node is killed"
        kill -KILL "$(rabbitmq_pid "$folder/node$node")"
        say "Node $node is killed"
        await_orders "while node $node is away"
        step "Node $node comes back" start_node "$node"
        step 'Its queues catch up' await_quorum
    done
    await_orders 'with all nodes'
    stop_load
    check
}

make_database() {
    password=$(random_secret)
    {
        sql_role cluster "$password"
        sql_database billing_db cluster
    } | postgres_sql "$(postgres_home "$folder/postgres")" "$first_port"
    echo "$password" >"$folder/password"
}

# The ports: 0 PostgreSQL, 1 epmd, 2 and 3 the programs, and from 4 on three for each node.
port() {
    echo $((first_port + $1))
}

amqp_port() {
    port $((1 + 3 * $1))
}

# All nodes have one secret and one administrator, and use the first node's epmd.
start_nodes() {
    for node in "${nodes[@]}"; do
        rabbitmq_create "$folder/node$node"
        cp -f "$folder/node1/.erlang.cookie" "$folder/node1/administrator" "$folder/node$node/" \
            2>/dev/null || true
    done
    for node in "${nodes[@]}"; do
        start_node "$node"
    done
}

start_node() (
    amqp=$(amqp_port "$1")
    # A second epmd ends at once, since the port is taken.
    (($1 == 1)) || rabbitmq_start_epmd() { :; }
    rabbitmq_start "$folder/node$1" "$amqp" $((amqp + 1)) $((amqp + 2)) "$(port 1)" \
        "node$1@localhost"
)

join_nodes() {
    for node in 2 3; do
        rabbitmq_run "$folder/node$node" rabbitmqctl stop_app
        rabbitmq_run "$folder/node$node" rabbitmqctl join_cluster node1@localhost
        rabbitmq_run "$folder/node$node" rabbitmqctl start_app
    done
}

start_programs() {
    local hosts
    hosts=$(for node in "${nodes[@]}"; do echo "127.0.0.1:$(amqp_port "$node")"; done)
    cat .env - >"$folder/settings.env" <<SETTINGS

LISTEN_ADDRESS=127.0.0.1
POSTGRES_HOST=127.0.0.1
POSTGRES_PORT=$first_port
POSTGRES_USER=cluster
POSTGRES_PASSWORD=$(<"$folder/password")
API_GATEWAY_PORT=$(port 2)
BILLING_CONSUMER_PORT=$(port 3)
INVENTORY_VM_IP=127.0.0.1
BILLING_VM_IP=127.0.0.1
RABBITMQ_HOST=${hosts//$'\n'/,}
RABBITMQ_USER=setup
RABBITMQ_PASSWORD=$(<"$folder/node1/administrator")
RABBITMQ_CONSUMER_USER=setup
RABBITMQ_CONSUMER_PASSWORD=$(<"$folder/node1/administrator")
BILLING_QUEUE_TYPE=quorum
SETTINGS
    for program in api-gateway billing-consumer; do
        start_daemon "$folder/$program.pid" "$folder/$program.log" \
            "ENV_FILE=$folder/settings.env" "$folder/programs/$program"
    done
    until_true 60 programs_ready
}

programs_ready() {
    ask "http://127.0.0.1:$(port 3)/ready" && grep -q msg=publishing "$folder/api-gateway.log"
}

ask() {
    curl --disable --noproxy '*' --silent --fail --output /dev/null "$1"
}

# until_true SECONDS COMMAND…: repeats the command until it succeeds.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || die "this did not succeed in time: $*"
        sleep 0.2
    done
}

# The load

start_load() {
    say "Orders from $workers clients"
    touch "$folder/load"
    for ((worker = 0; worker < workers; worker++)); do
        place_orders "$worker" >"$folder/answers.$worker" 2>/dev/null &
    done
}

stop_load() {
    rm "$folder/load"
    wait
}

# place_orders WORKER: places orders, and prints a line with the status and the key of each.
place_orders() {
    local n=0
    while [[ -e $folder/load ]]; do
        requests "$1" "$n" | curl --disable --noproxy '*' --silent --max-time 30 --config - || true
        n=$((n + 20))
    done
}

requests() {
    local i key next=''
    for ((i = $2; i < $2 + 20; i++)); do
        key=order-$1-$i
        cat <<REQUEST
$next
url = "http://127.0.0.1:$(port 2)/api/billing"
header = "Content-Type: application/json"
header = "Idempotency-Key: $key"
data = "{\"user_id\": $1, \"number_of_items\": 1, \"total_amount\": 1}"
output = "/dev/null"
write-out = "%{http_code} $key\n"
REQUEST
        next=next
    done
}

answered() {
    cat "$folder"/answers.* | sed -n 's/^200 //p' | sort
}

# await_orders WHEN: waits until some more orders are answered 200.
await_orders() {
    local before
    before=$(answered | wc -l)
    until_true 120 answered_since "$before"
    note "$(($(answered | wc -l) - before)) orders answered 200 $1"
}

answered_since() {
    (($(answered | wc -l) >= $1 + orders_between))
}

# await_quorum: waits until every queue can work without any one of the nodes.
await_quorum() {
    until_true 60 no_node_is_critical
}

no_node_is_critical() {
    for node in "${nodes[@]}"; do
        rabbitmq_run "$folder/node$node" rabbitmq-queues check_if_node_is_quorum_critical || return
    done
}

# The check

recorded() {
    PGPASSWORD=$(<"$folder/password") "$(postgres_programs "$folder/postgres")/psql" \
        --no-psqlrc --quiet --tuples-only --no-align --host=127.0.0.1 --port="$first_port" \
        --username=cluster billing_db --command='SELECT message_id FROM orders' | sort
}

check() {
    answered >"$folder/answered"
    step 'Every order answered 200 is recorded' until_true 60 nothing_missing
    recorded >"$folder/recorded"
    note "$(wc -l <"$folder/answered") orders answered 200, $(wc -l <"$folder/recorded") recorded"
    note "other answers: $(cat "$folder"/answers.* | cut -d' ' -f1 | grep -v 200 | sort |
        uniq -c | tr -s ' \n' ' ')"
    [[ -z $(uniq -d "$folder/recorded") ]] || die 'an order is recorded twice'
    note "warnings: gateway $(grep -c level=warn "$folder/api-gateway.log" || true), consumer $(
        grep -c level=warn "$folder/billing-consumer.log" || true)"
    say 'Every order is recorded exactly once'
}

nothing_missing() {
    recorded >"$folder/recorded"
    [[ -z $(comm -23 "$folder/answered" "$folder/recorded") ]]
}

clean_up() {
    local status=$?
    trap '' INT TERM HUP
    rm -f "$folder/load"
    wait
    if ((status != 0)); then
        tail -n 5 "$folder"/*.log >&2 || true
    fi
    for program in api-gateway billing-consumer; do
        stop_daemon "$folder/$program.pid" "ENV_FILE=$folder/settings.env"
    done
    for node in 3 2 1; do
        rabbitmq_stop "$folder/node$node" KILL
    done
    postgres_stop "$folder/postgres" || true
    postgres_remove "$folder/postgres"
    rm -rf "$folder"
    give_ports_back
}

main "$@"
