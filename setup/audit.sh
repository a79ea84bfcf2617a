#!/usr/bin/env bash
# Prints the figures of docs/AUDIT.md anew. Backquotes in this script are Markdown's.
# shellcheck source-path=SCRIPTDIR/.. disable=SC2016
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"
source "$repo/setup/lib/common/apps.sh"

usage() {
    cat <<'USAGE'
Prints the figures of docs/AUDIT.md anew.

  setup/audit.sh sources          prints our lines of code, and the crates of each program with
                                  their licences and their unsafe code
  setup/audit.sh running          prints what the programs of setup/local.sh listen on, connect
                                  to and open, and their threads, during requests, orders and an
                                  outage of each server
  setup/audit.sh calls            prints the system calls that they make meanwhile, with counts
  setup/audit.sh check [running]  compares these with docs/AUDIT.md
  setup/audit.sh help | version

"running" and "calls" need strace, and LOCAL_DIR names the platform as for setup/local.sh.
USAGE
}

main() {
    answer_help_and_version "$@"
    case "$*" in
        sources) sources ;;
        running | calls) watch_at_work && "$1" ;;
        check)
            compare sources
            tests_exist
            ;;
        'check running')
            watch_at_work
            compare running
            calls_are_known
            ;;
        *) wrong_usage "there is no command ${*:-without a name}" ;;
    esac
}

page=$repo/docs/AUDIT.md

# compare PART: compares the text of the page between the marks of that part with new figures.
compare() {
    diff --label docs/AUDIT.md --label "setup/audit.sh $1" --unified=0 <(part "$1") <("$1") ||
        die "docs/AUDIT.md is out of date: put in the output of setup/audit.sh $1, and check that the page is still true"
}

part() {
    sed -n "/^<!-- setup\/audit.sh $1 -->\$/, /^<!-- end -->\$/ { /^<!--/d; p }" "$page"
}

# tests_exist: checks that the tests that docs/AUDIT.md and docs/ARCHITECTURE.md name exist.
tests_exist() {
    local name
    while read -r name; do
        grep -rqE "(fn |^)$name\(" --include='*.rs' --include='*.sh' "$repo"/{common,gateway,inventory,billing,tests} ||
            die "docs/AUDIT.md or docs/ARCHITECTURE.md names the test $name, which does not exist"
    done < <(grep -ohE '`[a-z0-9]+(_[a-z0-9]+){3,}`' "$page" "$repo/docs/ARCHITECTURE.md" | tr -d '`')
}

# calls_are_known: checks that each system call that was made is on the page, for any program. A call on the page need
# not be made each time.
calls_are_known() {
    local program new
    for program in "${apps[@]}"; do
        new=$(comm -13 <(part calls | tr -cs 'a-z0-9_' '\n' | sort -u) <(called "$program" | sort -u))
        [[ -z $new ]] || die "$program makes system calls that are not in docs/AUDIT.md: $(paste -sd ' ' <<<"$new")"
    done
}

# Our sources and others'

services=(gateway inventory billing)

sources() {
    local service
    echo '| our code | files | lines |'
    echo '|---|---|---|'
    own_lines common/src/http 'the HTTP server'
    own_lines common/src/amqp 'AMQP, beside amiquip'
    own_lines common/src 'the rest that services share' -not -path '*/http/*' -not -path '*/amqp/*'
    for service in "${services[@]}"; do
        own_lines "$service/src" "$service"
    done
    echo
    crates
}

# own_lines FOLDER TEXT [TEST]…: counts the lines that are not empty, not a comment, and not of a test.
own_lines() {
    local folder=$1 text=$2 files
    mapfile -t files < <(cd "$repo" && find "$folder" -name '*.rs' "${@:3}" \
        -not -name tests.rs -not -name fake.rs -not -name schedules.rs | sort)
    printf '| `%s`: %s | %s | %s |\n' "$folder" "$text" "${#files[@]}" "$(cd "$repo" && awk '
        FNR == 1 { tested = 0 }
        /^#\[cfg\(test\)\]/ { tested = 1 }
        !tested && !/^[[:blank:]]*(\/\/|$)/ { lines++ }
        END { print lines }' "${files[@]}")"
}

# crates: prints one line for each crate of others that is in a program. Crates that make code at build time (derive
# macros) are not in it.
crates() {
    local service crate version licence where
    declare -A licences of
    for service in "${services[@]}"; do
        while IFS='|' read -r crate licence; do
            licences[$crate]=$licence
            of[$crate]+=" $service"
        done < <(crates_of "$service")
        printf '`%s` has %s crates of others.\n' "$service" "$(crates_of "$service" | wc -l)"
    done
    echo
    echo '| crate | licence | in | lines with `unsafe` | files in C or assembler | runs code when it is built |'
    echo '|---|---|---|---|---|---|'
    while read -r crate version; do
        where=$(source_of "$crate" "$version")
        printf '| %s %s | %s |%s | %s | %s | %s |\n' "$crate" "$version" "${licences["$crate $version"]}" \
            "$(sed 's/ gateway/ G/; s/ inventory/ I/; s/ billing/ B/' <<<"${of["$crate $version"]}")" \
            "$(unsafe_lines "$where")" "$(foreign_files "$where")" "$(! grep -q '^build = "' "$where/Cargo.toml" || echo yes)"
    done < <(printf '%s\n' "${!of[@]}" | LC_ALL=C sort)
}

# crates_of SERVICE: prints a line NAME VERSION|LICENCE for each crate on Linux on x86_64.
crates_of() {
    cargo tree --quiet --locked --manifest-path "$repo/Cargo.toml" --package "$1" --edges normal,no-proc-macro \
        --target x86_64-unknown-linux-gnu --prefix none --format '{p}|{l}' |
        sed -E 's/ \(\*\)$//; /\(proc-macro\)/d; / \(\//d; s/^([^ ]+) v/\1 /' | LC_ALL=C sort -u
}

source_of() {
    local found=("${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$1-$2")
    [[ -d ${found[0]} ]] || die "the sources of $1 $2 are not here: run cargo fetch"
    echo "${found[0]}"
}

# unsafe_lines FOLDER: counts the lines with unsafe code that are not comments, for every system, even if most are not
# for Linux.
unsafe_lines() {
    find "$1" -name '*.rs' -not -name build.rs "${no_tests[@]}" -exec cat {} + |
        grep -vE '^[[:blank:]]*//' | grep -cE '\bunsafe\b' || true
}

foreign_files() {
    find "$1" \( -name '*.c' -o -name '*.S' -o -name '*.s' -o -name '*.asm' \) "${no_tests[@]}" | wc -l
}

no_tests=(-not -path '*/tests/*' -not -path '*/examples/*' -not -path '*/benches/*')

# The running programs

# running: prints names of settings in place of ports, so that the output is equal on every machine.
running() {
    local program
    echo '| program | listens on | connects to | opens | threads |'
    echo '|---|---|---|---|---|'
    for program in "${apps[@]}"; do
        printf '| `%s` | %s | %s | %s | %s |\n' "$program" "$(listens "$program")" "$(connects "$program")" \
            "$(opens "$program")" "$(in_a_row <"$scratch/$program.threads")"
    done
}

# calls: prints the system calls with their counts, which differ from run to run.
calls() {
    local program
    echo '| program | system calls |'
    echo '|---|---|'
    for program in "${apps[@]}"; do
        printf '| `%s` | %s |\n' "$program" "$(called "$program" | sort | uniq -c | sort -rn |
            awk '{ printf "%s%s %s", separator, $2, $1; separator = ", " }')"
    done
}

# watch_at_work: keeps the platform at work while strace records the system calls of the programs.
watch_at_work() {
    local folder alias program pid tracers=()
    folder=$(realpath -m -- "${LOCAL_DIR:-$repo/.local}")
    alias=$(alias_of "$folder")
    read_settings "$folder/settings.env"
    command -v strace >/dev/null || die 'there is no strace: install its package'
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    for program in "${apps[@]}"; do
        pid=$(app_pid "$alias" "$program") || die "$program does not run in $folder: start it with setup/local.sh up"
        strace --follow-forks --quiet=all --output "$scratch/$program" --attach "$pid" &
        tracers+=($!)
    done
    for program in "${apps[@]}"; do
        # Requests for the metrics are sent until strace records one.
        until [[ -s $scratch/$program ]]; do
            kill -0 "${tracers[@]}" 2>/dev/null || die 'strace may not attach to the programs: see ptrace(2)'
            ask "$program" /metrics
        done
    done
    keep_at_work
    for program in "${apps[@]}"; do
        pid=$(app_pid "$alias" "$program")
        cat "/proc/$pid/task/"*/comm | sort -u >"$scratch/$program.threads"
        ss -Hltnp | sed -n "s/^.*:\([0-9]*\) .*pid=$pid,.*/\1/p" >"$scratch/$program.listens"
    done
    kill "${tracers[@]}"
    wait "${tracers[@]}" || true
}

# keep_at_work: sends requests, orders and mistakes, with an outage of each server in between.
keep_at_work() {
    local program server
    {
        smoke
        for server in rabbitmq postgres; do
            LOCAL_DIR=$folder "$repo/setup/local.sh" stop "$server"
            LOCAL_DIR=$folder "$repo/setup/local.sh" start "$server"
        done
        smoke
        ask api-gateway /api/status
        ask api-gateway /api/orders
        for program in "${apps[@]}"; do
            ask "$program" /ready
            ask "$program" /metrics
        done
    } >"$scratch/output" 2>&1 || die "the platform does not work: $(tail -n 5 "$scratch/output")"
}

smoke() {
    "$repo/setup/smoke.sh" "$(url_of api-gateway)" --orders "$(url_of billing-api)"
}

# ask PROGRAM PATH
ask() {
    curl --disable --noproxy '*' --silent --retry 20 --retry-all-errors --fail --output /dev/null "$(url_of "$1")$2"
}

url_of() {
    echo "http://$(host_to_ask "${SETTINGS[LISTEN_ADDRESS]:-0.0.0.0}"):${SETTINGS[${app_port_key[$1]}]}"
}

listens() {
    names_of_ports <"$scratch/$1.listens"
}

connects() {
    sed -n 's/.* connect(.*htons(\([0-9]*\)).*/\1/p' "$scratch/$1" | names_of_ports
}

# names_of_ports: prints the names of the settings that have the ports on its input.
names_of_ports() {
    local port key
    while read -r port; do
        for key in "${!SETTINGS[@]}"; do
            [[ $key != *_PORT || ${SETTINGS[$key]} != "$port" ]] || echo "$key"
        done
    done | sort -u | in_a_row
}

opens() {
    sed -nE 's/.* (openat|open|execve)\([^"]*"([^"]*)".*/\2/p' "$scratch/$1" |
        sed -E 's|^/proc/[0-9]+|/proc/PID|' | sort -u | in_a_row
}

called() {
    sed -nE 's/^[0-9]+ +(<\.\.\. )?([a-z0-9_]+)(\(| resumed).*/\2/p' "$scratch/$1"
}

# in_a_row: prints its input lines as a list on one line.
in_a_row() {
    awk '{ printf "%s`%s`", separator, $0; separator = ", " }'
}

main "$@"
