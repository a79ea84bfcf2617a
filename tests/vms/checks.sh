# shellcheck shell=bash
# The checks of the three machines. Each check has a sentence, an expected text, and a command that prints the actual text.
# lab.sh, quoting.sh and say.sh must be read before, and the settings set.

passed=0
failures=()

# is SENTENCE EXPECTED COMMAND…: compares the output of the command with the expected text.
is() {
    local said
    said=$("${@:3}" 2>&1) || true
    verdict "$1" "$2" "$said"
}

# becomes SENTENCE EXPECTED COMMAND…: waits up to two minutes, the longest time that a machine takes to start.
becomes() {
    local said deadline=$((SECONDS + 120))
    until said=$("${@:3}" 2>&1) || true && [[ $said == "$2" ]] || ((SECONDS >= deadline)); do
        sleep 0.3
    done
    verdict "$1" "$2" "$said"
}

verdict() {
    if [[ $3 == "$2" ]]; then
        passed=$((passed + 1))
        printf '    ok   %s\n' "$1"
    else
        failures+=("$1")
        printf '    FAIL %s\n           expected: %s\n           actual:   %s\n' "$1" "$2" "$3"
    fi
}

exit_of() {
    local status=0
    "$@" >/dev/null 2>&1 || status=$?
    echo "$status"
}

# on MACHINE COMMAND…: runs the command as root.
on() {
    "${here:?}/lab.sh" exec "$1-vm" "${@:2}"
}

machines=(gateway inventory billing)

# Requests of a client

status() {
    curl --silent --max-time 30 --output /dev/null --write-out '%{http_code}' "$@"
}

# said FIELD ADDRESS [CURL_ARGUMENT…]: prints the first value of that field in the answer.
said() {
    curl --silent --max-time 30 "${@:2}" | grep -oE "\"$1\":(\"[^\"]*\"|[0-9]+)" | head -n 1 |
        sed -E 's/^[^:]*://; s/"//g'
}

json=(--header 'Content-Type: application/json')

ready() {
    local port
    for port in 5000 8080 8081; do
        status "http://localhost:$port/ready"
        echo
    done | paste -sd ' '
}

movies_go_from_creation_to_end() {
    local id gateway=http://localhost:5000/api/movies
    id=$(said id "$gateway" "${json[@]}" --data '{"title": "The Matrix", "description": "A sci-fi classic"}')
    is 'a movie that was created can be read' 'The Matrix' said title "$gateway/$id"
    is 'and is on the inventory machine too' 'The Matrix' said title "http://localhost:8080/api/movies/$id"
    is 'it is found by a part of its title' 200 status "$gateway?title=matri"
    is 'it can be changed' 'Matrix Reloaded' said title "$gateway/$id" --request PUT "${json[@]}" \
        --data '{"title": "Matrix Reloaded"}'
    is 'it can be deleted' 200 status "$gateway/$id" --request DELETE
    is 'then it is gone' 404 status "$gateway/$id"
}

place_order() {
    status http://localhost:5000/api/billing "${json[@]}" \
        --data "{\"user_id\": \"$1\", \"number_of_items\": \"3\", \"total_amount\": \"75\"}"
}

orders_of() {
    curl --silent --max-time 30 "http://localhost:8081/api/orders?user_id=$1" | grep -o '"id":' | wc -l
}

queued() {
    on billing rabbitmqctl --quiet list_queues --no-table-headers name messages |
        awk '$1 == "billing_queue" { print $2 }'
}

# A user id that no earlier round has used.
round=0

orders_survive_a_stopped_consumer() {
    local user number
    round=$((round + 1))
    user=round-$round-$RANDOM
    is 'an order is taken' 200 place_order "$user"
    becomes 'and recorded' 1 orders_of "$user"
    on billing pm2 stop billing-consumer --silent >/dev/null
    is 'the consumer is stopped' 'billing-api=online billing-consumer=stopped' apps_of billing
    for number in first second third; do
        is "the $number order is taken all the same" 200 place_order "$user"
    done
    becomes 'the three wait in the queue' 3 queued
    is 'and are not recorded' 1 orders_of "$user"
    on billing pm2 start billing-consumer --silent >/dev/null
    becomes 'when the consumer is back, all are recorded' 4 orders_of "$user"
    becomes 'and none is left in the queue' 0 queued
}

# apps_of MACHINE: prints NAME=STATUS of each program.
apps_of() {
    on "$1" pm2 jlist | tail -n 1 |
        python3 -c 'import json, sys; print(" ".join(sorted(a["name"] + "=" + a["pm2_env"]["status"] for a in json.load(sys.stdin))))'
}

programs_are_online() {
    becomes 'all three machines are ready' '200 200 200' ready
    is 'gateway-vm: its program is online' api-gateway=online apps_of gateway
    is 'inventory-vm: its program is online' inventory-api=online apps_of inventory
    is 'billing-vm: its programs are online' 'billing-api=online billing-consumer=online' apps_of billing
}

# Ports that answer

# open_ports FROM ADDRESS: prints the open ports among all on which a program of the platform listens. A port that does
# not answer is marked, since a client would wait.
open_ports() {
    local from=("$here/lab.sh" host)
    [[ $1 == host ]] || from=(on "$1")
    # shellcheck disable=SC2016 # for the other shell
    "${from[@]}" bash -c 'for port in 22 4369 5000 5432 5672 8080 8081 8082 15672 25672; do
        status=0
        timeout 3 bash -c "exec 3<>/dev/tcp/$0/$port" 2>/dev/null || status=$?
        case $status in 0) echo $port ;; 124) echo "$port?" ;; esac
    done | paste -sd " "' "$2"
}

only_what_is_meant_to_be_open_is_open() {
    local gateway=192.168.56.10 inventory=192.168.56.11 billing=192.168.56.12
    is 'the host reaches at the gateway: SSH, the door' '22 5000' open_ports host $gateway
    is 'the host reaches at the inventory: SSH, movies' '22 8080' open_ports host $inventory
    is 'the host reaches at billing: SSH, orders, the page' '22 8081 15672' open_ports host $billing
    is 'the gateway reaches at the inventory: movies' '8080' open_ports gateway $inventory
    is 'the gateway reaches at billing: the queue, orders, the consumer' '5672 8081 8082' open_ports gateway $billing
    is 'the inventory reaches at the gateway: the door' '5000' open_ports inventory $gateway
    is 'the inventory reaches at billing: nothing' '' open_ports inventory $billing
    is 'no machine lets anybody in over SSH by a password' 'no no no' passwords_over_ssh
    is 'no account has the password that boxes come with' '' known_passwords
    is 'the forwarded ports are on 127.0.0.1 alone' '127.0.0.1' forward_addresses
    is 'on all machines PostgreSQL and what Erlang needs listen on loopback alone' '' exposed_servers
}

# known_passwords: prints the accounts of the machines with a publicly known password.
known_passwords() {
    local machine
    for machine in "${machines[@]}"; do
        # shellcheck disable=SC2016 # for the other shell
        on "$machine" perl -F: -ane 'print "$F[0]\n" if length $F[1] > 2 && (crypt("vagrant", $F[1]) // "") eq $F[1]' /etc/shadow
    done
}

passwords_over_ssh() {
    local machine
    for machine in "${machines[@]}"; do
        on "$machine" sshd -T | awk '$1 == "passwordauthentication" { print $2 }'
    done | paste -sd ' '
}

forward_addresses() {
    ss -Hltn '( sport = :5000 or sport = :8080 or sport = :8081 or sport = :15672 )' |
        awk '{ print $4 }' | sed 's/:[0-9]*$//' | sort -u
}

exposed_servers() {
    local machine
    for machine in "${machines[@]}"; do
        on "$machine" ss -Hltn '( sport = :5432 or sport = :4369 or sport = :25672 )' |
            awk '$4 !~ /^(127\.0\.0\.1|\[::1\]):/ { print $4 }'
    done
}

# Rights

# as_role MACHINE DATABASE SQL: runs SQL as the role that owns the database, over the network as its program does.
as_role() {
    local program=inventory-api
    [[ $1 == inventory ]] || program="billing-consumer"
    # shellcheck disable=SC2016 # for the other shell
    on "$1" bash -c '. /var/lib/crud-master/$0.env
        PGPASSWORD=$POSTGRES_PASSWORD psql --no-psqlrc --tuples-only --no-align --quiet --host=127.0.0.1 \
            --username="$POSTGRES_USER" --dbname="$1" --command="$2" 2>&1 | head -n 1' "$program" "$2" "$3"
}

# refused MACHINE DATABASE SQL: prints "refused", or the answer.
refused() {
    local said
    said=$(as_role "$@")
    if [[ $said =~ (permission denied|must be superuser|must be owner) ]]; then
        echo refused
    else
        echo "$said"
    fi
}

the_role_owns_its_database_and_nothing_else() {
    local machine database sql
    for machine in inventory billing; do
        database=movies_db
        [[ $machine == inventory ]] || database=billing_db
        is "$machine-vm: the role owns $database alone" "$database" as_role "$machine" "$database" \
            'SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = current_user'
        is "$machine-vm: it is nobody special" 'f|f|f|f|f' as_role "$machine" "$database" \
            'SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = current_user'
        is "$machine-vm: it may not enter the database postgres" refused refused "$machine" postgres 'SELECT 1'
        is "$machine-vm: nor template1" refused refused "$machine" template1 'SELECT 1'
        for sql in 'CREATE DATABASE loot' 'CREATE ROLE thief' 'SELECT rolpassword FROM pg_authid' \
            "SELECT pg_read_file('/etc/hostname')" "COPY (SELECT 1) TO PROGRAM 'true'" \
            'ALTER ROLE postgres NOLOGIN' "ALTER SYSTEM SET listen_addresses = '*'"; do
            is "$machine-vm: refused: $sql" refused refused "$machine" "$database" "$sql"
        done
    done
    is 'billing-vm: billing-api reads the orders' t as_reader 'SELECT count(*) > 0 FROM orders'
    for sql in "INSERT INTO orders (user_id, number_of_items, total_amount) VALUES ('u', 1, 1)" \
        'DELETE FROM dead_letters' 'TRUNCATE orders' 'DROP TABLE orders' 'CREATE TABLE loot (id int)'; do
        is "billing-vm: refused to billing-api: $sql" 1 refused_to_reader "$sql"
    done
    is '\l lists the movies' movies_db administrator_sees inventory movies_db
    is '\l lists the orders' billing_db administrator_sees billing billing_db
    is 'TABLE movies works for the administrator' 0 exit_of on inventory sudo -i -u postgres psql movies_db -c 'TABLE movies'
    is 'TABLE orders works for the administrator' 0 exit_of on billing sudo -i -u postgres psql billing_db -c 'TABLE orders'
}

# as_reader SQL: runs SQL as billing-api does.
as_reader() {
    # shellcheck disable=SC2016 # for the other shell
    on billing bash -c '. /var/lib/crud-master/billing-api.env
        PGPASSWORD=$POSTGRES_READER_PASSWORD psql --no-psqlrc --tuples-only --no-align --quiet --host=127.0.0.1 \
            --username="$POSTGRES_READER_USER" --dbname=billing_db --command="$0" 2>&1 | head -n 1' "$1"
}

refused_to_reader() {
    as_reader "$1" | grep -cE 'permission denied|must be owner'
}

administrator_sees() {
    on "$1" sudo -i -u postgres psql --tuples-only --no-align -c '\l' | cut -d '|' -f 1 | grep -x "$2"
}

# broker USER:PASSWORD METHOD PATH [JSON]: prints the status of the management page's answer.
broker() {
    status --user "$1" --request "$2" "http://localhost:15672/api/$3" "${json[@]}" --data "${4:-}"
}

the_broker_knows_its_queue_alone() {
    local user
    user="$(setting RABBITMQ_USER):$(setting RABBITMQ_PASSWORD)"
    is 'the management page is there' 200 status http://localhost:15672/
    is 'its user may look at it' 200 broker "$user" GET overview
    is 'guest is gone' 401 broker guest:guest GET overview
    is 'there are three users: the gateway, the consumer and the administrator' \
        "$(setting RABBITMQ_USER) [management], $(setting RABBITMQ_CONSUMER_USER) [], setup [administrator]" broker_users
    is 'the gateway may publish' '^$ ^amq\.default$ ^$' broker_permissions RABBITMQ_USER
    is 'the consumer may use its own queue only, and read the one of former dead letters' \
        '^billing_queue$ ^$ ^billing_queue(\.dead)?$' broker_permissions RABBITMQ_CONSUMER_USER
    is 'the gateway may not declare another queue' 401 broker "$user" PUT queues/%2F/loot '{"durable": true}'
    is 'it may not make a user' 401 broker "$user" PUT users/thief '{"password": "x", "tags": "administrator"}'
}

broker_users() {
    on billing rabbitmqctl --quiet list_users --no-table-headers | tr '\t' ' ' | sort | paste -sd , | sed 's/,/, /g'
}

broker_permissions() {
    on billing rabbitmqctl --quiet list_user_permissions --no-table-headers "$(setting "$1")" |
        cut -f 2-4 | tr '\t' ' '
}

programs_run_as_nobody_else() {
    is 'gateway-vm: its program has a user of its own' 'api-gateway api-gateway' users_of gateway
    is 'inventory-vm: its program has a user of its own' 'inventory-api inventory-api' users_of inventory
    is 'billing-vm: its programs have users of their own' \
        'billing-api billing-api, billing-consumer billing-consumer' users_of billing
    is 'no program can read the settings of another' 1 exit_of \
        on billing setpriv --reuid=billing-api --regid=billing-api --clear-groups \
        cat /var/lib/crud-master/billing-consumer.env
    is 'the settings are root'"'"'s, and each for its program to read' \
        '640 root api-gateway, 640 root billing-api, 640 root billing-consumer, 640 root inventory-api' settings_modes
    is 'billing-api has no password of the broker, nor of the owner of the orders' 1 exit_of \
        on billing grep -qE '^(RABBITMQ.*|POSTGRES)_PASSWORD=' /var/lib/crud-master/billing-api.env
}

users_of() {
    on "$1" bash -c "ps -eo user:40,args | awk '\$2 ~ \"^/(opt/crud-master/bin|var/lib/crud-master/programs)/\" { sub(\".*/\", \"\", \$2); print \$1, \$2 }'" |
        sort | paste -sd , | sed 's/,/, /g'
}

settings_modes() {
    local machine
    for machine in "${machines[@]}"; do
        on "$machine" bash -c 'stat -c "%a %U %G" /var/lib/crud-master/*.env'
    done | sort | paste -sd , | sed 's/,/, /g'
}

# Secrets

# secrets_found SECRET…: prints the places in which a secret appears: PM2's folder, logs, the command lines and
# environments of all processes, and the output of vagrant.
secrets_found() {
    local machine secret
    for secret in "$@"; do
        for machine in "${machines[@]}"; do
            # The secret is passed over a pipe, since the search would find its own command line.
            # shellcheck disable=SC2016 # for the other shell
            on "$machine" bash -c 'grep -rslaF -f /dev/stdin /var/lib/crud-master/pm2 /var/lib/crud-master/apps.json \
                /var/log /run/log /etc/systemd /proc/[0-9]*/cmdline /proc/[0-9]*/environ /tmp /home' <<<"$secret" || true
        done
        grep -rlF "$secret" "${lab:?}"/*.log || true
    done
}

secrets_show_nowhere() {
    local secrets key
    mapfile -t secrets < <(
        for key in {POSTGRES{,_READER},RABBITMQ{,_CONSUMER}}_PASSWORD; do
            setting "$key"
        done
        on billing cat /var/lib/crud-master/rabbitmq/administrator
    )
    is 'no password in dumps, logs, process lists or output' '' secrets_found "${secrets[@]}"
}

# Files that root opens

# files_opened_by_systemd MACHINE: prints the files that systemd opens for the output of servers, whose users own the
# folders of logs.
files_opened_by_systemd() {
    on "$1" bash -c 'systemctl show --property=StandardOutput,StandardError rabbitmq-server "postgresql@*" epmd pm2-root' |
        grep -E '=(file|append|truncate)'
}

root_opens_no_file_for_a_server() {
    local machine
    for machine in "${machines[@]}"; do
        is "$machine-vm: root opens no file for what a server says" '' files_opened_by_systemd "$machine"
    done
}

# Memory

# memory: prints a line for each machine, and checks that the kernel has ended no process for lack of memory.
memory() {
    local machine
    for machine in "${machines[@]}"; do
        printf '         %-13s %4d MB in use of %d MB\n' "$machine-vm" \
            "$(($("$here/lab.sh" in-use "$machine-vm") / 1048576))" "$("$here/lab.sh" limit "$machine-vm")"
        is "$machine-vm: nothing was ended for want of memory" 0 "$here/lab.sh" out-of-memory "$machine-vm"
    done
}

# setting KEY: prints the present setting of the project, from .env.local or .env.
setting() {
    {
        cat "${project:?}/.env"
        cat "$project/.env.local" 2>/dev/null || true
    } | sed -n "s/^$1=//p" | tail -n 1
}

all_checks() {
    programs_are_online
    movies_go_from_creation_to_end
    is 'the smoke test passes' 0 exit_of "${repo:?}/setup/smoke.sh" http://localhost:5000 --orders http://localhost:8081
    orders_survive_a_stopped_consumer
    only_what_is_meant_to_be_open_is_open
    the_role_owns_its_database_and_nothing_else
    the_broker_knows_its_queue_alone
    programs_run_as_nobody_else
    root_opens_no_file_for_a_server
    secrets_show_nowhere
}
