# shellcheck shell=bash
# Addresses and TCP ports.

# host_to_ask ADDRESS: prints the host, in the form of an URL, at which a program that listens on the address is reached.
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

# port_holder PORT: prints "PID NAME" of the process that listens on the port, or "? ?" if that process belongs to another
# user; prints nothing and fails if there is none.
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

# port_answers ADDRESS PORT: whether a program accepts connections on the port.
port_answers() {
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}
