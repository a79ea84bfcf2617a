# shellcheck shell=bash
# Processes that outlive the script that starts them. Each is identified by a pid file and a mark in its environment,
# since the pid alone may belong to another process by now.

# bare [NAME=VALUE…] COMMAND…: runs the command with only these variables, so that a daemon gets no secret and no other
# variable of the caller.
bare() {
    env -i "PATH=$PATH" LANG=C.UTF-8 "$@"
}

# detached COMMAND…: runs a command that starts daemons, which get nothing of this shell except its output.
detached() (
    close_descriptors
    "$@" </dev/null
)

# start_daemon PIDFILE LOG MARK [NAME=VALUE…] COMMAND…: starts a process in a session of its own, which no Ctrl-C of this
# terminal reaches. MARK is the variable by which the process is identified later; it appears after a moment. If the
# pid file cannot be written, nothing is started.
start_daemon() {
    local pidfile=$1 log=$2 mark=$3 tries
    shift 2
    (
        close_descriptors
        echo "$BASHPID" >"$pidfile" && exec setsid env -i "PATH=$PATH" LANG=C.UTF-8 "$@"
    ) </dev/null >"$log" 2>&1 &
    for ((tries = 0; tries < 1500; tries++)); do
        has_mark "$!" "$mark" && return
        kill -0 "$!" 2>/dev/null || break
        sleep 0.02
    done
    cat "$log"
    return 1
}

# close_descriptors: leaves the working directory, and closes all descriptors of this shell except its input and output.
# An inherited pipe would keep "setup/local.sh up | cat" from ending; an inherited lock would be held for as long as
# the daemon runs.
close_descriptors() {
    local descriptor
    for descriptor in "/proc/$BASHPID/fd/"*; do
        descriptor=${descriptor##*/}
        ((descriptor <= 2)) || eval "exec $descriptor>&-"
    done
    cd /
}

# stop_daemon PIDFILE MARK [SIGNAL]: sends the process SIGNAL (TERM), waits for its end, and kills it after a minute.
stop_daemon() {
    local pid waited
    if pid=$(pid_of "$1" "$2"); then
        kill -s "${3:-TERM}" "$pid" 2>/dev/null || true
        for ((waited = 0; waited < 600; waited++)); do
            has_mark "$pid" "$2" || break
            sleep 0.1
        done
        ! has_mark "$pid" "$2" || kill -KILL "$pid"
    fi
    rm -f "$1"
}

# pid_of PIDFILE MARK: prints the pid in the file if that process is alive and has MARK (NAME=VALUE) in its environment.
pid_of() {
    local pid
    pid=$(pid_in "$1") && has_mark "$pid" "$2" && echo "$pid"
}

# pid_in PIDFILE: prints the number on the first line of the file.
pid_in() {
    local pid=''
    [[ -r $1 ]] || return 1
    read -r pid <"$1" || true
    [[ $pid =~ ^[1-9][0-9]*$ ]] && echo "$pid"
}

# has_mark PID NAME=VALUE: whether the process has this variable in its environment. If the value is a path, another
# path to that file matches too. While a process executes another program, as RabbitMQ's does three times, its
# environment is empty for a moment.
has_mark() {
    local environment tries value
    for ((tries = 0; tries < 25; tries++)); do
        environment=$(tr '\0' '\n' 2>/dev/null <"/proc/$1/environ") || return 1
        [[ -z $environment ]] || break
        sleep 0.02
    done
    value=$(grep -m 1 "^${2%%=*}=" <<<"$environment") || return 1
    [[ $value == "$2" || ${value#*=} -ef ${2#*=} ]]
}
