# shellcheck shell=bash
# The output of a script: one line for each step, with the time that the step took. On a terminal the line shows the
# time and the last output of the step while it runs; elsewhere a line every minute shows that the step still runs.
# Colours are used only on a terminal, and not if NO_COLOR is set.

bold='' dim='' plain='' terminal=false text_width=64
if [[ -t 1 && ${TERM:-dumb} != dumb ]]; then
    terminal=true
    # The line of a step must fit on one line to be overwritten; a terminal may report no width.
    columns=$(stty -F /dev/tty size 2>/dev/null | cut -d ' ' -f 2) || true
    ((${columns:-0} < 40 || columns >= 80)) || text_width=$((columns - 16))
    [[ -n ${NO_COLOR:-} ]] || bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
fi

source "${repo:?}/setup/lib/common/places.sh"

# heading TEXT: prints the heading of a part.
heading() {
    printf '\n%s%s%s\n' "$bold" "$1" "$plain"
}

# say TEXT: prints a line.
say() {
    printf '  %s\n' "$1"
}

# note TEXT: prints a line that belongs to the line before it.
note() {
    printf '    %s\n' "$1"
}

# die TEXT: prints what is wrong and the remedy, and ends the script.
die() {
    end_progress
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit "$status_of_die"
}

# In a step the status of die differs, so that step() adds no message of its own.
status_of_die=1

# step TEXT COMMAND…: runs the command and shows its output only if it fails. Then the script ends, with the message of
# die if the command has called die. The command runs in a subshell in which every failure counts, even one within a
# function; therefore a step must not be part of a condition, where bash ignores failures.
step() {
    local text=$1 output status started=$SECONDS
    shift
    output=$(mktemp)
    begin_progress "$text" "$output"
    set +e
    (
        progress='' status_of_die=99
        set -e
        "$@"
    ) >"$output" 2>&1 </dev/null
    status=$?
    set -e
    end_progress
    if ((status == 0)); then
        timed_line "$text" $((SECONDS - started))
        printf '\n'
        rm -f "$output"
        return
    fi
    say "$text"
    if ((status == 99)); then
        tail -n 30 "$output" | sed '$! s/^/    | /' >&2
        rm -f "$output"
        exit 1
    fi
    tail -n 30 "$output" | sed 's/^/    | /' >&2
    advise "$output" >&2
    die "this step failed after $(time_text $((SECONDS - started))): $text. The cause is above; correct it and run this again (the full output: $output)"
}

# advise FILE: prints the remedy for a likely cause that the output of a step shows.
advise() {
    local full
    full=$(full_places "${repo:?}" "$HOME" "$TMPDIR" /var/lib "${folder:-/}" | head -n 1)
    if [[ -n $full ]] || grep -qiF 'no space left on device' "$1"; then
        note "The disk${full:+ of $full} is full: \"df -h\" shows more, and \"cargo clean\" removes former builds."
    elif grep -qiE 'could not resolve|temporary failure (in name resolution|resolving)|network is unreachable|failed to (download|fetch)|EAI_AGAIN' "$1"; then
        note 'The network cannot be reached, and a download needs it: try again when the network works.'
    elif grep -qE 'out of memory|signal: 9|Cannot allocate memory' "$1"; then
        note 'The memory ran out: with CARGO_BUILD_JOBS=1 cargo builds one crate at a time.'
    fi
}

# time_text SECONDS
time_text() {
    if (($1 < 60)); then
        echo "$1 s"
    else
        echo "$(($1 / 60)) min $(($1 % 60)) s"
    fi
}

# timed_line TEXT SECONDS: prints a line without its end.
timed_line() {
    printf '  %-*s %s%12s%s' "$text_width" "$1" "$dim" "$(time_text "$2")" "$plain"
}

# The process that shows the time while a step runs.
progress=''

# begin_progress TEXT OUTPUT: OUTPUT is the file to which the step writes.
begin_progress() {
    count_progress "$1" "$2" &
    progress=$!
}

end_progress() {
    [[ -n $progress ]] || return 0
    # A script that cleans up may ignore TERM.
    kill -KILL "$progress" 2>/dev/null || true
    wait "$progress" 2>/dev/null || true
    progress=''
    ! $terminal || printf '\r\e[K'
}

# count_progress TEXT OUTPUT: shows the time until it is killed or the script has ended. A read from a pipe without data
# waits without a process that could outlive this one.
count_progress() {
    local text seconds=0 silence
    exec {silence}<> <(:)
    while kill -0 "$$" 2>/dev/null; do
        if $terminal; then
            text=$1$(end_of_output "$2")
            printf '\r'
            timed_line "${text:0:text_width}" "$seconds"
        elif ((seconds == 5 || seconds > 0 && seconds % 60 == 0)); then
            timed_line "$1 ..." "$seconds"
            printf '\n'
        fi
        read -rt 1 -u "$silence" || true
        ((seconds += 1))
    done
}

# end_of_output FILE: prints the last line of the file after a colon; nothing if that line is empty.
end_of_output() {
    local line
    line=$(tail -c 300 "$1" 2>/dev/null | tr '\r' '\n' | tail -n 1 | tr -cd '[:print:]') || true
    line=${line#"${line%%[![:space:]]*}"}
    [[ -z $line ]] || printf ': %s' "$line"
}
