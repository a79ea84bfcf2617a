# shellcheck shell=bash
# TCP ports of this machine: who holds one, and which are free.

# host_to_ask ADDRESS: what reaches a program that listens there, as it stands in an URL.
host_to_ask() {
    case $1 in
        0.0.0.0 | ::ffff:0.0.0.0) echo 127.0.0.1 ;;
        *[!0:]*:* | *:*[!0:]*) echo "[$1]" ;;
        *:*) echo '[::1]' ;;
        *) echo "$1" ;;
    esac
}

# port_valid TEXT
port_valid() {
    [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && (($1 <= 65535))
}

# port_holder PORT: prints "PID NAME" of the process that listens there, or "? ?" where it
# belongs to another user; prints nothing and fails where nobody listens.
port_holder() {
    local listeners
    listeners=$(ss -Hltnp "sport = :$1")
    [[ -n $listeners ]] || return 1
    if [[ $listeners =~ \(\(\"([^\"]*)\",pid=([0-9]+) ]]; then
        echo "${BASH_REMATCH[2]} ${BASH_REMATCH[1]}"
    else
        echo '? ?'
    fi
}

# port_answers ADDRESS PORT: something accepts connections there.
port_answers() {
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# claim_ports VARIABLE COUNT: finds that many free ports in a row, sets VARIABLE to the first
# and keeps them from other runs of this function for as long as this script lives. They lie
# below the range from which the system itself takes ports.
claim_ports() {
    local tries port
    for ((tries = 0; tries < 500; tries++)); do
        port=$((21000 + RANDOM % 200 * 20))
        if ports_free "$port" "$2" && hold_claim "$port"; then
            printf -v "$1" '%s' "$port"
            return
        fi
    done
    die "there are no $2 free ports in a row between 21000 and 25000: ss -ltn shows what listens there"
}

ports_free() {
    [[ -z $(ss -Hltn "sport >= :$1 and sport < :$(($1 + $2))") ]]
}

# A lock on an empty folder that every run knows by its name. One that was removed between
# opening and locking it does not count.
hold_claim() {
    local claim
    claimed_folder=/tmp/crud-master-ports-$1
    mkdir -p "$claimed_folder"
    exec {claim}<"$claimed_folder"
    flock --nonblock "$claim" && [[ /proc/$BASHPID/fd/$claim -ef $claimed_folder ]] && return
    exec {claim}<&-
    return 1
}

# give_ports_back: the folder goes, and with this script the lock on it.
give_ports_back() {
    [[ -z ${claimed_folder:-} ]] || rmdir "$claimed_folder" 2>/dev/null || true
}
