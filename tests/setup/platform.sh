#!/usr/bin/env bash
# Tests a platform of setup/local.sh without HOME, with logs that grow, and on a disk that forbids programs and becomes
# full, and that "down" stops it in any state. Root must run this, to mount a disk.
#
#   tests/setup/platform.sh    uses the ports and settings of its environment
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"
source "$repo/setup/lib/common/apps.sh"
source "$repo/tests/vms/checks.sh"

main() {
    if [[ ${1:-} == step ]]; then
        step 'This step' "${@:2}"
        return
    fi
    if ! unshare --mount true 2>/dev/null; then
        note 'NOTE: nothing can be mounted here: a platform on a full disk is not checked'
        return
    fi
    [[ -n ${own_mounts:-} ]] || own_mounts=true exec unshare --mount -- "$BASH" -p "$0"
    # The user's environment is needed here, since the platform is started with one of its own.
    install_pm2
    scratch=$(mktemp -d)
    disk=$scratch/disk LOCAL_DIR=$disk/platform
    export LOCAL_DIR
    trap clean_up EXIT
    chmod 711 "$scratch" # PostgreSQL runs as another user, who must reach its folder
    install -d "$disk" "$scratch/nowhere"
    mount -t tmpfs -o size=160m,noexec none "$disk"

    starts
    garbage_for_pm2
    small_logs
    broken_server
    broken_settings
    full_disk
    down
    echo "$passed passed, ${#failures[@]} failed"
    ((${#failures[@]} == 0))
}

clean_up() {
    "$repo/setup/local.sh" down >/dev/null 2>&1 || true
    umount "$disk"
    rm -rf "$scratch"
}

# alone COMMAND…: runs the command in a folder of its own, with only the PATH and the ports in its environment.
alone() {
    local ports
    mapfile -t ports < <(env | grep '_PORT=')
    (cd "$scratch/nowhere" && env -i "PATH=$PATH" "LOCAL_DIR=$LOCAL_DIR" "${ports[@]}" "$@")
}

starts() {
    local name
    printf 'reader:%s:read\n' "$(printf secret | sha256sum | cut -d ' ' -f 1)" >"$scratch/keys"
    for name in API_KEYS_FILE RATE_LIMIT_PER_SECOND OPERATIONS_KEY; do
        is "$name that is empty is refused" 1 refused_with "$name is set and empty" "$name="
    done
    is 'and so is a file of keys that is not there' 1 refused_with 'API_KEYS_FILE names /nowhere' API_KEYS_FILE=/nowhere
    is 'and HTTPS' 1 refused_with 'are not for setup/local.sh' TLS_CERT_FILE=/nowhere
    is 'it starts without HOME, on a disk that forbids programs' 0 exit_of alone \
        env LISTEN_ADDRESS=127.0.0.2 API_KEYS_FILE="$scratch/keys" OPERATIONS_KEY=hunter2 "$repo/setup/local.sh" up
    is 'with keys, only the gateway listens where it is asked to' \
        'api-gateway 127.0.0.2 billing-api 127.0.0.1 billing-consumer 127.0.0.1 inventory-api 127.0.0.1' listeners
    is 'which asks for a key' 401 status "http://127.0.0.2:$API_GATEWAY_PORT/api/movies"
    is 'and takes one' 200 status "http://127.0.0.2:$API_GATEWAY_PORT/api/movies" --header 'Authorization: Bearer secret'
    is 'no program tells its metrics without the key of operations' '401 401 401 401' metrics_with another
    is 'and each with it' '200 200 200 200' metrics_with hunter2
    is 'which is in no list of PM2, nor in a log' 1 exit_of grep -rqF hunter2 "$LOCAL_DIR/apps.json" "$LOCAL_DIR/pm2" "$LOCAL_DIR/logs"
    is 'local logs, settings and PM2 are for their owner alone' '' files_open_to_others
    is 'and is ready' 0 exit_of alone "$repo/setup/local.sh" status
    is 'PM2 is reached without HOME' 4 online
}

# refused_with TEXT VARIABLE: prints how many lines of the output of "up" have the text.
refused_with() {
    alone env "$2" "$repo/setup/local.sh" up 2>&1 | grep -c "$1"
}

# metrics_with KEY: prints the statuses of the four programs.
metrics_with() {
    local app address=127.0.0.2
    for app in "${apps[@]}"; do
        status "http://$address:$(port_of "$app")/metrics" --header "Authorization: Bearer $1"
        echo
        address=127.0.0.1
    done | paste -sd ' '
}

listeners() {
    local app
    for app in api-gateway billing-api billing-consumer inventory-api; do
        echo "$app $(ss -Hltn "sport = :$(port_of "$app")" | awk '{ print $4 }' | sed 's/:[0-9]*$//' | sort -u)"
    done | paste -sd ' '
}

port_of() {
    local key=${app_port_key[$1]}
    echo "${!key}"
}

# files_open_to_others: prints the private files and folders to which other users have a right.
files_open_to_others() {
    find "$LOCAL_DIR"/{logs,pm2,settings.env,salt} -maxdepth 0 -perm /077
}

online() {
    alone "$repo/setup/local.sh" pm2 list | grep -c online
}

# garbage_for_pm2: starts a program that writes garbage to the descriptor from which PM2 reads.
garbage_for_pm2() {
    local folder=$scratch/talker
    install -d "$folder/programs" "$folder/logs"
    touch "$folder/settings.env"
    printf '#!/bin/sh\necho garbage >&3\necho said\nexec sleep 600\n' >"$folder/programs/talker"
    chmod +x "$folder/programs/talker"
    echo "{\"apps\": [$(app_entry "$folder" talker '')]}" >"$folder/apps.json"
    alone "$repo/setup/local.sh" pm2 start "$folder/apps.json" >/dev/null
    becomes 'a program says something on the descriptor of PM2' said grep -x said "$folder/logs/talker.log"
    is 'and PM2 goes on, with all programs' 5 online
    alone "$repo/setup/local.sh" pm2 delete talker >/dev/null
}

# small_logs: makes the logs grow by holes, which take no room. A program that wrote at an offset of its own, and not at
# the end, would make its log large again.
small_logs() {
    local log logs=("$LOCAL_DIR"/logs/*.log "$LOCAL_DIR/pm2/pm2.log" "$(readlink -f "$LOCAL_DIR/postgres")/log" "$LOCAL_DIR/rabbitmq/log/rabbit@localhost.log")
    truncate --size=+33M "${logs[@]}"
    for log in "${logs[@]}"; do
        becomes "${log##*/} is put aside when it is large" 0 exit_of is_put_aside "$log"
    done
    alone "$repo/setup/local.sh" rabbitmqctl eval 'rabbit_log:info("a line").' >/dev/null
    alone "$repo/setup/local.sh" pm2 restart all >/dev/null
    alone "$repo/setup/local.sh" psql movies_db -c 'SELECT nonsense' >/dev/null 2>&1 || true
    for log in "${logs[@]}"; do
        becomes "${log##*/} goes on from its begin" 0 exit_of is_small "$log"
    done
}

is_put_aside() {
    (($(stat -c %s "$1.1") > 33000000 && $(stat -c %s "$1") < 1000000))
}

is_small() {
    local size
    size=$(stat -c %s "$1")
    ((size > 0 && size < 1000000))
}

broken_server() {
    kill -USR1 "$(<"$LOCAL_DIR/rabbitmq/pid")"
    becomes 'a RabbitMQ that breaks leaves its dump among its logs' 0 exit_of test -s "$LOCAL_DIR/rabbitmq/log/erl_crash.dump"
    is 'and nowhere else' '' find "$scratch/nowhere" "$LOCAL_DIR/rabbitmq" -maxdepth 1 -name 'erl_crash*'
    becomes 'what waits for it says so' 1 status_has 'billing-consumer is not ready: rabbitmq cannot be reached'
    is 'with the last line of its log' 1 status_has 'the last line of its log: .*program=billing-consumer .*RabbitMQ'
    is 'and what to do next' 1 status_has "next: LOCAL_DIR=$LOCAL_DIR setup/local.sh start rabbitmq"
}

# broken_settings: writes broken settings while the disk has room.
broken_settings() {
    alone "$repo/setup/local.sh" stop postgres >/dev/null
    echo nonsense >>"$(readlink -f "$LOCAL_DIR/postgres")/data/postgresql.conf"
    alone "$repo/setup/local.sh" start postgres >"$scratch/said" 2>&1 || true
    is 'a server that cannot start shows the end of its log' 1 grep -c '| .*syntax error in file' "$scratch/said"
    sed -i '$d' "$(readlink -f "$LOCAL_DIR/postgres")/data/postgresql.conf"
    alone "$repo/setup/local.sh" start postgres >/dev/null
}

status_has() {
    alone "$repo/setup/local.sh" status | grep -cE "$1"
}

full_disk() {
    is 'a cluster that does not fit says which disk is full' 'The disk of / is full' full_disk_in postgres_start "$disk/postgres" 1
    is 'and so does a RabbitMQ' 'The disk of / is full' full_disk_in rabbitmq_start "$disk/rabbitmq" 1 2 3 4
    is 'and a list of programs' 'The disk of / is full' full_disk_in apps_write_list "$LOCAL_DIR"
}

# full_disk_in COMMAND…: prints the message about the disk if this step fails. The step runs in a shell of its own, since
# a step must not be part of a condition.
full_disk_in() {
    cat /dev/zero >>"$disk/filler" 2>/dev/null || true
    folder=$disk "$BASH" -p "$0" step "$@" 2>&1 | grep -oE 'The disk of [^ ]* is full' | sed "s|$disk|/|"
}

# down: checks that "down" works after the settings, the programs and the tools were removed.
down() {
    local status=0
    install -d "$scratch/checkout"
    cp -r "$repo/setup" "$repo/Cargo.toml" "$scratch/checkout"
    printf '\xff\xfe' >"$scratch/checkout/.env"
    rm "$LOCAL_DIR/programs" "$LOCAL_DIR/settings.env"
    is 'down works without HOME, settings, programs, PM2 and room on the disk' 0 exit_of \
        env -i "LOCAL_DIR=$LOCAL_DIR" "TMPDIR=$disk" PATH=/usr/bin:/bin "$scratch/checkout/setup/local.sh" down
    is 'and nothing runs on' '' processes
}

# processes: prints the processes of this platform, which have its folder in their environment or work in it.
processes() {
    local process
    for process in /proc/[0-9]*; do
        if grep -qsF -e "$LOCAL_DIR/" "$process/environ" || [[ $(readlink "$process/cwd") == "$LOCAL_DIR"/* ]]; then
            tr '\0' ' ' <"$process/cmdline"
            echo
        fi
    done
}

main "$@"
