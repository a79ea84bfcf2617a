# shellcheck shell=bash
# Processes that outlive the script that starts them, known by a pid file together with a
# mark in their environment: the pid alone may belong to somebody else by now.

# bare [NAME=VALUE…] COMMAND…: runs the command with these variables and no others of the
# caller's: no secret and no stray variable travels into a daemon.
bare() {
    env -i "PATH=$PATH" LANG=C.UTF-8 "$@"
}

# detached COMMAND…: for commands that leave daemons behind: nothing of this shell goes with
# them but its output.
detached() (
    let_go
    "$@" </dev/null
)

# start_daemon PIDFILE LOG MARK [NAME=VALUE…] COMMAND…: in a session of its own, which no
# Ctrl-C of this terminal reaches. MARK is a variable too, the one by which the process is
# known again; it takes a moment to show. Where the pid cannot be written down, nothing is started.
start_daemon() {
    local pidfile=$1 log=$2 mark=$3 tries
    shift 2
    (
        let_go
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

# let_go: leaves the working directory and closes what this shell has open beside its input
# and output. An inherited pipe would keep "setup/local.sh up | cat" from ending, an inherited
# lock would stay locked for as long as the daemon lives.
let_go() {
    local descriptor
    for descriptor in "/proc/$BASHPID/fd/"*; do
        descriptor=${descriptor##*/}
        ((descriptor <= 2)) || eval "exec $descriptor>&-"
    done
    cd /
}

# stop_daemon PIDFILE MARK [SIGNAL]: asks the process to end and waits; after a minute it
# insists.
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

# pid_of PIDFILE MARK: prints the pid in the file if that process is alive and has the line
# MARK (NAME=VALUE) in its environment.
pid_of() {
    local pid
    pid=$(pid_in "$1") && has_mark "$pid" "$2" && echo "$pid"
}

# pid_in PIDFILE: the number on the first line of the file.
pid_in() {
    local pid=''
    [[ -r $1 ]] || return 1
    read -r pid <"$1" || true
    [[ $pid =~ ^[1-9][0-9]*$ ]] && echo "$pid"
}

# has_mark PID NAME=VALUE: the process has this in its environment, or, where the value is a path,
# another one to the same file. While a process turns into another program, as RabbitMQ's does three
# times, its environment is empty for a moment, and says nothing yet.
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
