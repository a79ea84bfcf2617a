# shellcheck shell=bash
# Commands that root runs as another user.

# as_user [--with-environment] USER COMMAND…: runs the command without the caller's variables (with them after
# --with-environment), and in a session of its own without the terminal: a process of that user could write to the
# terminal what root's shell would read. A signal that ends this function ends the command too.
as_user() (
    variables=(env -i "PATH=$PATH" LANG=C.UTF-8)
    if [[ $1 == --with-environment ]]; then
        # TMPDIR is root's own.
        variables=(env -u TMPDIR)
        shift
    fi
    group=$(id -g "$1" 2>/dev/null) || group=$1
    [[ ! -t 0 ]] || exec </dev/null
    # A terminal is opened anew for writing, since its descriptors are open for reading too.
    [[ ! -t 1 ]] || exec >/proc/self/fd/1
    [[ ! -t 2 ]] || exec 2>/proc/self/fd/2
    before=${!:-}
    # shellcheck disable=SC2317 # the traps call it
    ended_by() {
        trap - "$1"
        [[ ${!:-} == "$before" ]] || { kill -TERM -- "-$!" "$!" 2>/dev/null || true; wait "$!" || true; }
        kill -s "$1" "$BASHPID"
    }
    for signal in INT TERM HUP; do
        # shellcheck disable=SC2064 # the present value is meant
        trap "ended_by $signal" "$signal"
    done
    # In the background setsid leads no process group, so it becomes the command without a process of its own.
    setsid "${variables[@]}" setpriv --reuid="$1" --regid="$group" --clear-groups --no-new-privs -- "${@:2}" <&0 &
    wait "$!"
)
