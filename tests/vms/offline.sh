#!/usr/bin/env bash
# Tests of the deployment that need no machines and take seconds: the Vagrantfile and the functions of provisioning.
# run.sh has the other tests.
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/machines/machine.sh"
source "$repo/tests/vms/checks.sh"

scratch=$(mktemp -d)
chmod 711 "$scratch" # the user nobody must reach its files
trap 'rm -rf "$scratch"' EXIT

main() {
    the_vagrantfile
    settings
    passwords_are_closed
    programs
    nobody_tries_programs
    a_build_leaves_nothing
    folders_of_services
    outputs_of_services
    nobody_types_for_root
    known_passwords
    foreign_objects
    output_of_a_guest
    what_pm2_gets
    the_supervisor
    firewall
    strangers
    guards
    lossy_policies
    fetched_packages
    echo "$passed passed, ${#failures[@]} failed"
    ((${#failures[@]} == 0))
}

# The Vagrantfile

the_vagrantfile() {
    if ! command -v vagrant >/dev/null; then
        note 'NOTE: there is no vagrant here: the Vagrantfile is not checked'
        return
    fi
    stand_in_for_virtualbox
    is 'the Vagrantfile is valid for VirtualBox' 0 exit_of validate virtualbox "$repo/Vagrantfile"
    sed 's/virtualbox.linked_clone/virtualbox.linked_clones/' "$repo/Vagrantfile" >"$scratch/Vagrantfile"
    cp "$repo/.env" "$scratch"
    is 'and would not be with a setting that VirtualBox does not have' 1 exit_of \
        validate virtualbox "$scratch/Vagrantfile"
    if dpkg --status vagrant-libvirt >/dev/null 2>&1; then
        is 'the Vagrantfile is valid for libvirt' 0 exit_of validate libvirt "$repo/Vagrantfile"
        sed 's/provider.cpus/provider.cpuss/' "$repo/Vagrantfile" >"$scratch/Vagrantfile"
        is 'and would not be with a setting that libvirt does not have' 1 exit_of \
            validate libvirt "$scratch/Vagrantfile"
    else
        note 'NOTE: there is no vagrant-libvirt here: the Vagrantfile is not checked for libvirt'
    fi
    cat >"$scratch/.env" <<'SETTINGS'
PLAIN=192.168.56.10
COMMENTED=5000 # the door
QUOTED='a # b'
export DOUBLE="c d"
 SPACED = e
OVERRIDDEN=no
SETTINGS
    echo 'OVERRIDDEN=yes' >"$scratch/.env.local"
    is 'the Vagrantfile reads .env as the scripts do' "$(settings_by_scripts)" settings_by_ruby
}

# VirtualBox needs a kernel module; a script that prints a version suffices to validate its settings.
stand_in_for_virtualbox() {
    install -d "$scratch/bin"
    printf '#!/bin/sh\ncase "$*" in *--version*) echo 7.0.20r163906 ;; esac\n' >"$scratch/bin/VBoxManage"
    chmod +x "$scratch/bin/VBoxManage"
}

# validate PROVIDER VAGRANTFILE
validate() {
    PATH=$scratch/bin:$PATH VAGRANT_HOME=$scratch/home VAGRANT_DOTFILE_PATH=$scratch/dot \
        VAGRANT_CWD=$(dirname "$2") VAGRANT_DEFAULT_PROVIDER=$1 vagrant validate
}

settings_by_scripts() (
    read_project_settings "$scratch"
    for key in "${SETTING_KEYS[@]}"; do
        printf '%s=%s\n' "$key" "${SETTINGS[$key]}"
    done | sort
)

settings_by_ruby() {
    sed '/^Vagrant.configure/,$d' "$repo/Vagrantfile" >"$scratch/Vagrantfile.rb"
    # shellcheck disable=SC2016 # Ruby's
    ruby -e 'load ARGV[0]; SETTINGS.sort.each { |key, value| puts "#{key}=#{value}" }' "$scratch/Vagrantfile.rb"
}

# Settings and secrets

settings() {
    local before
    install -d "$scratch/project/setup/lib/common"
    cp "$repo/setup/secrets.sh" "$scratch/project/setup"
    cp "$repo"/setup/lib/common/{posix.sh,well_known_passwords} "$scratch/project/setup/lib/common"
    cp "$repo/.env" "$scratch/project"
    printf 'RUST_LOG=debug\n' >"$scratch/project/.env.local"
    is 'setup/secrets.sh works in a POSIX shell' 0 exit_of sh "$scratch/project/setup/secrets.sh"
    is 'it makes four strong passwords' 4 grep -cE '^(POSTGRES|RABBITMQ)(_[A-Z]+)?_PASSWORD=[0-9a-f]{48}$' "$scratch/project/.env.local"
    is 'and leaves alone what was there' RUST_LOG=debug grep RUST_LOG "$scratch/project/.env.local"
    is 'for its owner alone' 600 stat -c %a "$scratch/project/.env.local"
    before=$(<"$scratch/project/.env.local")
    sh "$scratch/project/setup/secrets.sh" >/dev/null
    is 'a second time it changes nothing' "$before" cat "$scratch/project/.env.local"
    sh "$scratch/project/setup/secrets.sh" renew >/dev/null
    is 'unless it is told to renew' 1 exit_of test "$before" = "$(<"$scratch/project/.env.local")"

    cp "$repo/.env" "$scratch/project/.env.local"
    sh "$scratch/project/setup/secrets.sh" >/dev/null
    is 'a copy of .env gets strong ones in the place of the well-known ones' 4 \
        grep -cE '^(POSTGRES|RABBITMQ)(_[A-Z]+)?_PASSWORD=[0-9a-f]{48}$' "$scratch/project/.env.local"
    printf '%s\r\n' 'export POSTGRES_PASSWORD = "password" # x' "RABBITMQ_PASSWORD='own \\'" >"$scratch/project/.env.local"
    sh "$scratch/project/setup/secrets.sh" >/dev/null
    is 'one that everybody knows is replaced however it is written' 1 grep -cE '^POSTGRES_PASSWORD=[0-9a-f]{48}$' "$scratch/project/.env.local"
    is 'and one of their own stays' 1 grep -cF "RABBITMQ_PASSWORD='own \\'" "$scratch/project/.env.local"

    is 'the gateway is told one password, to publish' RABBITMQ_PASSWORD secrets_in_settings_of api-gateway
    is 'the inventory that of the owner' POSTGRES_PASSWORD secrets_in_settings_of inventory-api
    is 'billing-api that of who can only read' POSTGRES_READER_PASSWORD secrets_in_settings_of billing-api
    is 'the consumer those of the owner, and to consume' 'POSTGRES_PASSWORD RABBITMQ_CONSUMER_PASSWORD' secrets_in_settings_of billing-consumer
    is 'roles with one name are refused' 1 exit_of roles_with POSTGRES_READER_USER=crud_master
    is 'and users' 1 exit_of roles_with RABBITMQ_CONSUMER_USER=crud_master
    is 'and administrators' 1 exit_of roles_with POSTGRES_READER_USER=postgres
    is 'and one without a password' 1 exit_of roles_with RABBITMQ_CONSUMER_PASSWORD=
    is 'those of .env are not' 0 exit_of roles_with RABBITMQ_CONSUMER_USER=other
}

# passwords_are_closed: checks that the passwords are closed on a machine, whatever their mode on the host is.
passwords_are_closed() {
    local file=$scratch/open.env
    is 'a project without passwords has none to close' 0 exit_of in_own_shell close_passwords "$file"
    install -m 644 /dev/null "$file"
    is 'passwords that are open to others' 0 exit_of in_own_shell close_passwords "$file"
    is 'are closed' 600 stat -c %a "$file"
    chmod 660 "$file"
    is 'and where they cannot be' "$file has passwords and is open to others: close it with chmod 600" said_without_chmod "$file"
    chmod 700 "$file"
    is 'those of a shared folder are' 0 exit_of in_own_shell close_passwords "$file"
    is 'and stay as they are' 700 stat -c %a "$file"
}

# shellcheck disable=SC2317 # close_passwords calls it
said_without_chmod() (
    chmod() { return 1; }
    (close_passwords "$1") 2>&1 | sed 's/^[^:]*: //'
)

# secrets_in_settings_of APP: prints the passwords in the settings of the program.
secrets_in_settings_of() (
    local left_out
    read_project_settings "$repo"
    mapfile -t left_out < <(left_out_for "$1")
    write_settings "$scratch/told.env" "${left_out[@]}"
    sed -n 's/^\([A-Z_]*_PASSWORD\)=.*/\1/p' "$scratch/told.env" | paste -sd ' '
)

# roles_with KEY=VALUE
roles_with() (
    read_project_settings "$repo"
    set_setting "${1%%=*}" "${1#*=}"
    require_roles
)

# The source of the programs

programs() {
    local here_runs=$scratch/dist
    install -d "$here_runs" "$scratch/opt/bin"
    home=$scratch/opt
    printf '#!/bin/sh\n' >"$here_runs/api-gateway"
    is 'programs put there by hand are taken' 0 exit_of programs_fit "$here_runs" abc api-gateway
    echo abc >"$here_runs/built-from"
    is 'programs of these sources are taken' 0 exit_of programs_fit "$here_runs" abc api-gateway
    is 'programs of other sources are not' 1 exit_of programs_fit "$here_runs" def api-gateway
    is 'nor where one is missing' 1 exit_of programs_fit "$here_runs" abc api-gateway inventory-api
    printf 'no program' >"$here_runs/inventory-api"
    is 'nor one that does not run here' 1 exit_of programs_fit "$here_runs" abc inventory-api

    is 'a newer compiler will do' 0 exit_of at_least 1.100.0 1.95
    is 'an older one will not' 1 exit_of at_least 1.94.1 1.95
    is 'Cargo.toml says which one is needed' 0 exit_of grep -qE '^1\.[0-9]+$' <(minimum_rust)
    is 'the fingerprint is that of the sources' 1 exit_of test "$(sources_fingerprint "$repo")" = "$(fingerprint_with common/src/lib.rs)"
    is 'with the description that the gateway serves' 1 exit_of test "$(sources_fingerprint "$repo")" = "$(fingerprint_with docs/openapi.yaml)"
    is 'and not of their tests' 0 exit_of test "$(sources_fingerprint "$repo")" = "$(fingerprint_with billing/tests/api.rs)"
}

# nobody_tries_programs: checks as which user a program is run for a trial.
nobody_tries_programs() {
    local place=$scratch/tried
    ((EUID == 0)) || return 0
    install -d -m 1777 "$place"
    # shellcheck disable=SC2016 # for another shell
    printf '#!/bin/sh\nid -un >%s/by; echo "$HOME$POSTGRES_PASSWORD" >%s/with\n' "$place" "$place" >"$scratch/dist/malicious"
    POSTGRES_PASSWORD=x is 'a program that was built is tried' 0 exit_of program_runs "$scratch/dist/malicious"
    is 'as nobody' nobody cat "$place/by"
    is 'with nothing of the environment' '' cat "$place/with"
}

# a_build_leaves_nothing: builds a project with secrets and a crate that attacks later builds.
a_build_leaves_nothing() {
    # clear_builder does not search this folder.
    local builder=54321 workshop=/run/crud-master-offline-$$ builder_path=''
    ((EUID == 0)) || return 0
    install -d "$scratch/to_build"
    (cd "$repo" && tar -cf - "${build_sources[@]}") | tar -C "$scratch/to_build" -xf -
    install -d "$scratch/to_build/tls"
    touch "$scratch/to_build"/{tls/key.pem,keys,gateway/key.pem,.env.local,env.bak,.git}
    provide_scratch_builder
    is 'who builds gets the sources and no secrets' "$(words_of ls_all "$repo" "${build_sources[@]}")" \
        words_of ls_all "$workshop/source" .
    is 'which are a workspace' 0 exit_of cargo metadata --offline --no-deps --locked --format-version=1 \
        --manifest-path "$workshop/source/Cargo.toml"
    is 'a crate does what it likes' 0 exit_of as_builder hostile_crate
    is 'which is there now' 0 exit_of test -x "$workshop/home/.cargo/bin/cargo"
    is 'what cannot be removed of what it has left is told' 1 exit_of while_nothing_can_be_removed clear_builder
    is 'and a file of somebody else that vanishes meanwhile stops nothing' 0 exit_of while_files_vanish clear_builder
    is 'what it has left running is ended' 1 exit_of pgrep --runstates DRS -u "$builder"
    is 'and what it has left for others is gone' '' find /tmp /var/tmp /dev/shm -maxdepth 1 -user "$builder"
    provide_scratch_builder
    is 'and the next build finds nothing of it' "$workshop/home/tmp" find "$workshop"/{home,target} -mindepth 1
    is 'and calls nothing of its own' 1 exit_of grep "$workshop" <(as_builder show_path)
    rm -rf "$workshop"
}

while_nothing_can_be_removed() (
    # shellcheck disable=SC2317 # the command calls it
    find() { [[ $* == *-delete ]] || command find "$@"; }
    "$@"
)

while_files_vanish() (
    # shellcheck disable=SC2317 # the command calls it
    find() { command find "$@" && false; }
    "$@"
)

# provide_scratch_builder: makes the folders of a builder without a user name.
provide_scratch_builder() {
    local repo=$scratch/to_build
    make_builder() { :; }
    provide_builder
}

# ls_all FOLDER PATH…: prints the files below the paths.
ls_all() (
    cd "$1"
    find "${@:2}" -type f -printf '%p\n' | sed 's|^\./||' | sort
)

hostile_crate() {
    mkdir -p "$HOME/.cargo/bin" "$workshop/target/release"
    printf '#!/bin/sh\n' >"$HOME/.cargo/bin/cargo"
    chmod 755 "$HOME/.cargo/bin/cargo"
    printf '[build]\nrustc-wrapper = "evil"\n' >"$HOME/.cargo/config.toml"
    touch /tmp/of-a-build-$$ /dev/shm/of-a-build-$$
    # shellcheck disable=SC2064
    (trap "" TERM HUP; exec setsid sleep 611) >/dev/null 2>&1 &
    (exec sleep 611) >/dev/null 2>&1 &
}

show_path() {
    echo "$PATH"
}

# folders_of_services: checks folders in which a service has put links where root writes.
folders_of_services() {
    local folder=$scratch/service victim=$scratch/victim
    ((EUID == 0)) || return 0
    install -d -o nobody -g nogroup "$folder"
    echo "root's" >"$victim"
    chmod 600 "$victim"
    ln -s "$victim" "$folder/rabbitmq.conf"
    ln -s "$victim" "$folder/rabbitmq.conf.new"
    install -d "$scratch/elsewhere"
    ln -s "$scratch/elsewhere" "$folder/enabled_plugins"
    own_folders "$folder"
    is 'a folder of a service becomes root'"'"'s' '755 root root' stat -c '%a %U %G' "$folder"
    is 'a file is written there' 0 exit_of write_in "$folder/rabbitmq.conf" 640 nogroup
    is 'it is a file and root'"'"'s, for the service to read' '640 root nogroup regular file' stat -c '%a %U %G %F' "$folder/rabbitmq.conf"
    is 'and where the links led nothing has changed' "600 root root's" echo "$(stat -c '%a %U' "$victim") $(<"$victim")"
    is 'a link to a folder is replaced too' 0 exit_of write_in "$folder/enabled_plugins" 644
    is 'and nothing is put there' '' ls "$scratch/elsewhere"
    is 'a second time nothing is new' 1 exit_of write_in "$folder/enabled_plugins" 644
    chown nobody "$folder/rabbitmq.conf"
    is 'unless it was given to somebody' 0 exit_of write_in "$folder/rabbitmq.conf" 640 nogroup
    ln -s "$scratch/elsewhere" "$scratch/linked"
    is 'a link in the place of a folder is refused' 1 exit_of in_own_shell own_folders "$scratch/linked"
    is 'and what it leads to stays' 'root 755' stat -c '%U %a' "$scratch/elsewhere"
}

# outputs_of_services: checks that root opens no file for a service; a package's unit may let root open files in a folder
# of the service.
outputs_of_services() {
    local unit
    for unit in rabbitmq-server.service postgresql@.service epmd.service; do
        is "root opens no file for what $unit says" '' files_opened_for "$unit"
    done
}

# files_opened_for UNIT: prints the files that root opens for Debian's unit with the additions of provisioning.
files_opened_for() (
    part=$(part_of "$1")
    cat "/lib/systemd/system/$1" "$part" 2>/dev/null |
        awk -F = '/^Standard(Output|Error)=/ { output[$1] = $2 } END { for (name in output) print name, output[name] }' |
        grep -E ' (file|append|truncate):'
)

# part_of UNIT: prints the name of a file with the additions of provisioning. Nothing is started.
# shellcheck disable=SC2030,SC2317 # for this shell, in which setup/ calls them
part_of() (
    state=$scratch/state broker_home=$scratch/broker
    install -d "$broker_home" "$scratch/units"
    systemctl() { :; }
    own_folders() { :; }
    wait_for_broker() { :; }
    postgres_cluster() { echo '15 main'; }
    foreign_hba() { :; }
    foreign_broker() { :; }
    write_if_new() { cat >/dev/null; }
    write_unit_part() { cat >"$scratch/units/$1"; }
    read_project_settings "$repo"
    configure_broker
    configure_cluster
    echo "$scratch/units/$1"
)

# nobody_types_for_root: checks that a process that root starts as another user cannot write to root's terminal.
nobody_types_for_root() {
    ((EUID == 0)) || return 0
    install -d -m 1777 "$scratch/typed"
    # shellcheck disable=SC2016 # for another shell
    is 'whoever has the terminal could type there' opened on_terminal \
        'setpriv --reuid=nobody --regid=nogroup --clear-groups sh -c ": </dev/tty && echo opened"' ''
    # shellcheck disable=SC2016 # for another shell
    is 'what runs as another user has none, and where it writes to one it cannot read' $'1\n1\nhas none' on_terminal \
        "as_user nobody bash -c '(: </dev/tty) 2>/dev/null && echo opened
            for fd in 0 1 2; do [[ ! -t \$fd ]] || sed -n \"s/^flags:.*\\(.\\)\$/\\1/p\" /proc/\$\$/fdinfo/\$fd; done; echo has none'" ''
    is 'says what it has to, and how it ended' 'said 7' on_terminal 'as_user nobody sh -c "printf said; exit 7" || echo " $?"' ''
    is 'reads what it is given' given on_terminal 'as_user nobody cat <<<given' ''
    is 'has none of the variables' '' on_terminal 'SECRET=x as_user nobody printenv SECRET || true' ''
    is 'unless they are meant for it' x on_terminal 'SECRET=x as_user --with-environment nobody printenv SECRET' ''
    # shellcheck disable=SC2016 # for another shell
    is 'and ends where the terminal says so' $'begun\n^Cended' on_terminal \
        'as_user nobody bash -c "trap \"echo ended; exit\" TERM; exec {silence}<> <(:); echo begun; while :; do read -rt 1 -u \$silence; done"; echo goes on' begun
    is 'as the commands of operators do' 'nobody has none' on_terminal_of_operator
}

# on_terminal COMMANDS TEXT: prints the output of a shell with the functions of setup/ on a terminal of its own. If TEXT is
# not empty, the terminal sends Ctrl-C when TEXT appears.
on_terminal() {
    python3 -I -c 'import os, pty, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    # A process in the background may ignore the signal.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execvp("bash", ["bash", "-p", "-c", sys.argv[1], "bash", sys.argv[3]])
shown, pressed = b"", not sys.argv[2]
while True:
    try:
        shown += os.read(terminal, 4096)
    except OSError:
        break
    if not pressed and sys.argv[2].encode() in shown:
        os.write(terminal, b"\x03")
        pressed = True
os.waitpid(pid, 0)
print(shown.decode().replace("\r\n", "\n").strip())' \
        "set -euo pipefail; repo=\$1; source \"\$repo/setup/lib/common/users.sh\"; $1" "$2" "$repo"
}

on_terminal_of_operator() {
    # shellcheck disable=SC2016 # for another shell
    printf '#!/bin/sh\nid -un; (: </dev/tty) 2>/dev/null && echo opened; echo has none\n' >"$scratch/opt/bin/operate"
    chmod 755 "$scratch/opt/bin/operate"
    (
        # shellcheck disable=SC2317 # provide_operator_program calls it
        write_if_new() { cat >"$scratch/operate"; }
        # shellcheck disable=SC2030 # for this shell
        home=$scratch/opt
        provide_operator_program operate nobody
    )
    on_terminal "bash -p $scratch/operate" '' | paste -sd ' '
}

# known_passwords: checks the password of boxes in all hash formats that Debian has had.
known_passwords() {
    # shellcheck disable=SC2016 # Perl's
    perl -e 'my %salts = (yescrypt => q($y$j9T$abcdefghijklmnop), sha512 => q($6$abcdefgh$), md5 => q($1$abcdefgh$));
        print "$_:", crypt("vagrant", $salts{$_}), ":19000:0:99999:7:::\n" for sort keys %salts;
        print "own:", crypt("strong", $salts{sha512}), ":19000::::::\nlocked:!", crypt("vagrant", $salts{sha512}), ":19000::::::\n";
        print "none:*:19000::::::\nclosed:!:19000::::::\nempty::19000::::::\n"' >"$scratch/shadow"
    is 'accounts with the password of boxes are known' 'md5 sha512 yescrypt' words_of accounts_with_known_password "$scratch/shadow"
    is 'and lose it' 'usermod --password * sha512' words_of passwords_taken 'ssh-ed25519 AAAA'
    is 'but not where nobody would get in any more' '' words_of passwords_taken ''
}

# passwords_taken KEY: prints the change of an account with that password if there is such a key.
# shellcheck disable=SC2317 # take_known_passwords calls it
passwords_taken() (
    key=$1
    has_ssh_key() { [[ -n $key ]]; }
    accounts_with_known_password() { echo sha512; }
    usermod() { echo usermod "$@"; }
    take_known_passwords
)

# write_in FILE MODE [GROUP]: writes the file.
write_in() {
    echo ours | write_if_new "$@"
}

# in_own_shell COMMAND…: runs the command in a shell of its own, which die ends.
in_own_shell() (
    "$@"
)

# foreign_objects: checks a machine with objects that other people have made.
foreign_objects() {
    local folder=$scratch/foreign
    install -d "$folder"
    printf '%s\n' '# comment' 'local   all   postgres   peer' 'host  all  all  127.0.0.1/32  scram-sha-256 # x' >"$folder/pg_hba.conf"
    is 'the rules of a new cluster are nobody'"'"'s' '' foreign_hba "$folder/pg_hba.conf"
    echo 'host all all 10.0.0.0/8 trust' >>"$folder/pg_hba.conf"
    is 'other rules are told' "$folder/pg_hba.conf, with rules of its own" foreign_hba "$folder/pg_hba.conf"
    is 'a broker without files is nobody'"'"'s' '' foreign_broker "$folder"
    echo '# only a comment' >"$folder/rabbitmq-env.conf"
    our_broker_settings >"$folder/rabbitmq.conf"
    echo '[rabbitmq_management].' >"$folder/enabled_plugins"
    is 'nor is one with our files' '' foreign_broker "$folder"
    echo 'default_user = tenant' >"$folder/rabbitmq.conf"
    echo '[rabbitmq_mqtt].' >"$folder/enabled_plugins"
    is 'files of others are told' "$folder/rabbitmq.conf $folder/enabled_plugins" words_of foreign_broker "$folder"
    (read_project_settings "$repo" && machine_address=192.168.56.11 && firewall_rules) >"$folder/nftables.conf"
    is 'our firewall is ours' '' foreign_file "$folder/nftables.conf"
    echo 'table inet tenant { }' >"$folder/nftables.conf"
    is 'that of others is not' "$folder/nftables.conf" foreign_file "$folder/nftables.conf"
    is 'what a package brought is nobody'"'"'s' '' foreign_file /etc/bash.bashrc
    is 'where there is nothing of others, we go on' 0 exit_of in_own_shell stop_at_foreign </dev/null
    is 'where there is, we stop' 1 told_to_stop
    set_setting TAKE_OVER_FOREIGN true
    is 'unless told to go on' 0 told_to_stop
    set_setting TAKE_OVER_FOREIGN ''
}

our_broker_settings() (
    broker_home=$scratch
    echo secret >"$broker_home/administrator"
    read_project_settings "$repo"
    broker_settings
)

words_of() {
    "$@" | paste -sd ' '
}

told_to_stop() {
    echo "$scratch/foreign" | (stop_at_foreign) >/dev/null 2>&1
    echo "$?"
}

# output_of_a_guest: checks how the Vagrantfile handles the output of a machine, whose programs it keeps.
output_of_a_guest() {
    local said source all
    if ! command -v ruby >/dev/null; then
        note 'NOTE: there is no Ruby here: how the Vagrantfile handles the output of a guest is not checked'
        return
    fi
    all='dist/x86_64/api-gateway dist/x86_64/billing-api dist/x86_64/billing-consumer dist/x86_64/billing-dead-letters dist/x86_64/built-from dist/x86_64/inventory-api'
    new_project
    source=$(sources_fingerprint "$scratch/kept")
    is 'the Vagrantfile knows the sources as the scripts do' "$source" in_project 'puts sources_fingerprint'
    is 'what a guest has built is kept' "$all" kept_of "x86_64\n$source\n"
    is 'with the sources it is of' "$source" cat "$scratch/kept/dist/x86_64/built-from"
    is 'as it was, to be executed, and no more than that' '755 a program' echo \
        "$(stat -c %a "$scratch/kept/dist/x86_64/api-gateway") $(<"$scratch/kept/dist/x86_64/api-gateway")"
    is 'what another guest says later replaces nothing' 'a program' in_place_of "x86_64\n$source\n" 'evil'
    echo 'pub fn new() {}' >"$scratch/kept/common/src/new.rs"
    is 'nor with the sources of tomorrow, as long as those are not here' 'a program' in_place_of \
        "x86_64\n$(printf '%064d' 1)\n" 'evil'
    in_project remove_stale_programs
    is 'with other sources here, what was kept goes' '' kept_files
    is 'and a guest with those of yesterday gives nothing' '' in_place_of "x86_64\n$source\n" 'old'
    source=$(sources_fingerprint "$scratch/kept")
    is 'but one that has built these' 'a new program' in_place_of "x86_64\n$source\n" 'a new program'
    in_project remove_stale_programs
    is 'which stays' "$all" kept_files
    rm "$scratch/kept/dist/x86_64/built-from"
    in_project remove_stale_programs
    is 'programs put there by hand are replaced by none' 'a new program' in_place_of "x86_64\n$source\n" 'evil'
    new_project
    for said in "../../home\n$source\n" "x86_64/..\n$source\n" "x86_64\n../../etc/passwd\n" "x86_64\n" '' \
        "..\n$source\n" "$source\n" "x86_64\n$(printf '%064d' 1)\n" "x86\xff\n$source\n" "$(printf '%02000d' 1)"; do
        is "nothing is kept of a guest that says ${said::70}" '' kept_of "$said"
    done
    is 'nor of one that has a program without end' '' in_place_of "x86_64\n$source\n" endless
    is 'nor of one that lacks some' '' in_place_of "x86_64\n$source\n" ''
    is 'the names are those of setup/lib/machines/programs.sh' "${built_programs[*]}" from_vagrantfile 'puts PROGRAMS.join(" ")'
}

# from_vagrantfile PROGRAM: runs a Ruby program with the Vagrantfile's functions.
from_vagrantfile() {
    sed '/^Vagrant.configure/,$d' "$repo/Vagrantfile" >"$scratch/Vagrantfile.rb"
    ruby -e 'load ARGV[0]; eval(ARGV[1])' "$scratch/Vagrantfile.rb" "$@"
}

# new_project: makes a project without programs.
new_project() {
    rm -rf "$scratch/kept"
    copy_sources "$scratch/kept"
    sed '/^Vagrant.configure/,$d' "$repo/Vagrantfile" >"$scratch/kept/Vagrantfile"
    cp "$repo/.env" "$scratch/kept"
}

# in_project PROGRAM [ARGUMENT…]: runs a Ruby program with the functions of the project's Vagrantfile.
in_project() {
    ruby -e 'load ARGV[0]; eval(ARGV[1])' "$scratch/kept/Vagrantfile" "$@"
}

# kept_of TEXT [PROGRAM]: prints the files in the project's dist/ after a guest has answered with TEXT and has such
# programs.
kept_of() {
    # shellcheck disable=SC2016 # Ruby's
    in_project 'PROGRAM_BYTES_MAX = 1000
        Guest = Struct.new(:said, :program) do
            def communicate = self
            def ui = self
            def info(_) = nil
            def warn(_) = nil
            def execute(command, **)
                return yield(:stdout, said) if command.start_with?("uname")
                loop { yield(:stdout, "eHh4\n") } if program == "endless"
                yield(:stdout, [program].pack("m"))
            end
            def download(_, to) = File.write(to, program)
        end
        keep_programs(Guest.new(ARGV[2].gsub("\\n", "\n").gsub("\\xff", "\xff"), ARGV[3]))' "$1" "${2-a program}" 2>/dev/null
    kept_files
}

# in_place_of TEXT PROGRAM: prints the content of the gateway's program in dist/ afterwards.
in_place_of() {
    kept_of "$@" >/dev/null
    cat "$scratch/kept/dist/x86_64/api-gateway" 2>/dev/null
}

kept_files() {
    [[ ! -d $scratch/kept/dist ]] || (cd "$scratch/kept" && find dist -type f | LC_ALL=C sort | paste -sd ' ')
}

# fingerprint_with FILE: prints the fingerprint of the sources after a change of that file.
fingerprint_with() {
    copy_sources "$scratch/copy"
    echo >>"$scratch/copy/$1"
    sources_fingerprint "$scratch/copy"
}

# copy_sources FOLDER: copies the sources of the programs.
copy_sources() (
    rm -rf "$1"
    install -d "$1"
    cd "$repo"
    cp -r Cargo.toml Cargo.lock rust-toolchain.toml .cargo common inventory gateway billing "$1"
    install -D --target-directory "$1/docs" docs/openapi.yaml
)

# The list of programs for PM2

what_pm2_gets() {
    local key
    install -d "$scratch/state"
    read_project_settings "$repo"
    for key in {POSTGRES{,_READER},RABBITMQ{,_CONSUMER}}_PASSWORD; do
        set_setting "$key" hunter2
    done
    for app in "${apps[@]}"; do
        write_settings "$scratch/state/$app.env"
    done
    apps_write_list "$scratch/state"
    is 'its list has the four names' 'api-gateway inventory-api billing-api billing-consumer' \
        of_list '" ".join(app["name"] for app in apps)'
    is 'each program has more than the 10 s that a drain may take' True of_list 'all(app["kill_timeout"] > 11000 for app in apps)'
    is 'each is told where its own settings are' True \
        of_list 'all(app["env"]["ENV_FILE"] == "'"$scratch"'/state/" + app["name"] + ".env" for app in apps)'
    is 'the settings are for their owner alone' '600 600 600 600' modes_of_settings
    ((EUID != 0)) || {
        is 'a program is its user without the descriptor of PM2' 'games without 1' with_descriptor_of_pm2
        is 'which is closed before the user is switched' True python3 -I -c 'import json, sys
entry = json.load(open(sys.argv[1]))
print("uid" not in entry and entry["args"][1].index("exec 3>&-") < entry["args"][1].index("setpriv"))' "$scratch/started/entry.json"
    }
    is 'no secret is in the list' 1 exit_of grep -q hunter2 "$scratch/state/apps.json"
}

# with_descriptor_of_pm2: starts a program of the list as PM2 does, with a descriptor 3, and prints its user and rights.
with_descriptor_of_pm2() {
    local folder=$scratch/started
    install -d "$folder/programs"
    # shellcheck disable=SC2016 # for another shell
    printf '#!/bin/sh\nid -un; (echo garbage >&3) 2>/dev/null || echo without; grep NoNewPrivs /proc/self/status | tr -dc 1\n' >"$folder/programs/talker"
    chmod 755 "$folder/programs/talker"
    install -m 640 -g games /dev/null "$folder/talker.env"
    app_entry "$folder" talker '' >"$folder/entry.json"
    python3 -I -c 'import json, os, sys
entry = json.load(open(sys.argv[1]))
read, write = os.pipe()
os.dup2(write, 3)
if "uid" in entry:
    import pwd
    os.setuid(pwd.getpwnam("nobody").pw_uid)
os.execv(entry["script"], [entry["script"], *entry["args"]])' "$folder/entry.json" | paste -sd ' '
}

of_list() {
    python3 -c 'import json, sys; apps = json.load(open(sys.argv[1]))["apps"]; print(eval(sys.argv[2]))' \
        "$scratch/state/apps.json" "$1"
}

modes_of_settings() {
    stat -c %a "$scratch/state/"*.env | paste -sd ' '
}

# PM2 as a service

the_supervisor() {
    local variables
    tools=$scratch/tools
    install -d "$scratch/state/pm2" "$tools/pm2"
    fingerprint "$repo"/setup/lib/common/pm2/package*.json >"$tools/pm2/version"
    # shellcheck disable=SC2016 # for another shell
    is 'its unit does not depend on who provisions' "$(HOME=/nowhere unit_text)" env -u HOME bash -p -c \
        'repo=$1 PATH=$2; source "$1/setup/lib/common/surroundings.sh"; source "$1/setup/lib/machines/machine.sh"; PATH=$2 tools=$3; unit_text' \
        bash "$repo" "$PATH" "$tools"
    mapfile -t variables < <(state=$scratch/state unit_text | sed -n 's/^Environment=//p' | tr -d '"')
    start_daemon "$scratch/state/pm2/pm2.pid" /dev/null "${variables[0]}" "${variables[@]}" sleep 600
    is 'PM2 as it was started by its unit stays' 0 exit_of supervisor_of "$scratch/state"
    touch -d 2001-01-01 "$scratch/state/pm2/pm2.pid"
    is 'whatever the clock was' 0 exit_of supervisor_of "$scratch/state"
    touch -d 2099-01-01 "$scratch/state/pm2/pm2.pid"
    is 'and not with another unit, though the clock was ahead' 1 exit_of supervisor_of "$scratch/state" /another
    echo 0.0.0 >"$tools/pm2/version"
    is 'nor of another version' 1 exit_of supervisor_of "$scratch/state"
    stop_daemon "$scratch/state/pm2/pm2.pid" "${variables[0]}"
}

# supervisor_of STATE [PATH]: whether the supervisor is current if its unit has PATH beside the present PATH.
supervisor_of() (
    state=$1
    PATH=$PATH${2:+:$2}
    supervisor_is_current
)

# The firewall

firewall() {
    read_project_settings "$repo"
    machine_address=${SETTINGS[INVENTORY_VM_IP]}
    firewall_rules 'tcp dport 5000 accept' >"$scratch/firewall"
    is 'its rules are rules of nftables' 0 exit_of check_rules
    firewall_rules 'tcp port 5000 accept' >"$scratch/firewall"
    is 'and a mistake would be noticed' 1 exit_of check_rules
    set_setting MONITORING_IP 192.168.56.1
    firewall_rules "$(from_monitoring BILLING_API_PORT BILLING_CONSUMER_PORT)" >"$scratch/firewall"
    is 'who collects metrics is let in to them' 0 exit_of check_rules
    is 'and nobody else' 1 grep -cE 'saddr 192.168.56.1 tcp dport . 8081,8082 . accept' "$scratch/firewall"
    set_setting MONITORING_IP ''
    is 'nor anybody where nobody collects them' '' from_monitoring BILLING_CONSUMER_PORT
}

# strangers: checks which clients a machine accepts, in networks of their own: the host, the gateway, another machine and
# an unknown one, over IPv4 and IPv6.
strangers() {
    if ! ip netns add "crud-$$-machine" 2>/dev/null; then
        note 'NOTE: no networks can be made here: the clients that a machine accepts are not checked'
        return
    fi
    trap 'ip netns delete "crud-$$-machine"; ip netns delete "crud-$$-others"; rm -rf "$scratch"' EXIT
    ip netns add "crud-$$-others"
    make_networks
    answer_everywhere
    RULES=$(to_service INVENTORY_API_PORT)
    load_rules "$RULES"
    is 'the host reaches SSH and, without keys, the service' '22 8080' reached 192.168.56.1 192.168.56.11
    is 'the gateway reaches the service and no SSH' 8080 reached 192.168.56.10 192.168.56.11
    is 'another machine does too' 8080 reached 192.168.56.12 192.168.56.11
    is 'and a stranger' 8080 reached 192.168.56.99 192.168.56.11
    is 'also over IPv6' 8080 reached fd00::99 fd00::11
    is 'through NAT the host reaches both' '22 8080' reached 10.0.2.2 10.0.2.15
    set_setting API_KEYS_FILE keys
    load_rules "$(to_service INVENTORY_API_PORT)"
    is 'with keys, the gateway reaches the service' 8080 reached 192.168.56.10 192.168.56.11
    is 'the host does not' 22 reached 192.168.56.1 192.168.56.11
    is 'nor through NAT' 22 reached 10.0.2.2 10.0.2.15
    is 'nor another machine' '' reached 192.168.56.12 192.168.56.11
    is 'nor a stranger' '' reached 192.168.56.99 192.168.56.11
    is 'nor anybody over IPv6' '' reached fd00::99 fd00::11
    set_setting MONITORING_IP 192.168.56.99
    load_rules "$(to_service INVENTORY_API_PORT)"
    is 'who collects metrics does' 8080 reached 192.168.56.99 192.168.56.11
    set_setting MONITORING_IP ''
    set_setting API_KEYS_FILE ''
    load_rules "$(from_host 15672)"
    is 'the management page is for the host' '22 15672' reached 192.168.56.1 192.168.56.11
    is 'and for no machine' '' reached 192.168.56.12 192.168.56.11
    command ip netns exec "crud-$$-machine" nft add table inet tenant
    load_rules
    is 'tables of others stay loaded' 'table inet tenant' tables_of_others
    command ip -n "crud-$$-machine" route delete default
    load_rules
    is 'a machine of its own lets everybody but the others in over SSH' 22 reached 192.168.56.99 192.168.56.11
    is 'over IPv6 too' 22 reached fd00::99 fd00::11
    is 'and not the others' '' reached 192.168.56.12 192.168.56.11
}

make_networks() {
    local machine=crud-$$-machine others=crud-$$-others address
    ip -n "$machine" link add eth1 type veth peer name eth1 netns "$others"
    ip -n "$machine" link add eth0 type veth peer name eth0 netns "$others"
    for address in eth1:192.168.56.11/24 eth0:10.0.2.15/24; do
        ip -n "$machine" address add "${address#*:}" dev "${address%%:*}"
    done
    for address in 192.168.56.{1,10,12,99}; do
        ip -n "$others" address add "$address/24" dev eth1
    done
    ip -n "$others" address add 10.0.2.2/24 dev eth0
    ip -n "$machine" address add fd00::11/64 dev eth1 nodad
    ip -n "$others" address add fd00::99/64 dev eth1 nodad
    for address in eth0 eth1 lo; do
        ip -n "$machine" link set "$address" up
        ip -n "$others" link set "$address" up
    done
    ip -n "$machine" route add default via 10.0.2.2
    ip netns exec "$others" sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0
}

# answer_everywhere: listens on IPv4 and IPv6 until the network's last process or this script ends.
answer_everywhere() {
    ip netns exec "crud-$$-machine" python3 -c 'import os, select, socket, sys
listeners = [socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True) for port in (22, 8080, 8081, 15672)]
print("listening", flush=True)
while os.getppid() != 1 and os.path.isdir(sys.argv[1]):
    for listener in select.select(listeners, [], [], 1)[0]:
        listener.accept()[0].close()' "$scratch" >"$scratch/listening" &
    becomes 'something listens on every port' listening cat "$scratch/listening"
}

# load_rules [RULE…]: loads the firewall of the machine.
load_rules() {
    (
        ip() { command ip -n "crud-$$-machine" "$@"; }
        ssh_ports() { echo 22; }
        firewall_rules "$@"
    ) >"$scratch/firewall"
    ip netns exec "crud-$$-machine" nft -f "$scratch/firewall"
}

# reached FROM ADDRESS: prints the ports that accept a client with the address FROM.
reached() {
    ip netns exec "crud-$$-others" python3 -c 'import socket, sys
def open(port):
    try:
        socket.create_connection((sys.argv[2], port), 2, (sys.argv[1], 0)).close()
        return True
    except OSError:
        return False
print(*(port for port in (22, 8080, 8081, 15672) if open(port)))' "$1" "$2"
}

tables_of_others() {
    ip netns exec "crud-$$-machine" nft list tables | grep -v crud_master
}

# Protective settings that must not be lost

guards() {
    local project=$scratch/guarded key
    install -d "$project" "$scratch/outside"
    cp "$repo/Vagrantfile" "$project"
    cp "$repo/.env" "$project"
    echo 'a:b:read' >"$scratch/outside/keys"
    is 'the Vagrantfile has the list of what is optional' "$(printf '%s\n' "${optional_settings[@]}")" from_vagrantfile 'puts OPTIONAL'
    is 'and of what guards' "$(printf '%s\n' "${guarding_settings[@]}")" from_vagrantfile 'puts GUARDING'
    is 'the environment reaches the machines' \
        "{\"API_KEYS_FILE\"=>\"$scratch/outside/keys\", \"RATE_LIMIT_PER_SECOND\"=>\"5\"}" guarded \
        "API_KEYS_FILE=$scratch/outside/keys" RATE_LIMIT_PER_SECOND=5 -- 'p FROM_ENVIRONMENT'
    is 'and the file that it names' "{\"API_KEYS_FILE\"=>\"$scratch/outside/keys\"}" guarded \
        "API_KEYS_FILE=../outside/keys" -- 'p guarding_files'
    is 'a file that is not there is refused' "Vagrantfile: API_KEYS_FILE names /nowhere, and there is no such file" guarded \
        API_KEYS_FILE=/nowhere -- 'p guarding_files'
    is 'with keys the services are not forwarded' '[["API_GATEWAY_PORT"]]' guarded \
        "API_KEYS_FILE=$scratch/outside/keys" -- 'p MACHINES.map { |m| forwarded_ports(m) }.reject(&:empty?)'
    is 'without keys they are' 4 guarded -- 'p MACHINES.sum { |m| forwarded_ports(m).size }'
    is 'the key of operations comes from a file alone' \
        'Vagrantfile: OPERATIONS_KEY is not passed on from the environment: set it only in .env.local' guarded \
        OPERATIONS_KEY=hunter2 -- 'p 1'
    echo 'OPERATIONS_KEY=hunter2' >"$project/.env.local"
    is 'where it is said once more there, it is no other' '{}' guarded OPERATIONS_KEY=hunter2 -- 'p FROM_ENVIRONMENT'
    rm "$project/.env.local"
    for key in "${gateway_guards[@]}"; do
        is "$key that is empty is refused by the Vagrantfile" \
            "Vagrantfile: $key is set and empty: give it a value, or leave it out of .env.local and of the environment" guarded "$key=" -- 'p 1'
        is 'and by the scripts' 1 exit_of refused_by_scripts "$key"
    done
    echo 'OPERATIONS_KEY=' >"$project/.env.local"
    is 'OPERATIONS_KEY that is empty is refused by the Vagrantfile' \
        'Vagrantfile: OPERATIONS_KEY is set and empty: give it a value, or leave it out of .env.local and of the environment' guarded -- 'p 1'
    rm "$project/.env.local"
    is 'and by the scripts' 1 exit_of refused_by_scripts OPERATIONS_KEY
    is 'every program is told the key of operations' 4 programs_with_setting OPERATIONS_KEY
    is 'what guards the gateway is none of the others'"'"' business' 'POSTGRES_READER_PASSWORD RABBITMQ_PASSWORD RABBITMQ_CONSUMER_PASSWORD API_KEYS_FILE RATE_LIMIT_BURST' kept_from_inventory

    ((EUID == 0)) || return 0
    install -d "$scratch/state"
    is 'the file of keys is brought to the gateway' 'a:b:read' brought_keys
    is 'for it alone' '640 root nogroup' stat -c '%a %U %G' "$scratch/state/API_KEYS_FILE"
    is 'and does not stay where it came from' 1 exit_of test -e "$scratch/brought"
}

# guarded [KEY=VALUE…] -- PROGRAM: runs a Ruby program with the Vagrantfile's functions in a project of its own.
guarded() {
    local variables=()
    while [[ $1 != -- ]]; do
        variables+=("$1")
        shift
    done
    sed '/^Vagrant.configure/,$d' "$project/Vagrantfile" >"$project/Vagrantfile.rb"
    # shellcheck disable=SC2016 # Ruby's
    env "${variables[@]}" ruby -e 'load ARGV[0]; eval(ARGV[1])' "$project/Vagrantfile.rb" "$2"
}

refused_by_scripts() (
    set_setting "$1" ''
    require_guards
)

# programs_with_setting KEY: prints how many programs have the setting.
programs_with_setting() (
    read_project_settings "$repo"
    set_setting "$1" x
    for app in "${apps[@]}"; do
        left_out_for "$app" | grep -qx "$1" || echo "$app"
    done | wc -l
)

kept_from_inventory() (
    read_project_settings "$repo"
    set_setting API_KEYS_FILE keys
    set_setting RATE_LIMIT_BURST 1
    left_out_for inventory-api | paste -sd ' '
)

brought_keys() (
    # shellcheck disable=SC2030 # for this shell
    state=$scratch/state GUARDING_FILES=$scratch/brought
    install -d "$GUARDING_FILES"
    cp "$scratch/outside/keys" "$GUARDING_FILES/API_KEYS_FILE"
    set_setting API_KEYS_FILE /on/the/host
    unset "SETTINGS[TLS_CERT_FILE]" "SETTINGS[TLS_KEY_FILE]"
    provide_guarding_files nogroup
    cat "${SETTINGS[API_KEYS_FILE]}"
)

# Policies and arguments that delete orders

lossy_policies() {
    is 'a queue as it is made deletes none' '' warnings '{}' '[]' '[]'
    is 'of an argument that deletes orders there is a warning' \
        'an argument of the queue, message-ttl=1000: orders that wait longer than that are deleted' \
        warnings '{"x-message-ttl":1000,"x-queue-type":"classic"}' '[]' '[]'
    is 'of policies there is one for those in force, and of limits for those that delete' \
        'the policy b, expires=60000: the queue is deleted, with its orders, when no consumer has used it for that time
the policy c, max-length=5: the oldest orders are deleted when the queue is full (no overflow reject-publish)' \
        warnings '{}' "[$(policy a 1 '{"message-ttl":1}'),$(policy b 2 '{"expires":60000}')]" \
        "[$(policy c 0 '{"max-length":5}')]"
    is 'of a queue that is deleted with RabbitMQ, a connection or a consumer there is one' \
        'a property of the queue, durable=false: the queue is deleted, with its orders, when RabbitMQ restarts
a property of the queue, exclusive=true: the queue is deleted, with its orders, when its connection ends
a property of the queue, auto_delete=true: the queue is deleted, with its orders, when its last consumer ends' \
        warnings '{}' '[]' '[]' '"durable":false,"exclusive":true,"auto_delete":true'
    is 'what has the name of a thing of JavaScript hides nothing' \
        'an argument of the queue, max-length=1: the oldest orders are deleted when the queue is full (no overflow reject-publish)' \
        warnings '{"x-constructor":"a","x-__defineGetter__":"a","x-__proto__":{"overflow":"reject-publish"},"x-toString":1,"x-max-length":1}' '[]' '[]'
    is 'and no name speaks to a terminal' \
        'the policy \u{1b}[2J\u{202e}p, message-ttl=1: orders that wait longer than that are deleted' \
        warnings '{}' "[$(policy '\u001b[2J\u202ep' 1 '{"message-ttl":1}')]" '[]'
    is 'and of those that refuse orders there is none' '' \
        warnings '{"x-overflow":"reject-publish"}' "[$(policy a 0 '{"max-length":5}')]" '[]'
}

# fetched_packages: checks that packages are fixed by version and hash, so that each machine has equal ones.
fetched_packages() {
    is 'every package behind PM2 is named with its hash' 'True' python3 -c 'import json, sys
packages = json.load(open(sys.argv[1]))["packages"]
print(all("integrity" in entry for name, entry in packages.items() if name) and len(packages) > 50)' "$repo/setup/lib/common/pm2/package-lock.json"
    is 'Node is named with that of each platform' 2 grep -cE '^ +--hash=sha256:[0-9a-f]{64}' "$repo/setup/lib/common/node/requirements.txt"
    is 'the boxes have versions' 2 grep -cE 'pin\(.*"[0-9.]{8,}"\)' "$repo/Vagrantfile"
}

# policy NAME PRIORITY DEFINITION: prints a policy as JSON.
policy() {
    echo "{\"name\":\"$1\",\"pattern\":\"^bill\",\"apply-to\":\"queues\",\"priority\":$2,\"definition\":$3}"
}

# warnings ARGUMENTS POLICIES OPERATOR_POLICIES [PROPERTIES]: prints the warnings for such a queue.
warnings() {
    printf '%s\n' "{\"name\":\"billing_queue\",\"arguments\":$1${4:+,$4}}" "$2" "$3" |
        node "$repo/setup/lib/common/lossy_policies.js"
}

# check_rules: checks the rules in a network of its own, since nft needs the kernel; the rules are not loaded.
check_rules() {
    local alone=(unshare --net)
    ((EUID == 0)) || alone+=(--map-root-user)
    "${alone[@]}" nft --check --file "$scratch/firewall"
}

main
