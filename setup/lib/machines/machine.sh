# shellcheck shell=bash
# The common functions of the scripts that provision a machine: gateway.sh, inventory.sh, billing.sh. Each script can be
# run again at any time, and changes only what differs.
#
#   /opt/crud-master/bin       the programs
#   /opt/crud-master/tools     PM2, and Node where the system's own is too old
#   /var/lib/crud-master       APP.env (settings, 0640, root's and its program's group's), apps.json and pm2 (PM2's)
#   /var/log/crud-master       one log per program

home=/opt/crud-master
state=/var/lib/crud-master
logs=/var/log/crud-master

source "${repo:?}/setup/lib/common/base.sh"
source "$repo/setup/lib/common/apps.sh"
source "$repo/setup/lib/machines/programs.sh"
source "$repo/setup/lib/machines/firewall.sh"
source "$repo/setup/lib/machines/supervisor.sh"
source "$repo/setup/lib/machines/postgres.sh"
source "$repo/setup/lib/machines/rabbitmq.sh"

# The folder of the project's own tools (install.sh).
tools=$home/tools

# The secrets that each program needs; its file of settings has no others.
declare -A app_secrets=(
    [api-gateway]=RABBITMQ_PASSWORD
    [inventory-api]=POSTGRES_PASSWORD
    [billing-api]=POSTGRES_READER_PASSWORD
    [billing-consumer]='POSTGRES_PASSWORD RABBITMQ_CONSUMER_PASSWORD'
)

# begin_machine ROLE APP…: checks the conditions for provisioning before anything is changed. Each program has a user of
# its name.
begin_machine() {
    local role=$1 address
    shift
    apps=("$@")
    ((EUID == 0)) || die 'only root can provision a machine: sudo bash setup/'"$role.sh"
    [[ -d /run/systemd/system ]] || die 'this machine does not run systemd, which is needed; setup/local.sh works without it'
    require_debian
    # The PATH is written into files, which must not depend on the caller.
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    cd /
    heading "Provision $(hostname) as the $role machine"
    choose_machine_settings
    address=${role^^}_VM_IP
    machine_address=${SETTINGS[$address]}
    [[ -n $(ip -oneline address show to "$machine_address") ]] ||
        note "NOTE: $address is ${SETTINGS[$address]}, and no network card here has it (vagrant reload?)"
    warn_of_development_passwords
    require_writable "$state" 'give this machine a larger disk'
    require_writable "$home" 'give this machine a larger disk'
    require_executable "$home" 'mount that disk without noexec'
    install -d "$home" "$home/bin" "$state"
    # Two runs at the same time would disturb each other.
    machine_lock=''
    open_lock machine_lock "$state"
    flock "$machine_lock"
}

choose_machine_settings() {
    close_passwords "$repo/.env.local"
    read_project_settings "$repo"
    environment_wins MONITORING_IP TAKE_OVER_FOREIGN "${optional_settings[@]}"
    require_guards
    [[ ${SETTINGS[MONITORING_IP]:-} =~ ^([0-9]+(\.[0-9]+){3})?$ ]] ||
        die 'MONITORING_IP must be an IPv4 address, such as 192.168.56.1, or be left out'
    require_settings INVENTORY_DB_NAME BILLING_DB_NAME RABBITMQ_QUEUE GATEWAY_VM_IP INVENTORY_VM_IP BILLING_VM_IP
    require_roles
    require_ports "${app_port_key[@]}" POSTGRES_PORT RABBITMQ_PORT RABBITMQ_MANAGEMENT_PORT
    [[ ${SETTINGS[RABBITMQ_USER]} != guest && ${SETTINGS[RABBITMQ_CONSUMER_USER]} != guest ]] ||
        die 'RabbitMQ refuses the user guest from other machines: choose another name'
}

# close_passwords FILE: closes the file to other users, since a copied folder has the modes of the host.
close_passwords() {
    [[ -f $1 ]] && open_to_others "$1" || return 0
    chmod 600 "$1" 2>/dev/null || true
    ! open_to_others "$1" ||
        die "$1 has passwords and is open to others: close it with chmod 600"
}

# open_to_others FILE: whether other users have any right to the file.
open_to_others() {
    [[ -n $(find -L "$1" -maxdepth 0 -perm /077) ]]
}

warn_of_development_passwords() {
    local app key keys=' '
    for app in "${apps[@]}"; do
        for key in ${app_secrets[$app]}; do
            ! grep -qxF -- "${SETTINGS[$key]}" "$repo/setup/lib/common/well_known_passwords" || [[ $keys == *" $key "* ]] || keys+="$key "
        done
    done
    [[ $keys != ' ' ]] || return 0
    echo
    note "WARNING: these passwords are publicly known:$keys"
    note '         Before other people can reach these machines, run this on the host:'
    note '           setup/secrets.sh'
    note '           vagrant provision'
    echo
}

# provide_basics [PACKAGE…]: installs these packages, the missing packages of every machine, and PM2, and closes the
# accounts of the box. The functions named lacking_… decide which packages are missing.
provide_basics() {
    local missing
    mapfile -t missing < <(
        [[ -e /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
        command -v curl >/dev/null || echo curl
        command -v ss >/dev/null || echo iproute2
        command -v nft >/dev/null || echo nftables
        command -v logrotate >/dev/null || echo logrotate
        lacking_node
        printf '%s\n' "$@"
    )
    install_machine_packages "${missing[@]}"
    install_pm2
    step 'Refuse passwords over SSH' close_ssh_to_passwords
    step 'Remove the known passwords of the box' take_known_passwords
}

# close_ssh_to_passwords: makes SSH refuse passwords, since boxes have a publicly known one. If no user has a key, nothing
# is changed, since SSH would be closed to all.
close_ssh_to_passwords() {
    [[ -d /etc/ssh/sshd_config.d ]] && has_ssh_key || return 0
    write_if_new /etc/ssh/sshd_config.d/00-crud-master.conf 644 <<'SETTINGS' || return 0
# Made by setup/lib/machines/machine.sh of crud-master.
PasswordAuthentication no
KbdInteractiveAuthentication no
SETTINGS
    sshd -t
    systemctl try-reload-or-restart ssh
}

# take_known_passwords: removes publicly known passwords, with which an attacker in a service could become that user, and
# by sudo root. Keys stay, and so does a password if no user has a key.
take_known_passwords() {
    local account
    has_ssh_key || return 0
    for account in $(accounts_with_known_password /etc/shadow); do
        usermod --password '*' "$account"
    done
}

# accounts_with_known_password FILE: prints the accounts with the password "vagrant", which boxes use.
accounts_with_known_password() {
    perl -F: -ane 'print "$F[0]\n" if length $F[1] > 2 && (crypt("vagrant", $F[1]) // "") eq $F[1]' "$1"
}

has_ssh_key() {
    grep -qsE '^[^#]*(ssh|ecdsa|sk)-' /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys
}

# install_machine_packages [PACKAGE…]: installs packages; their servers start only after their configuration.
install_machine_packages() {
    local packages
    mapfile -t packages < <(printf '%s\n' "$@" | grep . || true)
    ((${#packages[@]} > 0)) || return 0
    step "Install ${packages[*]} (this may take some minutes)" install_with_apt "${packages[@]}"
}

# write_if_new FILE MODE [GROUP]: writes the input into the file, which belongs to root and the group, if the content or
# the mode differs, and succeeds in that case. Only root may be able to write to the folder (own_folders): otherwise
# another user could put a link in place of the file at any moment.
write_if_new() {
    rm -rf "$1.new"
    install -m "$2" -g "${3:-$(id -g)}" /dev/null "$1.new"
    cat >"$1.new"
    if [[ ! -L $1 && $(stat -c '%a %u:%g' "$1.new") == "$(stat -c '%a %u:%g' "$1" 2>/dev/null)" ]] && cmp -s "$1.new" "$1"; then
        rm "$1.new"
        return 1
    fi
    mv -fT "$1.new" "$1"
}

# own_folders FOLDER…: makes root the owner of folders that a package gives to a service, from the top down. Their
# contents stay.
own_folders() {
    local folder
    for folder in "$@"; do
        [[ ! -L $folder ]] || die "$folder is a link, and root writes nothing through links: replace it with a folder"
        [[ -d $folder ]] || mkdir -m 755 "$folder"
        chown -h "$EUID:$(id -g)" "$folder"
        chmod go-w "$folder"
    done
}

# foreign_file FILE: prints the name of the file if it exists, is not empty, and neither this project nor a package wrote
# its content.
foreign_file() {
    [[ -e $1 ]] || return 0
    [[ -f $1 ]] && { grep -q '^# Made by setup/.* of crud-master' "$1" || is_as_packaged "$1" ||
        ! grep -qvE '^[[:space:]]*(#|$)' "$1"; } || echo "$1"
}

# is_as_packaged FILE: whether the content is that of the package.
is_as_packaged() {
    dpkg-query --show --showformat='${Conffiles}\n' 2>/dev/null |
        grep -F " $1 $(md5sum <"$1" | cut -d ' ' -f 1)" >/dev/null
}

# write_unit_part UNIT: adds the input to a unit of systemd; succeeds if it is new.
write_unit_part() {
    install -d "/etc/systemd/system/$1.d"
    write_if_new "/etc/systemd/system/$1.d/crud-master.conf" 644 || return 1
    systemctl daemon-reload
}

# server_output: sends the output of a server to the journal. With Debian's units root may open a file in a folder of the
# server's user, who could put a link there.
server_output() {
    cat <<'UNIT'
[Service]
StandardOutput=journal
StandardError=journal
UNIT
}

# provide_apps: makes the users and the settings of the programs, and starts the programs.
provide_apps() {
    step 'Make the users of the programs' make_users
    step 'Write their settings' write_app_settings
    step 'Set up PM2 and the rotation of logs' provide_supervisor
    step 'Start the programs' start_apps
    wait_until_healthy
}

make_users() {
    local app
    for app in "${apps[@]}"; do
        id "$app" >/dev/null 2>&1 ||
            useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin "$app"
    done
}

# write_app_settings: writes the settings of each program, which only the program and root can read; backup.sh and
# restore.sh use them too.
write_app_settings() {
    local app left_out
    allow_hosts
    [[ " ${apps[*]} " != *' api-gateway '* ]] || provide_guarding_files api-gateway
    for app in "${apps[@]}"; do
        mapfile -t left_out < <(left_out_for "$app")
        write_settings "$state/$app.env" "${left_out[@]}"
        chown "root:$app" "$state/$app.env"
        chmod 640 "$state/$app.env"
    done
}

# provide_guarding_files APP: copies the files that protective settings name, so that the program can read them. The
# Vagrantfile copies those of the host to the folder GUARDING_FILES, which is removed afterwards.
provide_guarding_files() {
    local key file
    for key in "${guarding_files[@]}"; do
        [[ -v SETTINGS[$key] ]] || continue
        file=${GUARDING_FILES:+$GUARDING_FILES/$key}
        [[ -n $file && -f $file ]] || file=$(guarding_file "$key")
        write_if_new "$state/$key" 640 "$1" <"$file" || true
        set_setting "$key" "$state/$key"
    done
    [[ -z ${GUARDING_FILES:-} ]] || rm -rf "$GUARDING_FILES"
}

# left_out_for APP: prints the secrets that the program does not need, and the protective settings of the gateway for
# other programs.
left_out_for() {
    local key
    for key in "${SETTING_KEYS[@]}"; do
        if [[ $key == *_PASSWORD && " ${app_secrets[$1]} " != *" $key "* ]] ||
            [[ $1 != api-gateway && " ${gateway_guards[*]} " == *" $key "* ]]; then
            echo "$key"
        fi
    done
}

# provide_operator_program PROGRAM APP: makes a command for root that runs the program with the settings and as the user of
# APP, if the program is installed.
provide_operator_program() {
    [[ -x $home/bin/$1 ]] || return 0
    write_if_new "/usr/local/bin/$1" 755 <<COMMAND || true
#!/bin/bash -p
# Made by setup/lib/machines/machine.sh of crud-master.
[[ \$EUID == 0 ]] || exec sudo "\$0" "\$@"
umask 077 # for exports
PATH=/usr/bin:/bin
$(declare -f as_user)
as_user $2 env ENV_FILE=$state/$2.env $home/bin/$1 "\$@"
COMMAND
}

# stop_at_foreign: the input has a line for each object that others have made and provisioning would change. The function
# prints these lines and ends the script, unless TAKE_OVER_FOREIGN is true.
stop_at_foreign() {
    local thing found=()
    mapfile -t found
    ((${#found[@]} > 0)) || return 0
    for thing in "${found[@]}"; do
        note "not made by crud-master: $thing"
    done
    [[ ${SETTINGS[TAKE_OVER_FOREIGN]:-} == true ]] ||
        die "provisioning would change what crud-master did not make: $(printf '%s; ' "${found[@]}")nothing of it was changed. Use another machine or other names, or set TAKE_OVER_FOREIGN=true in .env.local"
}

# wait_until_healthy: waits until each program answers, ready or not, since its readiness depends on the other machines
# too, which may start later.
wait_until_healthy() {
    local app url deadline=$((SECONDS + 60))
    for app in "${apps[@]}"; do
        url=$(machine_url "$app")
        until answers "$url/health"; do
            ((SECONDS < deadline)) || give_up_on_app "$app"
            sleep 0.2
        done
    done
}

# machine_url APP: prints the URL at which this machine reaches the program.
machine_url() {
    local scheme=http
    [[ $1 != api-gateway || -z ${SETTINGS[TLS_CERT_FILE]:-} ]] || scheme=https
    echo "$scheme://$(host_to_ask "${SETTINGS[LISTEN_ADDRESS]:-0.0.0.0}"):${SETTINGS[${app_port_key[$1]}]}"
}

# answers URL: whether a program answers. The certificate is not verified, since it names the host that clients use and
# not this address.
answers() {
    curl --disable --noproxy '*' --globoff --insecure --silent --fail --max-time 5 --output /dev/null "$1"
}

give_up_on_app() {
    tail -n 20 "$logs/$1.log" | sed 's/^/    | /' >&2
    die "$1 does not answer after a minute; the end of $logs/$1.log is above. Correct the cause and run this again"
}

# end_machine: prints the state of the programs.
end_machine() {
    local app ready
    heading "$(hostname) is provisioned, after $(time_text $SECONDS)"
    for app in "${apps[@]}"; do
        ready='ready'
        answers "$(machine_url "$app")/ready" || ready='runs, and waits for services of other machines'
        note "$app: $ready"
    done
}
