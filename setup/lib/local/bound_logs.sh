#!/usr/bin/env bash
# Keeps logs from filling the disk, for as long as the folder of the first one exists. A log with more than BYTES is
# copied to LOG.1 and then emptied, since its writer has it open. Lines that are written between the copy and the
# emptying are lost.
#
#   bound_logs.sh BYTES LOG…

main() {
    local bytes_max=$1 log size silence
    shift
    # A read from a pipe without data waits without a process that could outlive this one.
    exec {silence}<> <(:)
    while [[ -d ${1%/*} ]]; do
        for log in "$@"; do
            if size=$(stat -c %s "$log" 2>/dev/null) && ((size > bytes_max)); then
                put_aside "$log"
            fi
        done
        read -rt 10 -u "$silence"
    done
}

# put_aside LOG: works as the owner of the log's folder, who may have put a link there. On a full disk the log is emptied
# without a copy.
put_aside() {
    local user=()
    ((EUID != 0)) || user=(setpriv "--reuid=$(stat -c %u "${1%/*}/")" "--regid=$(stat -c %g "${1%/*}/")" --clear-groups --)
    # shellcheck disable=SC2016 # for the other shell
    "${user[@]}" bash -c 'cp -p "$0" "$0.1" || rm -f "$0.1"; : >"$0"' "$1"
}

main "$@"
