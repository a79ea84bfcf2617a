# shellcheck shell=bash
# What the scripts that provision a machine have in common: gateway.sh, inventory.sh, billing.sh.
# Each can be run again at any time, changes what differs and leaves alone what does not.
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

# Where install.sh puts what is the project's alone.
tools=$home/tools

# The secrets that each program needs; its file of settings has no others.
declare -A app_secrets=(
    [api-gateway]=RABBITMQ_PASSWORD
    [inventory-api]=POSTGRES_PASSWORD
    [billing-api]=POSTGRES_READER_PASSWORD
    [billing-consumer]='POSTGRES_PASSWORD RABBITMQ_CONSUMER_PASSWORD'
)

# begin_machine ROLE APP…: what must hold before anything is changed. The names of the programs
# are those of their users too.
begin_machine() {
    local role=$1 address
    shift
    apps=("$@")
    ((EUID == 0)) || die 'a machine is provisioned by root: sudo bash setup/'"$role.sh"
    [[ -d /run/systemd/system ]] || die 'this machine is not run by systemd, which this needs; setup/local.sh works without'
    require_debian
    # Whoever calls: what is written down below must not differ from one run to the next.
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
    # Two runs at the same time would meet half of each other's work.
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
        die 'MONITORING_IP must be an IPv4 address, as 192.168.56.1, or be left out'
    require_settings INVENTORY_DB_NAME BILLING_DB_NAME RABBITMQ_QUEUE GATEWAY_VM_IP INVENTORY_VM_IP BILLING_VM_IP
    require_roles
    require_ports "${app_port_key[@]}" POSTGRES_PORT RABBITMQ_PORT RABBITMQ_MANAGEMENT_PORT
    [[ ${SETTINGS[RABBITMQ_USER]} != guest && ${SETTINGS[RABBITMQ_CONSUMER_USER]} != guest ]] ||
        die 'the user guest of RabbitMQ is refused across machines: choose another'
}

# close_passwords FILE: a folder that is copied has the modes of the host, where others may not be users at all.
close_passwords() {
    [[ -f $1 ]] && open_to_others "$1" || return 0
    chmod 600 "$1" 2>/dev/null || true
    ! open_to_others "$1" ||
        die "$1 has passwords and is open to others: close it with chmod 600"
}

# open_to_others FILE
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
    note "WARNING: still a value that everybody knows:$keys"
    note '         Before anyone but you reaches these machines, run this on the host:'
    note '           setup/secrets.sh'
    note '           vagrant provision'
    echo
}

# provide_basics [PACKAGE…]: packages of Debian that are missing, these and those for PM2. What
# asks for one is in the functions named lacking_…
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
    step 'Let nobody in over SSH by a password' close_ssh_to_passwords
    step 'Take away the passwords that boxes come with' take_known_passwords
}

# close_ssh_to_passwords: boxes come with one that everybody knows. Where nobody has a key, it would close
# SSH altogether.
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

# take_known_passwords: a service that was lost would become who has one, and by sudo root. Keys stay, and so
# does a password where there are none.
take_known_passwords() {
    local account
    has_ssh_key || return 0
    for account in $(accounts_with_known_password /etc/shadow); do
        usermod --password '*' "$account"
    done
}

# accounts_with_known_password FILE: "vagrant" it is in boxes, whoever has it.
accounts_with_known_password() {
    perl -F: -ane 'print "$F[0]\n" if length $F[1] > 2 && (crypt("vagrant", $F[1]) // "") eq $F[1]' "$1"
}

has_ssh_key() {
    grep -qsE '^[^#]*(ssh|ecdsa|sk)-' /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys
}

# install_machine_packages [PACKAGE…]: their servers do not start yet, but when they are set up.
install_machine_packages() {
    local packages
    mapfile -t packages < <(printf '%s\n' "$@" | grep . || true)
    ((${#packages[@]} > 0)) || return 0
    step "Install ${packages[*]} (this may take some minutes)" install_with_apt "${packages[@]}"
}

# write_if_new FILE MODE [GROUP]: the input in that file, root's and the group's, if it says something
# else; succeeds if so. For folders of root's alone, which own_folders makes of others: elsewhere a link
# could be put in the way at any moment.
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

# own_folders FOLDER…: from the top down, makes them root's, whose packages give them to a service. What
# lies in them stays as it is.
own_folders() {
    local folder
    for folder in "$@"; do
        [[ ! -L $folder ]] || die "$folder is a link, through which root writes nothing: put a folder in its place"
        [[ -d $folder ]] || mkdir -m 755 "$folder"
        chown -h "$EUID:$(id -g)" "$folder"
        chmod go-w "$folder"
    done
}

# foreign_file FILE: says so where it is there, says something, and is neither ours nor as a package
# brought it.
foreign_file() {
    [[ -e $1 ]] || return 0
    [[ -f $1 ]] && { grep -q '^# Made by setup/.* of crud-master' "$1" || is_as_packaged "$1" ||
        ! grep -qvE '^[[:space:]]*(#|$)' "$1"; } || echo "$1"
}

# is_as_packaged FILE
is_as_packaged() {
    dpkg-query --show --showformat='${Conffiles}\n' 2>/dev/null |
        grep -F " $1 $(md5sum <"$1" | cut -d ' ' -f 1)" >/dev/null
}

# write_unit_part UNIT: the input as an addition to a unit of systemd; succeeds if it is new.
write_unit_part() {
    install -d "/etc/systemd/system/$1.d"
    write_if_new "/etc/systemd/system/$1.d/crud-master.conf" 644 || return 1
    systemctl daemon-reload
}

# server_output: Debian's units may have root open a file in a folder of the server's user, who could put a link
# there. To the journal, then.
server_output() {
    cat <<'UNIT'
[Service]
StandardOutput=journal
StandardError=journal
UNIT
}

# provide_apps: users, settings, and the programs running with them.
provide_apps() {
    step 'Make the users of the programs' make_users
    step 'Write their settings' write_app_settings
    step 'Set up PM2 and the rotation of logs' provide_supervisor
    step 'Start what is not running as it should' start_apps
    wait_until_healthy
}

make_users() {
    local app
    for app in "${apps[@]}"; do
        id "$app" >/dev/null 2>&1 ||
            useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin "$app"
    done
}

# write_app_settings: for their programs to read, and root's: backup.sh and restore.sh go by them too.
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

# provide_guarding_files APP: copies of the files that settings name, for the program to read. The
# Vagrantfile brings those of the host to the folder GUARDING_FILES, from where they go.
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

# left_out_for APP: the secrets that are none of its business, and what guards the gateway alone.
left_out_for() {
    local key
    for key in "${SETTING_KEYS[@]}"; do
        if [[ $key == *_PASSWORD && " ${app_secrets[$1]} " != *" $key "* ]] ||
            [[ $1 != api-gateway && " ${gateway_guards[*]} " == *" $key "* ]]; then
            echo "$key"
        fi
    done
}

# provide_operator_program PROGRAM APP: as a command for root, with the settings and as the user
# of APP. Only where the program is installed.
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

# stop_at_foreign: the input has a line for each thing that others have made and provisioning would change.
# It is told, and the end, unless TAKE_OVER_FOREIGN says to go on.
stop_at_foreign() {
    local thing found=()
    mapfile -t found
    ((${#found[@]} > 0)) || return 0
    for thing in "${found[@]}"; do
        note "not made by crud-master: $thing"
    done
    [[ ${SETTINGS[TAKE_OVER_FOREIGN]:-} == true ]] ||
        die "this machine has what crud-master did not make, and would change: $(printf '%s; ' "${found[@]}")nothing of it was changed. Use another machine or other names, or go on with TAKE_OVER_FOREIGN=true in .env.local"
}

# wait_until_healthy: until each program answers. Whether it is ready is also a matter of the
# other machines, which may come up later.
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

# machine_url APP: where this machine reaches it.
machine_url() {
    local scheme=http
    [[ $1 != api-gateway || -z ${SETTINGS[TLS_CERT_FILE]:-} ]] || scheme=https
    echo "$scheme://$(host_to_ask "${SETTINGS[LISTEN_ADDRESS]:-0.0.0.0}"):${SETTINGS[${app_port_key[$1]}]}"
}

# answers URL: a certificate is made out for the name that clients use, not for this address.
answers() {
    curl --disable --noproxy '*' --globoff --insecure --silent --fail --max-time 5 --output /dev/null "$1"
}

give_up_on_app() {
    tail -n 20 "$logs/$1.log" | sed 's/^/    | /' >&2
    die "$1 does not answer after a minute; above is the end of $logs/$1.log. Once that is cured, run this again"
}

# end_machine: says what runs.
end_machine() {
    local app ready
    heading "$(hostname) is provisioned, after $(time_text $SECONDS)"
    for app in "${apps[@]}"; do
        ready='ready'
        answers "$(machine_url "$app")/ready" || ready='runs, and waits for what it needs on other machines'
        note "$app: $ready"
    done
}
