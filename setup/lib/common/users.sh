# shellcheck shell=bash
# What root does as another user.

# as_user [--with-environment] USER COMMAND…: with no variables of the caller's, unless that is asked for, and in
# a session of its own, without the terminal: whoever else is that user could type there, and root's shell would
# read it. A signal that ends this ends the command too.
as_user() (
    variables=(env -i "PATH=$PATH" LANG=C.UTF-8)
    if [[ $1 == --with-environment ]]; then
        # TMPDIR is root's own.
        variables=(env -u TMPDIR)
        shift
    fi
    group=$(id -g "$1" 2>/dev/null) || group=$1
    [[ ! -t 0 ]] || exec </dev/null
    # A terminal is open for reading too, unless it is opened anew.
    [[ ! -t 1 ]] || exec >/proc/self/fd/1
    [[ ! -t 2 ]] || exec 2>/proc/self/fd/2
    before=${!:-}
    # shellcheck disable=SC2317 # by the traps
    ended_by() {
        trap - "$1"
        [[ ${!:-} == "$before" ]] || { kill -TERM -- "-$!" "$!" 2>/dev/null || true; wait "$!" || true; }
        kill -s "$1" "$BASHPID"
    }
    for signal in INT TERM HUP; do
        # shellcheck disable=SC2064 # this one
        trap "ended_by $signal" "$signal"
    done
    # In the background it leads no group, so that setsid becomes the command and is no process of its own.
    setsid "${variables[@]}" setpriv --reuid="$1" --regid="$group" --clear-groups --no-new-privs -- "${@:2}" <&0 &
    wait "$!"
)
