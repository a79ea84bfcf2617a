# shellcheck shell=bash
# Files of KEY=VALUE lines, read the way the Rust programs read them (dotenvy), and written so
# that they read the same. No value is ever shown: it may be the password.

# The settings in force, and their keys in the order in which they came.
declare -gA SETTINGS=()
declare -ga SETTING_KEYS=()

# set_setting KEY VALUE
set_setting() {
    [[ -v SETTINGS[$1] ]] || SETTING_KEYS+=("$1")
    SETTINGS[$1]=$2
}

# read_settings FILE: takes over every line of the file.
read_settings() {
    local line key value number=0
    [[ -e $1 ]] || die "there is no $1; git checkout brings the one of the project back"
    [[ -r $1 ]] || die "$1 cannot be read: it belongs to $(stat -c %U "$1"), and this is $(id -un): be that user"
    while IFS= read -r line || [[ -n $line ]]; do
        ((number += 1))
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*=[[:space:]]*(.*)$ ]] ||
            die "$1: line $number is not KEY=VALUE; a comment begins with #"
        key=${BASH_REMATCH[2]}
        value=$(unquoted "${BASH_REMATCH[3]}") ||
            die "$1, line $number: put the value of $key between single quotes"
        set_setting "$key" "$value"
    done <"$1"
}

# unquoted TEXT: the value that the text behind KEY= stands for. Substitutions and escapes,
# which dotenvy knows, are refused rather than guessed; only '\'' is known, as in the shell.
unquoted() {
    local end='[[:space:]]*([[:space:]]#.*)?$' value
    local single="^'(([^']|'\\\\'')*)'$end" double="^\"([^\"\\\$]*)\"$end" bare="^([^[:space:]\"'\\\$]*)$end"
    if [[ $1 =~ $single ]]; then
        value=${BASH_REMATCH[1]//"'\\''"/"'"}
    elif [[ $1 =~ $double || $1 =~ $bare ]]; then
        value=${BASH_REMATCH[1]}
    else
        return 1
    fi
    printf '%s' "$value"
}

# quoted TEXT: the opposite.
quoted() {
    if [[ $1 =~ ^[A-Za-z0-9_./:@%+,=-]*$ ]]; then
        printf '%s' "$1"
    else
        printf "'%s'" "${1//\'/\'\\\'\'}"
    fi
}

# environment_wins [KEY…]: a variable of the same name in the environment replaces a setting,
# or adds one of these.
environment_wins() {
    local key value
    for key in "${SETTING_KEYS[@]}" "$@"; do
        if value=$(printenv -- "$key"); then
            [[ $value != *$'\n'* ]] || die "$key must be a single line: set it again without line breaks"
            set_setting "$key" "$value"
        fi
    done
}

# write_settings FILE [LEFT_OUT…]: all but the ones left out, for its owner's eyes only.
write_settings() {
    local key file=$1
    shift
    (
        umask 077
        for key in "${SETTING_KEYS[@]}"; do
            [[ " $* " != *" $key "* ]] || continue
            printf '%s=%s\n' "$key" "$(quoted "${SETTINGS[$key]}")"
        done >"$file.new"
    )
    take_new "$file"
}

# take_new FILE: FILE.new in its place, whole or not at all. A file that says the same already
# stays, and its owner with it.
take_new() {
    if cmp -s "$1.new" "$1"; then
        rm -f "$1.new"
    else
        mv -f "$1.new" "$1"
    fi
}

# read_project_settings FOLDER: .env, and over it .env.local, which git does not know.
read_project_settings() {
    read_settings "$1/.env"
    [[ ! -e $1/.env.local ]] || read_settings "$1/.env.local"
}

# require_settings KEY…: each is there and not empty.
require_settings() {
    local key
    for key in "$@"; do
        [[ -n ${SETTINGS[$key]:-} ]] || die "$key is missing: set it in .env.local or in the environment"
    done
}

# require_ports KEY…: each is a port, and no two are the same.
require_ports() {
    local key port
    local -A taken=()
    for key in "$@"; do
        port=${SETTINGS[$key]:-}
        port_valid "$port" || die "$key must be a port number from 1 to 65535: set it in .env.local or in the environment"
        [[ ! -v taken[$port] ]] || die "${taken[$port]} and $key are both $port: set one of them to another in .env.local or in the environment"
        taken[$port]=$key
    done
}

# random_secret: 32 hexadecimal digits.
random_secret() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}
