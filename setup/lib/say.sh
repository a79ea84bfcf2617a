# shellcheck shell=bash
# What a script tells its reader: one line per step, led by the seconds since the start.
# Colours only on a terminal, and never where NO_COLOR is set.

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'
else
    bold='' dim='' plain=''
fi

# say TEXT: announces what is done next.
say() {
    printf '%s%5d s%s  %s\n' "$dim" "$SECONDS" "$plain" "$1"
}

# heading TEXT: opens a part of a longer run.
heading() {
    printf '\n%s%5d s  %s%s\n' "$bold" "$SECONDS" "$1" "$plain"
}

# note TEXT: a line that belongs to the one before.
note() {
    printf '         %s\n' "$1"
}

# die TEXT: the reason in one sentence, then the end.
die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

# step TEXT COMMAND…: says TEXT and runs the command, whose output is only of interest, and
# only shown, if it fails; then the script ends. The command runs in a subshell where every
# failure counts, also one within a function, so a step must not stand in a condition, where
# bash would look away.
step() {
    local text=$1 output status
    shift
    say "$text"
    output=$(mktemp)
    set +e
    (
        set -e
        "$@"
    ) >"$output" 2>&1 </dev/null
    status=$?
    set -e
    ((status == 0)) || tail -n 20 "$output" | sed 's/^/         | /' >&2
    rm -f "$output"
    ((status == 0)) || die "this step failed: $text"
}
