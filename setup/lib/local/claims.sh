# shellcheck shell=bash
# Free ports for servers that a script starts for itself.

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
