# shellcheck shell=bash
# The examples in README.md, tried as they stand there. A block that opens with ```sh and the
# name of a tour holds commands, each on a line of its own or continued with a backslash, and
# below a command what its output has to contain:
#
#   # → TEXT      at once
#   # ⇒ TEXT      soon: the command is repeated for up to 15 s
#
# Other comments and empty lines are for the reader alone.

# run_tour FILE TOUR [TEXT=OTHER]…: runs the commands one after the other, with OTHER wherever
# TEXT stands, until one does not do what is written there.
run_tour() {
    local i tour_commands=() tour_expected=() tour_soon=()
    read_tour "$@"
    ((${#tour_commands[@]} > 0)) || die "$1 has no block that opens with \`\`\`sh $2"
    for ((i = 0; i < ${#tour_commands[@]}; i++)); do
        printf '$ %s\n' "${tour_commands[i]}"
        try_command "${tour_commands[i]}" "${tour_expected[i]}" "${tour_soon[i]}" ||
            die "$1: this command does not do what is written below it"
    done
    echo "${#tour_commands[@]} commands did what is written there"
}

# read_tour FILE TOUR [TEXT=OTHER]…: fills the three lists of run_tour.
read_tour() {
    local line inside=false command=''
    while IFS= read -r line; do
        line=$(with_other_texts "$line" "${@:3}")
        if [[ $line =~ ^\`\`\`sh\ $2[[:space:]]*$ ]]; then
            inside=true
        elif ! $inside; then
            continue
        elif [[ $line == '```'* ]]; then
            inside=false
        elif [[ -z $command && $line =~ ^#\ (→|⇒)\ (.*)$ ]]; then
            expect "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
        elif [[ -n $command || ! $line =~ ^[[:space:]]*(#.*)?$ ]]; then
            command+=$line$'\n'
            [[ $line != *\\ ]] || continue
            tour_commands+=("${command%$'\n'}")
            tour_expected+=('')
            tour_soon+=(false)
            command=''
        fi
    done <"$1"
}

# expect SIGN TEXT: of the command read last.
expect() {
    local last=$((${#tour_commands[@]} - 1))
    ((last >= 0)) || die "the tour expects '$2' before its first command"
    tour_expected[last]+=$2$'\n'
    [[ $1 == → ]] || tour_soon[last]=true
}

with_other_texts() {
    local text=$1 pair
    for pair in "${@:2}"; do
        text=${text//"${pair%%=*}"/"${pair#*=}"}
    done
    printf '%s\n' "$text"
}

# curl as on a reader's terminal, where no progress meter stands before the answer.
curl() {
    command curl --no-progress-meter "$@"
}

# try_command COMMAND EXPECTED SOON: what the command says is printed if it is not as expected.
# It runs in this shell, as it would in a reader's: what it sets is there for the next one.
try_command() {
    local said status missing deadline=$((SECONDS + 15))
    said=$(mktemp)
    while true; do
        status=0
        eval "$1" >"$said" 2>&1 </dev/null || status=$?
        missing=$(first_missing "$said" "$2")
        if [[ $status == 0 && -z $missing ]] || ! $3 || ((SECONDS >= deadline)); then
            break
        fi
        sleep 0.5
    done
    if [[ $status != 0 || -n $missing ]]; then
        cat "$said"
        note "exit code: $status"
        [[ -z $missing ]] || note "missing in the output: $missing"
    fi
    rm -f "$said"
    [[ $status == 0 && -z $missing ]]
}

# first_missing FILE TEXTS: the first line of TEXTS that is nowhere in the file.
first_missing() {
    local text
    while IFS= read -r text; do
        if [[ -n $text ]] && ! grep -qF -- "$text" "$1"; then
            printf '%s\n' "$text"
            return
        fi
    done <<<"$2"
}
