# shellcheck shell=bash
# Free ports for servers that a script starts for itself.

# claim_ports VARIABLE COUNT: finds COUNT free ports in a row, sets VARIABLE to the first, and reserves them among the
# users of this function for as long as this script runs. The ports are below the range from which the system takes
# ports.
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

# hold_claim PORT: locks an empty folder whose name contains the port. A folder that was removed between the opening and
# the lock does not count.
hold_claim() {
    local claim
    claimed_folder=/tmp/crud-master-ports-$1
    mkdir -p "$claimed_folder"
    exec {claim}<"$claimed_folder"
    flock --nonblock "$claim" && [[ /proc/$BASHPID/fd/$claim -ef $claimed_folder ]] && return
    exec {claim}<&-
    return 1
}

# give_ports_back: removes the folder; its lock ends with this script.
give_ports_back() {
    [[ -z ${claimed_folder:-} ]] || rmdir "$claimed_folder" 2>/dev/null || true
}
