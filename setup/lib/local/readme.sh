# shellcheck shell=bash
# Runs the examples in README.md unchanged. A block that opens with ```sh and the name of a tour has commands, each on a
# line of its own or continued with a backslash, and below a command the texts that its output must contain:
#
#   # → TEXT      at once
#   # ⇒ TEXT      soon: the command is repeated for up to 15 s
#
# Other comments and empty lines are ignored.

# run_tour FILE TOUR [TEXT=OTHER]…: runs the commands one after the other, with OTHER in place of TEXT, until one fails
# or its output lacks a text.
run_tour() {
    local i tour_commands=() tour_expected=() tour_soon=()
    read_tour "$@"
    ((${#tour_commands[@]} > 0)) || die "$1 has no block that opens with \`\`\`sh $2"
    for ((i = 0; i < ${#tour_commands[@]}; i++)); do
        printf '$ %s\n' "${tour_commands[i]}"
        try_command "${tour_commands[i]}" "${tour_expected[i]}" "${tour_soon[i]}" ||
            die "$1: the output of this command is not as written below it"
    done
    echo "the output of ${#tour_commands[@]} commands is as written there"
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

# expect SIGN TEXT: adds a text that the output of the last command must contain.
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

# curl ARGUMENT…: runs curl without its progress meter, which a reader's terminal does not show either.
curl() {
    command curl --no-progress-meter "$@"
}

# try_command COMMAND EXPECTED SOON: runs the command and prints its output if it lacks a text. The command runs in this
# shell, so that the next command has its variables.
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

# first_missing FILE TEXTS: prints the first line of TEXTS that is not in the file.
first_missing() {
    local text
    while IFS= read -r text; do
        if [[ -n $text ]] && ! grep -qF -- "$text" "$1"; then
            printf '%s\n' "$text"
            return
        fi
    done <<<"$2"
}
