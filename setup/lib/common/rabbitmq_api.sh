# shellcheck shell=bash
# Requests to the management API of RabbitMQ as its administrator: the queue, the users and their rights. HOME is the
# folder with the file "administrator", which has the password.

# rabbitmq_api HOME MANAGEMENT_PORT METHOD PATH [JSON]: sends a request. Neither the password nor the JSON is on a command
# line.
rabbitmq_api() {
    rabbitmq_curl "$1" --output /dev/null \
        --request "$3" --header 'Content-Type: application/json' --data-binary @- \
        "http://127.0.0.1:$2/api/$4" <<<"${5:-}"
}

# rabbitmq_curl HOME ARGUMENT…
rabbitmq_curl() {
    curl --disable --noproxy '*' --silent --show-error --fail --max-time 30 \
        --config <(echo "user = \"setup:$(<"$1/administrator")\"") \
        "${@:2}"
}

# rabbitmq_warn_of_lossy_policies HOME MANAGEMENT_PORT QUEUE: warns of arguments and policies of
# the queue that make RabbitMQ delete orders. It changes nothing, since an operator has set them.
rabbitmq_warn_of_lossy_policies() {
    local path line
    use_node
    while read -r line; do
        say "WARNING: of $3, $line"
    done < <(
        for path in "queues/%2F/$(url_text "$3")" policies/%2F operator-policies/%2F; do
            rabbitmq_curl "$1" "http://127.0.0.1:$2/api/$path" && echo
        done | node "${repo:?}/setup/lib/common/lossy_policies.js"
    )
}

# rabbitmq_provide HOME MANAGEMENT_PORT: makes the durable queue if there is none, classic without arguments or quorum
# with the arguments of the programs, and the users of the gateway and the consumer. The gateway's user can publish and
# see the management page. It finds the queue by a passive declaration, which needs no right, and cannot read, purge or
# delete the queue. The consumer's user reads the queue, and makes it again after a deletion. Former versions kept dead
# letters in QUEUE.dead, which `billing-dead-letters import` reads.
rabbitmq_provide() {
    local path queue arguments={}
    path=queues/%2F/$(url_text "${SETTINGS[RABBITMQ_QUEUE]}")
    queue=$(regex_text "${SETTINGS[RABBITMQ_QUEUE]}")
    [[ ${SETTINGS[BILLING_QUEUE_TYPE]:-classic} != quorum ]] ||
        arguments='{"x-queue-type": "quorum", "x-delivery-limit": 2147483647}'
    rabbitmq_api "$1" "$2" GET "$path" ||
        rabbitmq_api "$1" "$2" PUT "$path" "{\"durable\": true, \"auto_delete\": false, \"arguments\": $arguments}"
    rabbitmq_user "$1" "$2" RABBITMQ_CONSUMER '' "^$queue\$" '^$' "^$queue(\\.dead)?\$"
    rabbitmq_user "$1" "$2" RABBITMQ management '^$' '^amq\.default$' '^$'
}

# rabbitmq_user HOME MANAGEMENT_PORT SETTINGS TAGS CONFIGURE WRITE READ: makes the user that the settings SETTINGS_USER
# and SETTINGS_PASSWORD name, with only these rights.
rabbitmq_user() {
    local user
    user=$(url_text "${SETTINGS[${3}_USER]}")
    rabbitmq_api "$1" "$2" PUT "users/$user" \
        "{\"password\": $(json_text "${SETTINGS[${3}_PASSWORD]}"), \"tags\": \"$4\"}"
    rabbitmq_api "$1" "$2" PUT "permissions/%2F/$user" \
        "{\"configure\": $(json_text "$5"), \"write\": $(json_text "$6"), \"read\": $(json_text "$7")}"
}
