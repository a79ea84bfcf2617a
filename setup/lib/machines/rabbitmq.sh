# shellcheck shell=bash
# RabbitMQ from Debian's package, as a service of the machine. Its ports for orders and for the management page are open
# to the network as far as the firewall allows; the port for other nodes is on loopback.

# The folder with the password of "setup", the administrator, for rabbitmq_api.
broker_home=${state:?}/rabbitmq

provide_rabbitmq() {
    step 'Set up RabbitMQ (its first start takes some time)' configure_broker
    step 'Make the queue and its users' provide_queue
}

configure_broker() {
    local restart=false
    own_folders /etc/rabbitmq
    foreign_broker /etc/rabbitmq | stop_at_foreign || exit
    install -d -m 700 "$broker_home"
    [[ -s $broker_home/administrator ]] || (umask 077 && random_secret >"$broker_home/administrator")
    server_output | write_unit_part rabbitmq-server.service && restart=true
    if port_mapper_socket | write_unit_part epmd.socket; then
        # The port mapper loses its entries when it is stopped, so the node is stopped first.
        systemctl stop rabbitmq-server epmd.service epmd.socket
        restart=true
    fi
    broker_environment | write_if_new /etc/rabbitmq/rabbitmq-env.conf 644 && restart=true
    # This file contains the administrator's password.
    broker_settings | write_if_new /etc/rabbitmq/rabbitmq.conf 640 rabbitmq && restart=true
    echo '[rabbitmq_management].' | write_if_new /etc/rabbitmq/enabled_plugins 644 && restart=true
    systemctl enable --quiet rabbitmq-server
    if $restart; then
        systemctl restart rabbitmq-server
    else
        systemctl start rabbitmq-server
    fi
    wait_for_broker
}

# port_mapper_socket: restricts Erlang's port mapper (epmd), which systemd opens to all networks, to loopback.
port_mapper_socket() {
    cat <<'UNIT'
[Socket]
ListenStream=
ListenStream=127.0.0.1:4369
UNIT
}

# broker_environment: fixes the name of the node. If it changed with the machine's, RabbitMQ would not find its data, and
# could not be stopped.
broker_environment() {
    cat <<'ENVIRONMENT'
# Made by setup/lib/machines/rabbitmq.sh of crud-master.
NODENAME=rabbit@localhost
SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
CTL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
export ERL_EPMD_ADDRESS=127.0.0.1
ENVIRONMENT
}

# broker_settings: RabbitMQ listens on all addresses, since the private network may start after it. At its first start it
# makes the administrator instead of the publicly known "guest".
broker_settings() {
    cat <<SETTINGS
# Made by setup/lib/machines/rabbitmq.sh of crud-master.
listeners.tcp.default = ${SETTINGS[RABBITMQ_PORT]}
management.tcp.port = ${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}
default_user = setup
default_pass = $(<"$broker_home/administrator")
default_user_tags.administrator = true
SETTINGS
}

# foreign_broker FOLDER: prints the files of the configuration that this project did not make.
foreign_broker() {
    local file
    for file in "$1"/{rabbitmq.conf,rabbitmq-env.conf,advanced.config,rabbitmq.config}; do
        foreign_file "$file"
    done
    [[ ! -e $1/enabled_plugins ]] || grep -qxE '\[(rabbitmq_management)?\]\.' "$1/enabled_plugins" || echo "$1/enabled_plugins"
}

wait_for_broker() {
    local deadline=$((SECONDS + 120))
    until port_answers 127.0.0.1 "${SETTINGS[RABBITMQ_PORT]}" &&
        port_answers 127.0.0.1 "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}"; do
        ((SECONDS < deadline)) || die 'RabbitMQ does not answer after two minutes: journalctl -u rabbitmq-server shows the cause. Correct it and run this again'
        sleep 0.3
    done
}

provide_queue() {
    foreign_guest | stop_at_foreign || exit
    broker_api GET whoami || take_over_broker
    rabbitmq_provide "$broker_home" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}"
    ! broker_api GET users/guest || broker_api DELETE users/guest
}

# foreign_guest: prints a line if the broker has the user guest, which a broker of this project never has.
foreign_guest() {
    local users
    if broker_api GET whoami 2>/dev/null; then
        ! broker_api GET users/guest 2>/dev/null || echo 'the user guest of RabbitMQ'
    else
        users=$(rabbitmqctl --quiet list_users --no-table-headers)
        ! grep -q '^guest[[:space:]]' <<<"$users" || echo 'the user guest of RabbitMQ'
    fi
}

# warn_of_lossy_policies: must be called after Node is installed.
warn_of_lossy_policies() {
    rabbitmq_warn_of_lossy_policies "$broker_home" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}" \
        "${SETTINGS[RABBITMQ_QUEUE]}"
}

broker_api() {
    rabbitmq_api "$broker_home" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}" "$@"
}

# take_over_broker: makes the administrator, or changes the password, in a RabbitMQ that existed before. The tool reads
# the password from its input, so that it is on no command line.
take_over_broker() {
    local password
    password=$(<"$broker_home/administrator")
    rabbitmqctl add_user setup <<<"$password" || rabbitmqctl change_password setup <<<"$password"
    rabbitmqctl set_user_tags setup administrator
    rabbitmqctl set_permissions --vhost / setup '.*' '.*' '.*'
}
