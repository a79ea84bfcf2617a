# shellcheck shell=bash
# Addresses and TCP ports: how one is written, who holds one, and whether one answers.

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
