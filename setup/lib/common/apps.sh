# shellcheck shell=bash
# The programs under PM2, which starts them, keeps them running and holds their logs. FOLDER is
# where PM2's own folder (pm2), the logs (logs), the list of programs (apps.json) and a link to the
# programs (programs) are, by a path without odd characters. The programs read their settings from
# a file in FOLDER themselves, so that PM2, which passes on and writes down every variable it knows,
# knows no secret.

# All four; a machine that has fewer says so.
apps=(api-gateway inventory-api billing-api billing-consumer)

# The setting that holds the port of each.
# shellcheck disable=SC2034
declare -A app_port_key=(
    [api-gateway]=API_GATEWAY_PORT
    [inventory-api]=INVENTORY_API_PORT
    [billing-api]=BILLING_API_PORT
    [billing-consumer]=BILLING_CONSUMER_PORT
)

# app_settings FOLDER APP: the file of the program's settings: one of its own, or that of all.
app_settings() {
    if [[ -e $1/$2.env ]]; then
        echo "$1/$2.env"
    else
        echo "$1/settings.env"
    fi
}

# run_pm2 FOLDER ARGUMENT…: without the banner, without telling its makers that it runs, and with
# colours only where this script has them, since PM2 itself writes them into files as well.
run_pm2() {
    local colours=()
    [[ -t 1 && -n ${bold:-} ]] || colours=(FORCE_COLOR=0)
    bare HOME="$HOME" TERM="${TERM:-dumb}" PM2_HOME="$1/pm2" "${colours[@]}" NODE_DISABLE_COMPILE_CACHE=1 \
        PM2_DISCRETE_MODE=true PM2_DISABLE_VERSION_CHECK=true \
        node "${tools:?}/pm2/node_modules/pm2/bin/pm2" "${@:2}"
}

# apps_start FOLDER: starts the programs. One that runs already stays, unless it was built anew, or
# its settings or its entry in the list changed.
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

# apps_write_list FOLDER: for PM2.
apps_write_list() {
    local app separator=''
    # On a machine it leads to a folder that administrators may read.
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

# app_entry FOLDER APP DIGEST: PM2 listens on descriptor 3 of what it starts, and ends with all programs
# where something comes that it does not understand: a shell closes it and becomes the program, as its
# user, who so never has it. A drain takes up to 10 s, so 15 s pass between SIGINT and SIGKILL; without a growing delay, PM2 gives a
# program up after 16 quick failures.
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

# app_environment APP: more of its environment, for those who define it.
app_environment() {
    :
}

# app_digest FOLDER APP: of all that the program is started with, and of the files that guard it. It is in the program's environment,
# and times of files, which a clock that was set back makes worthless, are not asked. PM2 writes it
# down for all to read: the salt keeps them from trying passwords on it.
app_digest() {
    {
        app_entry "$1" "$2" ''
        cat "$1/salt" "$(app_settings "$1" "$2")"
        app_guards "$1" "$2"
    } | sha256sum | cut -c 1-32
}

# app_guards FOLDER APP: what is in them, as the program's own settings name them.
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

# app_user FOLDER APP: under root's PM2 a program runs as the user whose group its settings are for,
# since nobody else could read them.
app_user() {
    local owner
    owner=$(stat -c %G "$(app_settings "$1" "$2")")
    if ((EUID == 0)) && [[ $owner != root ]]; then
        echo "setpriv --reuid=$owner --regid=$owner --clear-groups --no-new-privs -- "
    fi
}

# app_is_current FOLDER APP: it runs, from the file that is there now, and was started with what is
# in its settings and in the list now.
app_is_current() {
    local pid
    apps_daemon_pid "$1" >/dev/null && pid=$(app_pid "$1" "$2") || return 1
    [[ /proc/$pid/exe -ef $1/programs/$2 ]] && has_mark "$pid" "SETTINGS_DIGEST=$(app_digest "$1" "$2")"
}

# app_pidfile FOLDER APP: PM2 puts a number of its own behind the name.
app_pidfile() {
    compgen -G "$1/pm2/pids/$2-*.pid" | head -n 1
}

# app_pid FOLDER APP: the program's pid, if it runs.
app_pid() {
    pid_of "$(app_pidfile "$1" "$2")" "ENV_FILE=$(app_settings "$1" "$2")"
}

apps_daemon_pid() {
    pid_of "$1/pm2/pm2.pid" "PM2_HOME=$1/pm2"
}

# apps_stop FOLDER: the programs, each of which finishes what it holds, and PM2 with them. A signal
# does what "pm2 kill" does, and needs neither Node nor PM2 to be where they were.
apps_stop() {
    stop_daemon "$1/pm2/pm2.pid" "PM2_HOME=$1/pm2"
    apps_stop_orphans "$1"
}

# apps_stop_orphans FOLDER: what a PM2 that was killed left running. A new one would not know
# of it and start everything a second time.
apps_stop_orphans() {
    local app pidfile
    for app in "${apps[@]}"; do
        while pidfile=$(app_pidfile "$1" "$app") && [[ -n $pidfile ]]; do
            stop_daemon "$pidfile" "ENV_FILE=$(app_settings "$1" "$app")"
        done
    done
}
