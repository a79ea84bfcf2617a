# shellcheck shell=bash
# TCP ports of this machine: who holds one, and which are free.

# port_valid TEXT
port_valid() {
    [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && (($1 <= 65535))
}

# port_holder PORT: prints "PID NAME" of the process that listens there, or "? ?" where it
# belongs to another user; prints nothing and fails where nobody listens.
port_holder() {
    local line
    line=$(ss -Hltnp "sport = :$1" | head -n 1)
    [[ -n $line ]] || return 1
    if [[ $line =~ \(\(\"([^\"]*)\",pid=([0-9]+) ]]; then
        echo "${BASH_REMATCH[2]} ${BASH_REMATCH[1]}"
    else
        echo '? ?'
    fi
}

# port_answers ADDRESS PORT: something accepts connections there.
port_answers() {
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}
