# shellcheck shell=bash
# The RabbitMQ that Debian's package brings, as a service of the machine. Orders and the
# management page are open to the network, as far as the firewall lets them; what RabbitMQ's
# nodes say to each other stays on loopback.

# The folder with the password of "setup", the administrator, as rabbitmq_api wants it.
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
        # The mapper forgets who is who when it is stopped, so the node goes first.
        systemctl stop rabbitmq-server epmd.service epmd.socket
        restart=true
    fi
    broker_environment | write_if_new /etc/rabbitmq/rabbitmq-env.conf 644 && restart=true
    # With the administrator's password in it.
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

# port_mapper_socket: Erlang's port mapper (epmd), which systemd opens to all networks.
port_mapper_socket() {
    cat <<'UNIT'
[Socket]
ListenStream=
ListenStream=127.0.0.1:4369
UNIT
}

# broker_environment: the node's name must not change with the machine's, or it would find
# neither its data nor the way to be stopped.
broker_environment() {
    cat <<'ENVIRONMENT'
# Made by setup/lib/machines/rabbitmq.sh of crud-master.
NODENAME=rabbit@localhost
SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
CTL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
export ERL_EPMD_ADDRESS=127.0.0.1
ENVIRONMENT
}

# broker_settings: on all addresses, since the private network may come up after RabbitMQ. The
# administrator is made at the first start, in place of the "guest" that everybody knows.
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

# foreign_broker FOLDER: what others have configured there.
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
        ((SECONDS < deadline)) || die 'RabbitMQ does not answer after two minutes: journalctl -u rabbitmq-server says why. Once that is cured, run this again'
        sleep 0.3
    done
}

provide_queue() {
    foreign_guest | stop_at_foreign || exit
    broker_api GET whoami || take_over_broker
    rabbitmq_provide "$broker_home" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}"
    ! broker_api GET users/guest || broker_api DELETE users/guest
}

# foreign_guest: a broker that was set up here never had this user.
foreign_guest() {
    local users
    if broker_api GET whoami 2>/dev/null; then
        ! broker_api GET users/guest 2>/dev/null || echo 'the user guest of RabbitMQ'
    else
        users=$(rabbitmqctl --quiet list_users --no-table-headers)
        ! grep -q '^guest[[:space:]]' <<<"$users" || echo 'the user guest of RabbitMQ'
    fi
}

# warn_of_lossy_policies: needs Node.
warn_of_lossy_policies() {
    rabbitmq_warn_of_lossy_policies "$broker_home" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}" \
        "${SETTINGS[RABBITMQ_QUEUE]}"
}

broker_api() {
    rabbitmq_api "$broker_home" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}" "$@"
}

# take_over_broker: a RabbitMQ that was there before, and does not know the administrator or
# knows another password. The tool asks for it, so that it shows on no command line.
take_over_broker() {
    local password
    password=$(<"$broker_home/administrator")
    rabbitmqctl add_user setup <<<"$password" || rabbitmqctl change_password setup <<<"$password"
    rabbitmqctl set_user_tags setup administrator
    rabbitmqctl set_permissions --vhost / setup '.*' '.*' '.*'
}
