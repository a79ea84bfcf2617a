#!/usr/bin/env bash
# The whole platform on this machine: PostgreSQL, RabbitMQ and the four programs, in a folder of their own. Only
# this machine can reach them, and nothing else that runs here is touched.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"
source "$repo/setup/lib/common/apps.sh"

usage() {
    cat <<'USAGE'
The whole platform on this machine.

  setup/local.sh [up]             install what is missing, build, start what does not run yet
  setup/local.sh status           show what runs, and where
  setup/local.sh logs [NAME]…     show the logs of the programs, of postgres or of rabbitmq
  setup/local.sh down             stop everything; the data stays
  setup/local.sh reset [--yes]    stop everything and delete the data
  setup/local.sh stop|start postgres|rabbitmq     begin an outage, and end it
  setup/local.sh psql DATABASE [ARGUMENT]…        run psql as the role of the programs
  setup/local.sh rabbitmqctl ARGUMENT…            run rabbitmqctl
  setup/local.sh dead-letters ARGUMENT…           run billing-dead-letters, for instance: dead-letters list
  setup/local.sh pm2 ARGUMENT…                    run PM2, for instance: pm2 stop billing-consumer
  setup/local.sh help | version

The settings come from .env. A line of .env.local overrides .env, and a variable of that name in
the environment, for instance POSTGRES_PORT, overrides both. LOCAL_DIR names the folder for data,
logs and settings (.local); with another folder and other ports a second platform runs beside the
first. All commands except "up" use the settings that the last "up" wrote into that folder.
USAGE
}

# The settings that differ from .env: one machine instead of three, and ports on which the machine's own
# PostgreSQL or RabbitMQ does not listen.
local_defaults=(
    LISTEN_ADDRESS=127.0.0.1
    POSTGRES_HOST=127.0.0.1
    POSTGRES_PORT=15432
    RABBITMQ_HOST=127.0.0.1
    RABBITMQ_PORT=5673
    RABBITMQ_MANAGEMENT_PORT=15673
    RABBITMQ_DIST_PORT=25673
    ERL_EPMD_PORT=14369
    EXPOSE_ORDERS=true
)
# The size at which a log is put aside. Together with the former log it takes twice that size.
log_bytes_max=$((32 << 20))
server_port_keys=(
    POSTGRES_PORT RABBITMQ_PORT RABBITMQ_MANAGEMENT_PORT RABBITMQ_DIST_PORT ERL_EPMD_PORT
)

# The commands

up() {
    trap 'die "interrupted; the next run continues from here"' INT
    heading "The platform on this machine, in $folder"
    require_debian
    if [[ $folder == "$repo/.local" ]]; then
        require_writable "$folder" "$own_copy"
    else
        require_writable "$folder" 'name another LOCAL_DIR'
    fi
    choose_settings
    install_what_is_missing
    take_folder
    refuse_foreign_ports

    build
    step 'Write the settings' write_settings "$folder/settings.env"
    start_postgres
    start_rabbitmq
    step 'Start the programs' apps_start "$alias"
    step 'Keep the logs small' bound_logs
    step 'Wait until every program is ready' wait_until_ready
    report
}

down() {
    [[ -d $folder ]] || die "there is no $folder, so nothing runs in it: name the LOCAL_DIR that the platform was started with"
    take_folder
    step 'Stop the programs' apps_stop "$alias"
    step 'Stop RabbitMQ' rabbitmq_stop "$alias/rabbitmq"
    step 'Stop PostgreSQL' postgres_stop "$alias/postgres"
    stop_daemon "$alias/logs/bound.pid" "LOGS_OF=$alias"
}

reset() {
    local answer
    if [[ ${1:-} != --yes ]]; then
        [[ -t 0 ]] || die 'there is no terminal for the question: to delete the data without it, use reset --yes'
        read -rp "Delete all movies, orders and logs in $folder? [y/N] " answer
        [[ $answer == [yY]* ]] || die 'nothing was deleted, and everything still runs'
    fi
    down
    step 'Delete the data' delete_data
}

delete_data() {
    postgres_remove "$alias/postgres"
    rm -rf "$folder"/{rabbitmq,pm2,logs,programs,apps.json,salt,settings.env,lock}
    rmdir --ignore-fail-on-non-empty "$folder"
    remove_alias "$folder" "$alias"
}

# status: succeeds if everything runs and is ready.
status() {
    local app server state unwell=()
    use_settings
    for app in "${apps[@]}"; do
        state=$(app_state "$app")
        [[ $state == ready ]] || unwell+=("$app")
        place "$app" "$(app_url "$app")" "$state"
    done
    for server in postgres rabbitmq; do
        state=$(server_state "$server")
        [[ $state == runs ]] || unwell+=("$server")
        place "$server" "$(server_address "$server")" "$state"
    done
    ((${#unwell[@]} > 0)) || return 0
    if ! apps_daemon_pid "$alias" >/dev/null; then
        printf '\n  next: %s\n' "$(call up)"
    else
        for server in "${unwell[@]}"; do
            show_cause "$server"
        done
    fi
    return 1
}

# show_cause NAME: prints why a program or server is not ready: its own answer, the last line of its log, and the
# command that comes next.
show_cause() {
    local state='does not run' next="start $1" detail
    [[ ! -v app_port_key[$1] ]] || state=$(app_state "$1") next="pm2 restart $1"
    if [[ $state == 'not ready' ]]; then
        detail=$(ask --max-time 5 "$(app_url "$1")/ready" | sed -n 's/.*"detail":"\([^"]*\)".*/\1/p')
        state="is ${detail:-not ready}" next="logs $1"
    fi
    echo
    say "$1 $state"
    note "the last line of its log: $(tail -n 100 "$(log_file "$1")" | grep -v ' target=access ' | tail -n 1)"
    note "next: $(call "$next")"
}

# logs [NAME]…: follows the logs on a terminal; otherwise prints their last lines.
logs() {
    local name file files=()
    for name in "${@:-${apps[@]}}"; do
        file=$(log_file "$name")
        [[ -f $file ]] || die "there is no log of $name in $folder: name one of ${apps[*]} postgres rabbitmq; each has a log from its first start, by setup/local.sh up"
        files+=("$file")
    done
    if [[ -t 1 ]]; then
        exec tail -n 20 -F "${files[@]}"
    fi
    exec tail -n 200 "${files[@]}"
}

stop() {
    use_settings
    take_folder
    case $1 in
        postgres) step 'Stop PostgreSQL' postgres_stop "$alias/postgres" ;;
        rabbitmq) step 'Stop RabbitMQ' rabbitmq_stop "$alias/rabbitmq" ;;
    esac
}

start() {
    use_settings
    take_folder
    "start_$1"
}

psql() {
    local database=$1 programs
    shift
    use_settings
    programs=$(postgres_programs "$alias/postgres")
    PGPASSWORD=${SETTINGS[POSTGRES_PASSWORD]} exec "$programs/psql" --host=127.0.0.1 \
        --port="${SETTINGS[POSTGRES_PORT]}" --username="${SETTINGS[POSTGRES_USER]}" \
        --dbname="$database" "$@"
}

rabbitmqctl() {
    use_settings
    rabbitmq_run "$alias/rabbitmq" rabbitmqctl "$@"
}

# dead-letters ARGUMENT…: runs in the working directory of the user, to which the name of an export file is relative.
dead-letters() {
    use_settings
    [[ -x $folder/programs/billing-dead-letters ]] || die "there is no $folder/programs/billing-dead-letters: build it with setup/local.sh up"
    umask 077 # for exports
    ENV_FILE=$folder/settings.env "$folder/programs/billing-dead-letters" "$@"
}

# pm2 ARGUMENT…: fails if PM2's daemon does not run, since PM2 would start one.
pm2() {
    use_node
    apps_daemon_pid "$alias" >/dev/null || die "no programs run in $folder: start them with setup/local.sh up"
    run_pm2 "$alias" "$@"
}

# Folders and settings

# find_folder: sets folder to the absolute path of LOCAL_DIR, and alias to a path that servers and programs accept.
find_folder() {
    folder=$(realpath -m -- "${LOCAL_DIR:-$repo/.local}")
    [[ $folder != *[[:cntrl:]]* && $folder =~ ^.*$ ]] ||
        die 'LOCAL_DIR must be UTF-8 without line breaks or control characters: name another folder'
    alias=$(alias_of "$folder")
    [[ -e $folder ]] || return 0
    # Two users cannot share these files.
    [[ -O $folder ]] || die "$folder belongs to $(stat -c %U "$folder"): run this as that user, or name another LOCAL_DIR"
    make_alias "$folder" "$alias"
}

# take_folder: makes the folder, and lets one script at a time change what runs in it. The folder itself is the
# lock, which ends with this script.
take_folder() {
    install -d "$folder"
    make_alias "$folder" "$alias"
    folder_lock=''
    open_lock folder_lock "$folder"
    flock --nonblock "$folder_lock" && return
    say "Wait for another setup/local.sh that works in $folder"
    flock "$folder_lock"
}

# choose_settings: reads .env. Settings of .env.local override it, then those of one machine, then the environment.
choose_settings() {
    local default key host
    read_project_settings "$repo"
    for default in "${local_defaults[@]}"; do
        set_setting "${default%%=*}" "${default#*=}"
    done
    environment_wins LISTEN_ADDRESS "${optional_settings[@]}"
    choose_guards
    host=$(host_to_ask "$(listen_address inventory-api)")
    for key in GATEWAY_VM_IP INVENTORY_VM_IP BILLING_VM_IP; do
        set_setting "$key" "$(tr -d '[]' <<<"$host")"
    done
    environment_wins
    require_settings INVENTORY_DB_NAME BILLING_DB_NAME RABBITMQ_QUEUE
    require_roles
    require_ports "${app_port_key[@]}" "${server_port_keys[@]}"
}

# choose_guards: puts each protective setting in force, or refuses it. HTTPS is refused, since this script sends
# requests over HTTP.
choose_guards() {
    local file
    require_guards
    allow_hosts
    [[ ! -v SETTINGS[TLS_CERT_FILE] && ! -v SETTINGS[TLS_KEY_FILE] ]] ||
        die 'TLS_CERT_FILE and TLS_KEY_FILE are not for setup/local.sh, which uses HTTP: leave them out of .env.local and of the environment'
    [[ -v SETTINGS[API_KEYS_FILE] ]] || return 0
    file=$(guarding_file API_KEYS_FILE)
    set_setting API_KEYS_FILE "$file"
}

# listen_address APP: prints the address of a program. Where keys are in force, only the gateway is open to clients,
# and the other programs listen on loopback.
listen_address() {
    if [[ -n ${SETTINGS[API_KEYS_FILE]:-} && $1 != api-gateway ]]; then
        echo 127.0.0.1
    else
        echo "${SETTINGS[LISTEN_ADDRESS]}"
    fi
}

# app_environment APP: prints variables that override the settings of the program.
app_environment() {
    printf ', "LISTEN_ADDRESS": %s' "$(json_text "$(listen_address "$1")")"
}

# use_settings: reads the settings of the last `up`.
use_settings() {
    [[ -f $folder/settings.env ]] || die "nothing has been started in $folder yet: start the platform with setup/local.sh up"
    read_settings "$folder/settings.env"
}

# app_url APP: prints the URL at which this machine reaches the program.
app_url() {
    echo "http://$(host_to_ask "$(listen_address "$1")"):${SETTINGS[${app_port_key[$1]}]}"
}

server_address() {
    case $1 in
        postgres) echo "127.0.0.1:${SETTINGS[POSTGRES_PORT]}" ;;
        rabbitmq) echo "127.0.0.1:${SETTINGS[RABBITMQ_PORT]}" ;;
    esac
}

log_file() {
    case $1 in
        postgres) echo "$folder/postgres/log" ;;
        rabbitmq) echo "$folder/rabbitmq/log/rabbit@localhost.log" ;;
        *) echo "$folder/logs/$1.log" ;;
    esac
}

# The steps of `up`

install_what_is_missing() {
    local missing
    mapfile -t missing < <(lacking_basics && lacking_servers && lacking_node)
    install_packages "${missing[@]}"
    install_rust
    install_pm2
}

# refuse_foreign_ports: ends the script if another program has one of the ports. It is called before anything is
# started, so that nothing is left half done.
refuse_foreign_ports() {
    local key holder ours
    ours=$(our_pids)
    for key in "${app_port_key[@]}" "${server_port_keys[@]}"; do
        holder=$(port_holder "${SETTINGS[$key]}") || continue
        grep -qx "${holder% *}" <<<"$ours" ||
            die "port ${SETTINGS[$key]} is taken by $(holder_name "$holder"): free it, or take another port, as in $key=PORT setup/local.sh"
    done
}

our_pids() {
    local app
    postgres_pid "$(postgres_home "$alias/postgres")" || true
    rabbitmq_pid "$alias/rabbitmq" || true
    rabbitmq_epmd_pid "$alias/rabbitmq" || true
    for app in "${apps[@]}"; do
        app_pid "$alias" "$app" || true
    done
}

holder_name() {
    case $1 in
        '? ?') echo 'a process of another user' ;;
        *) echo "${1#* } (process ${1% *})" ;;
    esac
}

build() {
    local text='Build the programs'
    [[ -x $folder/programs/billing-consumer ]] || text+=' (the first time takes some minutes)'
    step "$text" run_cargo
}

# run_cargo: releases the lock on the folder, since a compiler cache that cargo may start would hold it for ever.
run_cargo() {
    exec {folder_lock}<&-
    cd "$repo"
    cargo_build "$folder" --release
}

start_postgres() {
    step "Start PostgreSQL at $(server_address postgres)" \
        postgres_start "$alias/postgres" "${SETTINGS[POSTGRES_PORT]}" 'max_connections = 200'
    step 'Make the databases and their roles' make_databases
}

make_databases() {
    local user=${SETTINGS[POSTGRES_USER]} reader=${SETTINGS[POSTGRES_READER_USER]}
    {
        sql_nobody_else
        sql_role "$user" "${SETTINGS[POSTGRES_PASSWORD]}"
        sql_database "${SETTINGS[INVENTORY_DB_NAME]}" "$user"
        sql_database "${SETTINGS[BILLING_DB_NAME]}" "$user"
        sql_role "$reader" "${SETTINGS[POSTGRES_READER_PASSWORD]}"
        sql_may_read "${SETTINGS[BILLING_DB_NAME]}" "$user" "$reader"
    } | postgres_sql "$(postgres_home "$alias/postgres")" "${SETTINGS[POSTGRES_PORT]}"
}

start_rabbitmq() {
    step "Start RabbitMQ at $(server_address rabbitmq)" \
        rabbitmq_start "$alias/rabbitmq" "${SETTINGS[RABBITMQ_PORT]}" \
        "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}" "${SETTINGS[RABBITMQ_DIST_PORT]}" \
        "${SETTINGS[ERL_EPMD_PORT]}"
    step 'Make the queue and its users' \
        rabbitmq_provide "$alias/rabbitmq" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}"
    rabbitmq_warn_of_lossy_policies "$alias/rabbitmq" "${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}" \
        "${SETTINGS[RABBITMQ_QUEUE]}"
}

wait_until_ready() {
    local app deadline=$((SECONDS + 60))
    for app in "${apps[@]}"; do
        until [[ $(app_state "$app") == ready ]]; do
            ((SECONDS < deadline)) || {
                status || true
                die "$app is not ready after a minute; the cause is above. When it is corrected: $(call up)"
            }
            sleep 0.2
        done
    done
}

# bound_logs: starts a process that limits the size of the logs, and ends with "down".
bound_logs() {
    local app logs=()
    for app in "${apps[@]}" postgres rabbitmq; do
        logs+=("$(log_file "$app")")
    done
    stop_daemon "$alias/logs/bound.pid" "LOGS_OF=$alias"
    start_daemon "$alias/logs/bound.pid" /dev/null "LOGS_OF=$alias" \
        "$BASH" "$repo/setup/lib/local/bound_logs.sh" "$log_bytes_max" "${logs[@]}" "$folder/pm2/pm2.log"
}

# app_state APP: prints ready, not ready, or does not run.
app_state() {
    local url
    url=$(app_url "$1")
    if ! app_pid "$alias" "$1" >/dev/null; then
        echo 'does not run'
    elif answers_ok "$url/health" && answers_ok "$url/ready"; then
        echo ready
    else
        echo 'not ready'
    fi
}

answers_ok() {
    ask --fail --max-time 5 --output /dev/null "$1"
}

# ask ARGUMENT…: runs curl with the operations key, with which a program answers with details. The key is on no
# command line.
ask() {
    local key=${SETTINGS[OPERATIONS_KEY]:-}
    curl --disable --noproxy '*' --globoff --silent --header @<(printf '%s\n' "${key:+Authorization: Bearer $key}") "$@"
}

server_state() {
    if "${1}_pid" "$(postgres_home "$alias/$1")" >/dev/null; then
        echo runs
    else
        echo 'does not run'
    fi
}

report() {
    local gateway
    gateway=$(app_url api-gateway)
    heading "Everything runs, after $(time_text $SECONDS)"
    echo
    place api-gateway "$gateway" 'open it in a browser: the console'
    place inventory-api "$(app_url inventory-api)" 'stores the movies'
    place billing-api "$(app_url billing-api)" 'lists the recorded orders'
    place billing-consumer "$(app_url billing-consumer)" 'takes orders from the queue and records them'
    place postgres "$(server_address postgres)" "${SETTINGS[INVENTORY_DB_NAME]}, ${SETTINGS[BILLING_DB_NAME]}"
    place rabbitmq "$(server_address rabbitmq)" "the queue; its management page: http://127.0.0.1:${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}"
    cat <<TRY

  Try:
    curl $(quoted "$gateway/api/movies") -H 'Content-Type: application/json' -d '{"title": "Alien", "description": "In space no one can hear you scream"}'
    curl $(quoted "$gateway/api/billing") -H 'Content-Type: application/json' -d '{"user_id": "20", "number_of_items": "99", "total_amount": "250"}'
    curl $(quoted "$(app_url billing-api)/api/orders")

  Next:
$(next status 'shows what runs, and where')
$(next logs 'shows the logs of the programs')
$(next 'pm2 stop billing-consumer' 'orders wait in the queue')
$(next 'pm2 start billing-consumer' 'the orders are recorded')
$(next down 'stops everything; the data stays')
$(next help 'shows the other commands')

  Names, passwords and ports: $folder/settings.env
TRY
}

# next COMMAND TEXT: prints a line with a command and its effect.
next() {
    printf '    %-*s  %s\n' $(($(call '' | wc -m) + 26)) "$(call "$1")" "$2"
}

# call COMMAND: prints the command line of this script for this folder.
call() {
    [[ $folder == "$repo/.local" ]] || printf 'LOCAL_DIR=%s ' "$(quoted "$folder")"
    echo "setup/local.sh $1"
}

# place NAME ADDRESS TEXT: prints a line of the table.
place() {
    printf '  %-17s %-24s %s\n' "$1" "$2" "$3"
}

# The choice of the command

main() {
    local command=${1:-up}
    answer_help_and_version "$@"
    (($# == 0)) || shift
    case $command in
        up | down | status) (($# == 0)) || wrong_usage "$command takes no arguments" ;;
        reset) (($# == 0)) || [[ $* == --yes ]] || wrong_usage 'reset takes nothing but --yes' ;;
        stop | start)
            [[ $* == postgres || $* == rabbitmq ]] || wrong_usage "$command takes postgres or rabbitmq"
            ;;
        psql) (($# > 0)) || wrong_usage 'psql takes the name of a database: movies_db or billing_db, unless the settings name others' ;;
        logs | rabbitmqctl | dead-letters | pm2) ;;
        *) wrong_usage "there is no command $command" ;;
    esac
    find_folder
    "$command" "$@"
}

main "$@"
