# shellcheck shell=bash
# What a script tells its reader: one line per step, with the time that it took. On a terminal the
# time counts while the step runs, behind what the step is at; elsewhere a line now and then says
# that it still runs.
# Colours only on a terminal, and never where NO_COLOR is set.

bold='' dim='' plain='' terminal=false text_width=64
if [[ -t 1 && ${TERM:-dumb} != dumb ]]; then
    terminal=true
    # A line that counts fits on one, to be written over; a terminal may not know how wide it is.
    columns=$(stty -F /dev/tty size 2>/dev/null | cut -d ' ' -f 2) || true
    ((${columns:-0} < 40 || columns >= 80)) || text_width=$((columns - 16))
    [[ -n ${NO_COLOR:-} ]] || bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
fi

source "${repo:?}/setup/lib/common/places.sh"

# heading TEXT: opens a part.
heading() {
    printf '\n%s%s%s\n' "$bold" "$1" "$plain"
}

# say TEXT: a line of its own.
say() {
    printf '  %s\n' "$1"
}

# note TEXT: a line that belongs to the one before.
note() {
    printf '    %s\n' "$1"
}

# die TEXT: what is wrong and what to do about it, then the end.
die() {
    end_progress
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit "$status_of_die"
}

# In a step it is another one, which tells that no more needs to be said.
status_of_die=1

# step TEXT COMMAND…: runs the command, whose output is only of interest, and only shown, if it
# fails; then the script ends, with the words of die where the command has called it. The command runs in a subshell where every failure counts, also
# one within a function, so a step must not stand in a condition, where bash would look away.
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
    die "this step failed after $(time_text $((SECONDS - started))): $text. Above is why; mend that and run this again (all that it said: $output)"
}

# advise FILE: what to do about the likely causes, where the output of a step shows one.
advise() {
    local full
    full=$(full_places "${repo:?}" "$HOME" "$TMPDIR" /var/lib "${folder:-/}" | head -n 1)
    if [[ -n $full ]] || grep -qiF 'no space left on device' "$1"; then
        note "The disk${full:+ of $full} is full: \"df -h\" shows more, and \"cargo clean\" frees what was built."
    elif grep -qiE 'could not resolve|temporary failure (in name resolution|resolving)|network is unreachable|failed to (download|fetch)|EAI_AGAIN' "$1"; then
        note 'The network cannot be reached. What is missing is fetched from it: try again when it is back.'
    elif grep -qE 'out of memory|signal: 9|Cannot allocate memory' "$1"; then
        note 'The memory ran out: CARGO_BUILD_JOBS=1 builds one thing at a time.'
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

# timed_line TEXT SECONDS: without the end of the line.
timed_line() {
    printf '  %-*s %s%12s%s' "$text_width" "$1" "$dim" "$(time_text "$2")" "$plain"
}

# The process that counts, while a step runs.
progress=''

# begin_progress TEXT OUTPUT: OUTPUT is the file that the step writes to.
begin_progress() {
    count_progress "$1" "$2" &
    progress=$!
}

end_progress() {
    [[ -n $progress ]] || return 0
    # TERM may be ignored by now, where a script cleans up.
    kill -KILL "$progress" 2>/dev/null || true
    wait "$progress" 2>/dev/null || true
    progress=''
    ! $terminal || printf '\r\e[K'
}

# count_progress TEXT OUTPUT: until it is killed, or the script is gone. Reading from a pipe that
# stays silent waits without a process that could outlive this one.
count_progress() {
    local text seconds=0 silence
    exec {silence}<> <(:)
    while kill -0 "$$" 2>/dev/null; do
        if $terminal; then
            text=$1$(last_words "$2")
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

# last_words FILE: the last line of the file, to be put behind the name of the step; nothing where
# that is empty.
last_words() {
    local line
    line=$(tail -c 300 "$1" 2>/dev/null | tr '\r' '\n' | tail -n 1 | tr -cd '[:print:]') || true
    line=${line#"${line%%[![:space:]]*}"}
    [[ -z $line ]] || printf ': %s' "$line"
}
