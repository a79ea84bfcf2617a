# shellcheck shell=bash
# The programs under PM2, which starts them, restarts them and writes their logs. FOLDER has PM2's own folder (pm2),
# the logs (logs), the list of programs (apps.json) and a link to the programs (programs); its path has no special
# characters. Each program reads its settings from a file in FOLDER. PM2 writes its environment into files, so the
# environment has no secret.

# All four programs; a script for a machine with fewer sets its own list.
apps=(api-gateway inventory-api billing-api billing-consumer)

# The setting with the port of each program.
# shellcheck disable=SC2034
declare -A app_port_key=(
    [api-gateway]=API_GATEWAY_PORT
    [inventory-api]=INVENTORY_API_PORT
    [billing-api]=BILLING_API_PORT
    [billing-consumer]=BILLING_CONSUMER_PORT
)

# app_settings FOLDER APP: prints the file of the program's settings: its own, or that of all programs.
app_settings() {
    if [[ -e $1/$2.env ]]; then
        echo "$1/$2.env"
    else
        echo "$1/settings.env"
    fi
}

# run_pm2 FOLDER ARGUMENT…: runs PM2 without its banner and its check for new versions, and with colours only where
# this script has them, since PM2 would write them into files too.
run_pm2() {
    local colours=()
    [[ -t 1 && -n ${bold:-} ]] || colours=(FORCE_COLOR=0)
    bare HOME="$HOME" TERM="${TERM:-dumb}" PM2_HOME="$1/pm2" "${colours[@]}" NODE_DISABLE_COMPILE_CACHE=1 \
        PM2_DISCRETE_MODE=true PM2_DISABLE_VERSION_CHECK=true \
        node "${tools:?}/pm2/node_modules/pm2/bin/pm2" "${@:2}"
}

# apps_start FOLDER: starts the programs. A running program is restarted only if it was built anew, or if its settings
# or its entry in the list changed.
apps_start() {
    local app due=()
    apps_write_list "$1"
    for app in "${apps[@]}"; do
        app_is_current "$1" "$app" || due+=("$app")
    done
    ((${#due[@]} > 0)) || return 0

    apps_daemon_pid "$1" >/dev/null || apps_stop_orphans "$1"
    detached run_pm2 "$1" delete "${due[@]}" || true
    detached run_pm2 "$1" start "$1/apps.json" --only "$(IFS=, && echo "${due[*]}")"
}

# apps_write_list FOLDER: writes the list of programs for PM2.
apps_write_list() {
    local app separator=''
    # On a machine this is a link to a folder that administrators may read.
    [[ -L $1/logs ]] || install -d -m 700 "$1/logs"
    install -d -m 700 "$1/pm2"
    [[ -s $1/salt ]] || (umask 077 && random_secret >"$1/salt")
    {
        echo '{"apps": ['
        for app in "${apps[@]}"; do
            printf '%s' "$separator"
            app_entry "$1" "$app" "$(app_digest "$1" "$app")"
            separator=,
        done
        echo ']}'
    } >"$1/apps.json.new"
    take_new "$1/apps.json"
}

# app_entry FOLDER APP DIGEST: prints the entry of a program. PM2 reads from descriptor 3 of its children, and malformed
# input there ends PM2 with all programs. Therefore a shell closes the descriptor before it executes the program as
# the program's user. A drain takes up to 10 s, so 15 s pass between SIGINT and SIGKILL. Without a growing delay, PM2
# would not restart a program after 16 quick failures.
app_entry() {
    cat <<JSON
{
    "name": "$2",
    "script": "/bin/sh",
    "args": ["-c", $(json_text "exec 3>&-; exec $(app_user "$1" "$2")\"\$0\""), $(json_text "$1/programs/$2")],
    "cwd": $(json_text "$1"),
    "env": {"ENV_FILE": $(json_text "$(app_settings "$1" "$2")"), "SETTINGS_DIGEST": "$3"$(app_environment "$2")},
    "interpreter": "none",
    "kill_timeout": 15000,
    "exp_backoff_restart_delay": 100,
    "out_file": $(json_text "$1/logs/$2.log"),
    "error_file": $(json_text "$1/logs/$2.log"),
    "merge_logs": true,
    "vizion": false
}
JSON
}

# app_environment APP: prints further variables of the program; a script may redefine this function.
app_environment() {
    :
}

# app_digest FOLDER APP: prints a digest of everything with which the program is started, and of its protective files.
# The digest is in the program's environment; times of files are not compared, since a clock may be set back. PM2
# writes the digest where all users can read it, so a salt keeps them from testing passwords against it.
app_digest() {
    {
        app_entry "$1" "$2" ''
        cat "$1/salt" "$(app_settings "$1" "$2")"
        app_guards "$1" "$2"
    } | sha256sum | cut -c 1-32
}

# app_guards FOLDER APP: prints the contents of the protective files that the program's settings name.
app_guards() {
    local key
    local -A SETTINGS=()
    # shellcheck disable=SC2034 # read_settings fills it
    local -a SETTING_KEYS=()
    [[ $2 == api-gateway ]] || return 0
    read_settings "$(app_settings "$1" "$2")"
    for key in "${guarding_files[@]:?}"; do
        [[ -z ${SETTINGS[$key]:-} ]] || cat "${SETTINGS[$key]}"
    done
}

# app_user FOLDER APP: prints the command that switches to the user of a program. Under root's PM2 that is the user
# whose group owns the settings of the program, since no other user can read them.
app_user() {
    local owner
    owner=$(stat -c %G "$(app_settings "$1" "$2")")
    if ((EUID == 0)) && [[ $owner != root ]]; then
        echo "setpriv --reuid=$owner --regid=$owner --clear-groups --no-new-privs -- "
    fi
}

# app_is_current FOLDER APP: whether the program runs from the present file, and was started with the present settings
# and list.
app_is_current() {
    local pid
    apps_daemon_pid "$1" >/dev/null && pid=$(app_pid "$1" "$2") || return 1
    [[ /proc/$pid/exe -ef $1/programs/$2 ]] && has_mark "$pid" "SETTINGS_DIGEST=$(app_digest "$1" "$2")"
}

# app_pidfile FOLDER APP: prints the pid file; PM2 adds a number to the name of the program.
app_pidfile() {
    compgen -G "$1/pm2/pids/$2-*.pid" | head -n 1
}

# app_pid FOLDER APP: prints the program's pid, if it runs.
app_pid() {
    pid_of "$(app_pidfile "$1" "$2")" "ENV_FILE=$(app_settings "$1" "$2")"
}

apps_daemon_pid() {
    pid_of "$1/pm2/pm2.pid" "PM2_HOME=$1/pm2"
}

# apps_stop FOLDER: stops PM2 and the programs, each of which finishes its accepted work. A signal has the effect of
# "pm2 kill", and works even if Node and PM2 were moved.
apps_stop() {
    stop_daemon "$1/pm2/pm2.pid" "PM2_HOME=$1/pm2"
    apps_stop_orphans "$1"
}

# apps_stop_orphans FOLDER: stops the programs that a killed PM2 left running. A new PM2 would start them a second time.
apps_stop_orphans() {
    local app pidfile
    for app in "${apps[@]}"; do
        while pidfile=$(app_pidfile "$1" "$app") && [[ -n $pidfile ]]; do
            stop_daemon "$pidfile" "ENV_FILE=$(app_settings "$1" "$app")"
        done
    done
}
