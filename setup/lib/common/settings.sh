# shellcheck shell=bash
# Files of KEY=VALUE lines, by the grammar in docs/SETTINGS.md, which the programs and the Vagrantfile implement too. No
# message shows a value, since it may be a password.

# The settings in force, and their keys in the order in which they were read.
declare -gA SETTINGS=()
declare -ga SETTING_KEYS=()

# The settings of the programs that are not in .env; the list in the Vagrantfile must be equal.
# shellcheck disable=SC2034 # other scripts use it
optional_settings=(
    POSTGRES_SCHEMA BILLING_QUEUE_TYPE DEAD_LETTERS_BYTES_MAX INVENTORY_URLS API_KEYS_FILE OPERATIONS_KEY ALLOWED_HOSTS
    RATE_LIMIT_PER_SECOND RATE_LIMIT_BURST TLS_CERT_FILE TLS_KEY_FILE HTTP_WORKERS HTTP_CONNECTIONS_MAX
    HTTP_CONNECTIONS_PER_CLIENT_MAX HTTP_REQUEST_LINE_BYTES_MAX HTTP_HEAD_BYTES_MAX HTTP_HEADERS_MAX
    HTTP_BODY_BYTES_MAX HTTP_BUFFER_BYTES_MAX
    HTTP_HEAD_SECONDS HTTP_BODY_SECONDS HTTP_IDLE_SECONDS HTTP_SEND_SECONDS HTTP_QUEUE_MAX
    HTTP_QUEUE_MILLISECONDS HTTP_ANSWER_SECONDS HTTP_REUSE_PORT
    POSTGRES_SSLMODE POSTGRES_SSLROOTCERT POSTGRES_SSLCERT POSTGRES_SSLKEY
    RABBITMQ_TLS RABBITMQ_CACERTFILE RABBITMQ_CERTFILE RABBITMQ_KEYFILE
)
# The settings that protect something, and so must not be lost: those of the gateway, and those of all programs.
guarding_files=(API_KEYS_FILE TLS_CERT_FILE TLS_KEY_FILE)
gateway_guards=("${guarding_files[@]}" RATE_LIMIT_PER_SECOND RATE_LIMIT_BURST)
guarding_settings=("${gateway_guards[@]}" ALLOWED_HOSTS OPERATIONS_KEY)

# set_setting KEY VALUE
set_setting() {
    [[ -v SETTINGS[$1] ]] || SETTING_KEYS+=("$1")
    SETTINGS[$1]=$2
}

# read_settings FILE: sets the settings of all lines of the file.
read_settings() {
    local line key value number=0
    local pair='^(export[ '$'\t'']+)?([A-Za-z_][A-Za-z0-9_]*)[ '$'\t'']*=(.*)$'
    [[ -e $1 ]] || die "there is no $1; git checkout restores the one of the project"
    [[ -r $1 ]] || die "$1 cannot be read: it belongs to $(stat -c %U "$1"), and this is $(id -un): run this as that user"
    # PowerShell's > writes UTF-16, half of which is NUL.
    if IFS= read -rd '' line <"$1" || [[ $line == $'\xff\xfe'* || $line == $'\xfe\xff'* ]]; then
        die "$1 is UTF-16: save it as UTF-8"
    fi
    while IFS= read -r line || [[ -n $line ]]; do
        ((number += 1))
        [[ $line =~ ^.*$ ]] || die "$1 is not UTF-8 in line $number: save it as UTF-8"
        ((number > 1)) || line=${line#$'\ufeff'}
        line=${line%$'\r'}
        [[ ! $line =~ [$'\x01'-$'\x08'$'\x0b'-$'\x1f'$'\x7f'] ]] || die "$1 has a control character in line $number: remove it"
        line=${line#"${line%%[! $'\t']*}"} line=${line%"${line##*[! $'\t']}"}
        [[ -n $line && $line != '#'* ]] || continue
        [[ $line =~ $pair ]] || die "$1 has no KEY=VALUE in line $number; a comment begins with #"
        key=${BASH_REMATCH[2]}
        unquote "${BASH_REMATCH[3]}" ||
            die "$1 must have the value of $key in line $number between single quotes, where '\'' stands for one"
        set_setting "$key" "$value"
    done <"$1"
}

# unquote TEXT: sets value to the value of the text after KEY=. It refuses texts that other readers of such files
# understand differently: escapes, substitutions, and a # directly after the =.
unquote() {
    local begin=$'^[ \t]*' end=$'([ \t]+(#.*)?)?$' odd=$' \t"\'\\$'
    local single="$begin'(([^']|'\\\\'')*)'$end" double="$begin\"([^\"\\\$]*)\"$end"
    local bare="$begin([^#$odd][^$odd]*)$end" none="^$end"
    if [[ $1 =~ $none ]]; then
        value=''
    elif [[ $1 =~ $single ]]; then
        value=${BASH_REMATCH[1]//"'\\''"/"'"}
    elif [[ $1 =~ $double || $1 =~ $bare ]]; then
        value=${BASH_REMATCH[1]}
    else
        return 1
    fi
}

# quoted TEXT: prints the text so that unquote reads it.
quoted() {
    if [[ $1 =~ ^[A-Za-z0-9_./:@%+,=-]*$ ]]; then
        printf '%s' "$1"
    else
        printf "'%s'" "${1//\'/\'\\\'\'}"
    fi
}

# environment_wins [KEY…]: a variable of the environment replaces the setting of that name, or adds the setting if it is
# one of KEY.
environment_wins() {
    local key value
    for key in "${SETTING_KEYS[@]}" "$@"; do
        if value=$(printenv -- "$key"); then
            [[ ! $value =~ [$'\x01'-$'\x08'$'\x0a'-$'\x1f'$'\x7f'] && $value =~ ^.*$ ]] ||
                die "$key must be a single line of UTF-8 without control characters: set it again"
            set_setting "$key" "$value"
        fi
    done
}

# write_settings FILE [LEFT_OUT…]: writes all settings except those left out; only the owner can read the file.
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

# take_new FILE: replaces FILE with FILE.new in one step. A file with equal content stays, with its owner.
take_new() {
    if cmp -s "$1.new" "$1"; then
        rm -f "$1.new"
    else
        mv -f "$1.new" "$1"
    fi
}

# read_project_settings FOLDER: reads .env and .env.local, which overrides it and which git ignores.
read_project_settings() {
    read_settings "$1/.env"
    [[ ! -e $1/.env.local ]] || read_settings "$1/.env.local"
}

# require_guards: refuses a protective setting that is set and empty, since it would protect nothing.
require_guards() {
    local key
    for key in "${guarding_settings[@]}"; do
        [[ ! -v SETTINGS[$key] || -n ${SETTINGS[$key]} ]] || die "$key is set and empty: give it a value, or leave it out of .env.local and of the environment"
    done
}

# allow_hosts: sets ALLOWED_HOSTS to the name of this machine, unless it is set.
allow_hosts() {
    local name
    name=$(uname -n)
    [[ -v SETTINGS[ALLOWED_HOSTS] || ! $name =~ ^[A-Za-z0-9._-]+$ ]] || set_setting ALLOWED_HOSTS "$name"
}

# guarding_file KEY: prints the path of the file that the setting names; a relative path begins at the project's folder.
guarding_file() {
    local file=${SETTINGS[$1]}
    [[ $file == /* ]] || file=${repo:?}/$file
    [[ -f $file && -r $file ]] || die "$1 names $file, which is not a file that can be read here"
    echo "$file"
}

# require_settings KEY…: checks that each is set and not empty.
require_settings() {
    local key
    for key in "$@"; do
        [[ -n ${SETTINGS[$key]:-} ]] || die "$key is missing: set it in .env.local or in the environment"
    done
}

# require_roles: checks that the roles of PostgreSQL and the users of RabbitMQ are set, differ from each other, and are
# not the administrators.
require_roles() {
    local server who
    require_settings {POSTGRES{,_READER},RABBITMQ{,_CONSUMER}}_{USER,PASSWORD}
    for who in POSTGRES{,_READER}_USER=postgres RABBITMQ{,_CONSUMER}_USER=setup; do
        [[ ${SETTINGS[${who%=*}]} != "${who#*=}" ]] ||
            die "$who is the administrator: set another in .env.local or in the environment"
    done
    for server in 'POSTGRES_USER POSTGRES_READER_USER' 'RABBITMQ_USER RABBITMQ_CONSUMER_USER'; do
        [[ ${SETTINGS[${server% *}]} != "${SETTINGS[${server#* }]}" ]] ||
            die "${server/ / and } are equal, and must differ: set another in .env.local or in the environment"
    done
}

# require_ports KEY…: checks that each is a port, and that all differ.
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

# random_secret: prints 32 hexadecimal digits.
random_secret() {
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}
