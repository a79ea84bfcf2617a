# shellcheck shell=bash
# A RabbitMQ node in a folder of its own, HOME in these functions. It listens on loopback only and has a port mapper
# (epmd) of its own, so that it meets no other node of this machine.
#
#   HOME/data            queues, users, permissions
#   HOME/log             the logs of the node
#   HOME/environment     paths and ports, in variables that RabbitMQ and Erlang read
#   HOME/administrator   the password of "setup", the node's only administrator; the "guest"
#                        of RabbitMQ's default configuration is never made

# The scripts of these names in /usr/sbin would switch to another user and node.
rabbitmq_programs=/usr/lib/rabbitmq/bin

# rabbitmq_start HOME PORT MANAGEMENT_PORT DISTRIBUTION_PORT EPMD_PORT [NODE [SETTING…]]: starts the node and returns
# when it answers. A node that runs with equal settings stays.
rabbitmq_start() (
    home=$1
    umask 077
    rabbitmq_create "$home"
    rabbitmq_environment "$home" "$4" "$5" "${6:-rabbit@localhost}" >"$home/environment.new"
    {
        rabbitmq_configuration "$home" "$2" "$3"
        (($# < 7)) || printf '%s\n' "${@:7}"
    } >"$home/rabbitmq.conf.new"
    if ! cmp -s "$home/environment.new" "$home/environment" ||
        ! cmp -s "$home/rabbitmq.conf.new" "$home/rabbitmq.conf"; then
        rabbitmq_stop "$home"
    fi
    mv "$home/environment.new" "$home/environment"
    mv "$home/rabbitmq.conf.new" "$home/rabbitmq.conf"

    rabbitmq_epmd_pid "$home" >/dev/null || rabbitmq_start_epmd "$home" "$5"
    rabbitmq_pid "$home" >/dev/null || rabbitmq_start_node "$home"
    rabbitmq_wait "$home" "$2" "$3"
)

# rabbitmq_create HOME: makes the folder, which is closed to other users, with two secrets.
rabbitmq_create() {
    local home=$1
    [[ ! -f $home/enabled_plugins ]] || return 0
    install -d -m 700 "$home" "$home/log"
    rm -f "$home/.erlang.cookie"
    random_secret >"$home/.erlang.cookie"
    chmod 400 "$home/.erlang.cookie"
    random_secret >"$home/administrator"
    # This file is the last one, and so shows that the folder is complete.
    echo '[rabbitmq_management].' >"$home/enabled_plugins.new"
    mv "$home/enabled_plugins.new" "$home/enabled_plugins"
}

# rabbitmq_environment HOME DISTRIBUTION_PORT EPMD_PORT NODE: prints the variables. Those that name no file keep the node
# from reading /etc/rabbitmq. The command line tools listen on a port that the system chooses.
rabbitmq_environment() {
    cat <<ENVIRONMENT
HOME=$1
ERL_EPMD_ADDRESS=127.0.0.1
ERL_EPMD_PORT=$3
ERL_CRASH_DUMP=$1/log/erl_crash.dump
ERL_CRASH_DUMP_BYTES=33554432
RABBITMQ_NODENAME=$4
RABBITMQ_DIST_PORT=$2
RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}
RABBITMQ_CTL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}
RABBITMQ_CTL_DIST_PORT_MIN=0
RABBITMQ_CTL_DIST_PORT_MAX=0
RABBITMQ_MNESIA_BASE=$1/data
RABBITMQ_LOG_BASE=$1/log
RABBITMQ_ENABLED_PLUGINS_FILE=$1/enabled_plugins
RABBITMQ_CONFIG_FILE=$1/rabbitmq.conf
RABBITMQ_CONFIG_FILES=$1/none
RABBITMQ_ADVANCED_CONFIG_FILE=$1/none
RABBITMQ_CONF_ENV_FILE=/dev/null
ENVIRONMENT
}

# rabbitmq_configuration HOME PORT MANAGEMENT_PORT: prints the configuration.
rabbitmq_configuration() {
    cat <<CONFIGURATION
listeners.tcp.loopback = 127.0.0.1:$2
management.tcp.ip = 127.0.0.1
management.tcp.port = $3
log.console = false
default_user = setup
default_pass = $(<"$1/administrator")
default_user_tags.administrator = true
CONFIGURATION
}

# rabbitmq_run HOME PROGRAM [ARGUMENT…]: runs one of RabbitMQ's command line tools for this node.
rabbitmq_run() {
    local variables
    mapfile -t variables <"$1/environment"
    bare "${variables[@]}" "$rabbitmq_programs/$2" "${@:3}"
}

rabbitmq_start_epmd() {
    start_daemon "$1/epmd.pid" "$1/log/epmd" "HOME=$1" epmd -port "$2" -address 127.0.0.1
}

# rabbitmq_start_node HOME: with RUNNING_UNDER_SYSTEMD the script executes the node instead of starting a child, so that
# the pid file has the node's pid from the beginning.
rabbitmq_start_node() {
    local variables
    mapfile -t variables <"$1/environment"
    start_daemon "$1/pid" "$1/log/start" "HOME=$1" "${variables[@]}" RUNNING_UNDER_SYSTEMD=true \
        "$rabbitmq_programs/rabbitmq-server"
}

rabbitmq_epmd_pid() {
    pid_of "$1/epmd.pid" "HOME=$1"
}

# rabbitmq_pid HOME: prints the node's pid, if it runs.
rabbitmq_pid() {
    pid_of "$1/pid" "HOME=$1"
}

# rabbitmq_wait HOME PORT MANAGEMENT_PORT: waits until both ports answer, for at most two minutes.
rabbitmq_wait() {
    local deadline=$((SECONDS + 120))
    until port_answers 127.0.0.1 "$2" && rabbitmq_api "$1" "$3" GET overview 2>/dev/null; do
        if ((SECONDS > deadline)) || ! rabbitmq_pid "$1" >/dev/null; then
            tail -n 15 "$1/log/start" "$1"/log/rabbit@*.log 2>/dev/null
            return 1
        fi
        sleep 0.2
    done
}

# rabbitmq_stop HOME [SIGNAL]: stops the node, which takes some seconds. KILL is quick, for a node whose data is not
# needed.
rabbitmq_stop() {
    stop_daemon "$1/pid" "HOME=$1" "${2:-TERM}"
    stop_daemon "$1/epmd.pid" "HOME=$1"
}
