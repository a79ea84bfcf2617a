#!/usr/bin/env bash
# Tests the set-up in unusual environments: with other variables, another path of the checkout, another cargo. It takes
# seconds, needs no servers, and replaces the build by a script.
# shellcheck source-path=SCRIPTDIR/../..
# shellcheck disable=SC2016,SC2317 # texts for another shell, and functions that must not be called
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"
source "$repo/setup/lib/local/checkers.sh"
source "$repo/setup/lib/common/apps.sh"
source "$repo/tests/vms/checks.sh"

usage() {
    cat <<'USAGE'
Tests of the set-up in unusual environments, without servers.

  tests/setup/run.sh
  tests/setup/run.sh help | version
USAGE
}

main() {
    take_no_arguments "$@"
    take_own_mounts
    scratch=$(mktemp -d)
    trap clean_up EXIT
    the_environment
    odd_paths
    the_compiler
    current_programs
    disks
    addresses
    the_keys
    the_vagrantfile
    echo "$passed passed, ${#failures[@]} failed"
    ((${#failures[@]} == 0))
}

# take_own_mounts: takes a mount namespace if that is allowed, so that the tests can mount disks.
take_own_mounts() {
    [[ -z ${own_mounts:-} ]] && unshare --mount true 2>/dev/null || return 0
    own_mounts=true exec unshare --mount -- "$BASH" -p "$0"
}

clean_up() {
    local pidfile
    for pidfile in "$scratch"/platform/pm2/pm2.pid "$scratch"/platform/pm2/pids/*.pid; do
        [[ ! -e $pidfile ]] || kill "$(<"$pidfile")" 2>/dev/null || true
    done
    remove_alias "$scratch/my дом" "$(alias_of "$scratch/my дом")"
    rm -rf "$scratch"
}

# The environment of a script

the_environment() {
    local script
    cd "$repo"
    # Before a script has read surroundings.sh, the environment can change what it does.
    for script in setup/*.sh bench/run.sh tests/e2e/cluster.sh tests/{api,browser,setup,vms}/run.sh; do
        [[ $script == setup/secrets.sh || $script == setup/keys.sh ]] ||
            is "$script makes its environment known first" 3 head_lines "$script"
        is "$script does not mind where it is called from and with what" "${script##*/}" odd_version "$script"
    done
    ln -s "$repo/setup/local.sh" "$scratch/linked.sh"
    is 'a script finds its folder through a link' linked.sh odd_version "$scratch/linked.sh"
    is 'who has no HOME gets the one that the system knows' ~ env -u HOME bash -p -c \
        'repo=$1; source "$1/setup/lib/common/surroundings.sh"; echo "$HOME"' bash "$repo"
    temporary_files
    is 'a folder for temporary files that is gone is not used' "/tmp/crud-master-$EUID" env TMPDIR=/nowhere bash -p -c \
        'repo=$1; source "$1/setup/lib/common/surroundings.sh"; dirname "$(mktemp -u)"' bash "$repo"
    is 'a line break in the path is refused' 1 exit_of bash -p -c \
        'repo=/a$'"'\\n'"'b; source "$1/setup/lib/common/surroundings.sh"' bash "$repo"
}

# temporary_files: programs trust files of fixed names in the folder for temporary files, and run them.
temporary_files() {
    local place=$scratch/places
    install -d -m 1777 "$place"
    is 'temporary files are in a folder of their own' "$place/crud-master-$EUID" places_in "$place"
    is 'where nobody else writes' "711 $EUID" stat -c '%a %u' "$place/crud-master-$EUID"
    is 'which a script that is called uses too' "$place/crud-master-$EUID" places_in "$place/crud-master-$EUID"
    is 'Node runs nothing that it finds compiled' 1 env bash -p -c \
        'repo=$1; source "$1/setup/lib/common/surroundings.sh"; printenv NODE_DISABLE_COMPILE_CACHE' bash "$repo"
    chmod 777 "$place/crud-master-$EUID"
    is 'one where others write is not used' "$place/crud-master-$EUID-" sample_of places_in "$place"
    rm -r "$place/crud-master-$EUID"
    ln -s /tmp "$place/crud-master-$EUID"
    is 'nor a link' "$place/crud-master-$EUID-" sample_of places_in "$place"
    rm "$place/crud-master-$EUID"
    chmod 777 "$place"
    is 'nor a folder from which others can move it' "/tmp/crud-master-$EUID" places_in "$place"
    ((EUID == 0)) || return 0
    chmod 1777 "$place"
    install -d -o nobody "$place/crud-master-0"
    is 'nor one that another has made' "$place/crud-master-0-" sample_of places_in "$place"
    chown nobody "$place"
    is 'nor a folder of another' /tmp/crud-master-0 places_in "$place"
    python_and_tools
}

places_in() {
    TMPDIR=$1 bash -p -c 'repo=$1; source "$1/setup/lib/common/surroundings.sh"; echo "$TMPDIR"' bash "$repo"
}

# sample_of COMMAND…: prints the output without its random end.
sample_of() {
    "$@" | sed 's/[A-Za-z0-9]\{6\}$//'
}

# python_and_tools: runs tools in a folder into which another user has put files.
python_and_tools() {
    install -d "$scratch/called/pip"
    echo "open('$scratch/ran', 'w')" | tee "$scratch/called/pip/__main__.py" >"$scratch/called/pip/__init__.py"
    is 'pip is asked for' 0 exit_of asked_in "$scratch/called" lacking_checkers
    is 'and is not that of the folder' 1 exit_of test -e "$scratch/ran"
    is 'a tool is made though another locks what he can' 0 exit_of locked_by_another tool_in_time
    is 'and a platform is taken' 0 exit_of locked_by_another timeout 20 setup/local.sh down
    is 'a tool is made where nothing of others lies' "$scratch/called/tools/pwd.new" asked_in "$scratch/called" made_tool
}

# locked_by_another COMMAND…: runs the command while another user has locked every file that he can open.
# shellcheck disable=SC2030,SC2031 # for this shell
locked_by_another() (
    place=$scratch/locked
    export LOCAL_DIR=$place/platform
    chmod 755 "$scratch"
    install -d "$place/tools/lock" "$LOCAL_DIR/lock"
    coproc as_nobody bash -c 'for place; do exec {lock}<"$place" && flock "$lock"; done 2>/dev/null; echo locked; read -r' \
        bash "$place" "$place/tools" "$LOCAL_DIR"
    read -r _ <&"${COPROC[0]}"
    tools=$place/tools
    status=0
    "$@" || status=$?
    echo >&"${COPROC[1]}"
    exit "$status"
)

# shellcheck disable=SC2031 # of locked_by_another
tool_in_time() {
    export -f make_tool has_tool require_writable require_executable nearest_folder free_megabytes open_lock
    export tools own_copy megabytes_needed
    timeout 20 bash -c 'make_tool one 1 true'
}

# asked_in FOLDER COMMAND…: runs the command in the folder.
asked_in() (
    cd "$1"
    "${@:2}"
)

made_tool() (
    tools=$PWD/tools
    show() { pwd >"$1/said"; }
    make_tool pwd 1 show
    cat "$tools/pwd/said"
)

head_lines() {
    head -n 16 "$1" | grep -cE '^case \$- in |^repo=\$\(readlink -f "\$0"\) |^source "\$repo/setup/lib/common/surroundings.sh"$'
}

# odd_version SCRIPT: prints the name that the script shows with its version in an unusual environment.
odd_version() (
    cd() { echo mine; }
    sed() { echo mine; }
    export -f cd sed
    echo 'IFS=x; echo from BASH_ENV >&2' >"$scratch/bash_env"
    env -u HOME CDPATH=.:/ POSIXLY_CORRECT=1 BASH_ENV="$scratch/bash_env" LC_ALL=C TMPDIR=/nowhere \
        PATH=/usr/bin:/bin "$1" version 2>/dev/null | cut -d ' ' -f 1
)

# The path of the checkout

odd_paths() {
    local path
    is 'a plain path is used as it is' /srv/crud-master/.local alias_of /srv/crud-master/.local
    for path in '/a b' "/Bob's" '/a"b' '/$HOME' '/a&b' '/a\b' '/jürgen' '/проект' '/漢字' '/🎬' "/$(printf 'x%.0s' {1..120})"; do
        is "$path is reached by a plain path" 0 exit_of plain "$(alias_of "$path")"
    done
    install -d "$scratch/my дом"
    make_alias "$scratch/my дом" "$(alias_of "$scratch/my дом")"
    is 'which leads there' 0 exit_of test "$scratch/my дом" -ef "$(alias_of "$scratch/my дом")"
}

plain() {
    [[ $1 =~ ^[A-Za-z0-9/._-]+$ && ${#1} -le 80 ]]
}

# The choice of cargo, and its output folder

the_compiler() {
    local cargo=$scratch/cargo/cargo
    install -d "$scratch/cargo" "$scratch/my \"target"
    stand_in "$cargo" 'echo "cargo 1.63.0"'
    stand_in "$scratch/cargo/rustc" 'echo "rustc 1.99.0 (x)"'
    is 'a cargo that is too old does not do' 1 exit_of fitting_cargo "$cargo"
    stand_in "$cargo" 'echo "cargo 1.99.0 (x)"'
    is 'a new one does' 0 exit_of fitting_cargo "$cargo"
    stand_in "$scratch/cargo/rustc" 'echo "rustc 1.63.0"'
    is 'unless its compiler is too old' 1 exit_of fitting_cargo "$cargo"
    ln "$cargo" "$scratch/cargo/rustup"
    is 'that of rustup brings its own' 0 exit_of fitting_cargo "$cargo"
    is 'where cargo put the programs, cargo says' "$scratch/my \"target" where_cargo_put_them
}

where_cargo_put_them() (
    stand_in "$scratch/cargo/cargo" "case \$1 in metadata) echo '{\"target_directory\":\"$scratch\"}' ;; *) cat '$scratch/messages' ;; esac"
    printf '%s\n' '{"reason":"compiler-artifact","filenames":["/x/lib.rlib"],"executable":null,"fresh":true}' \
        "{\"reason\":\"compiler-artifact\",\"executable\":$(json_text "$scratch/my \"target/api-gateway"),\"fresh\":true}" >"$scratch/messages"
    PATH=$scratch/cargo:$PATH
    cargo_build "$scratch" --release
    readlink "$scratch/programs"
)

# stand_in FILE COMMAND: writes a script in place of the file, to which links lead.
stand_in() {
    printf '#!/bin/sh\n%s\n' "$2" >"$1"
    chmod +x "$1"
}

# Whether a running program has the present settings

current_programs() {
    local platform=$scratch/platform
    apps=(api-gateway)
    install -d "$platform/programs" "$platform/pm2/pids"
    cp /bin/sleep "$platform/programs/api-gateway"
    printf '%s\n' 'POSTGRES_PASSWORD=old' "API_KEYS_FILE=$platform/keys" >"$platform/settings.env"
    echo 'a:0:read' >"$platform/keys"
    apps_write_list "$platform"
    start_daemon "$platform/pm2/pm2.pid" /dev/null "PM2_HOME=$platform/pm2" sleep 600
    start_daemon "$platform/pm2/pids/api-gateway-0.pid" /dev/null "ENV_FILE=$platform/settings.env" \
        "SETTINGS_DIGEST=$(app_digest "$platform" api-gateway)" "$platform/programs/api-gateway" 600
    is 'a program that was started with these settings stays' 0 exit_of app_is_current "$platform" api-gateway
    touch -d '2001-01-01' "$platform/pm2/pids/api-gateway-0.pid"
    is 'whatever the clock was' 0 exit_of app_is_current "$platform" api-gateway
    ln -s "$platform" "$scratch/other-way"
    is 'and by whichever path it is asked for' 0 exit_of app_pid "$scratch/other-way" api-gateway
    echo 'a:1:read' >"$platform/keys"
    is 'one whose file of keys has changed does not' 1 exit_of app_is_current "$platform" api-gateway
    echo 'a:0:read' >"$platform/keys"
    is 'unless that was taken back' 0 exit_of app_is_current "$platform" api-gateway
    echo 'POSTGRES_PASSWORD=new' >"$platform/settings.env"
    touch -d '2099-01-01' "$platform/pm2/pids/api-gateway-0.pid"
    is 'one with another password does not, though the clock was ahead' 1 exit_of app_is_current "$platform" api-gateway
    is 'the digest in the list is no help to try passwords' 600 stat -c %a "$platform/salt"
    is 'it is stopped without PM2 and without Node' 0 exit_of apps_stop "$platform"
    is 'and runs no more' 1 exit_of app_pid "$platform" api-gateway
}

# Disks that are full, forbid programs, or belong to other users

disks() {
    local disk=$scratch/disk said
    if [[ -z ${own_mounts:-} ]]; then
        note 'NOTE: nothing can be mounted here: disks that are full or forbid programs are not checked'
        return
    fi
    install -d "$disk"
    mount -t tmpfs -o size=110m,noexec none "$disk"
    is 'a disk with room will do' 0 exit_of lasts require_writable "$disk/a/b"
    is 'no program is built where none can be started' \
        "run.sh: no program can be started from $disk/target, whose disk is mounted with noexec: set CARGO_TARGET_DIR to another folder" \
        lasts built_in "$disk/target"
    head -c 109M /dev/zero >"$disk/filler"
    is 'a disk without is told before anything is done' \
        "local.sh: the disk of $disk/platform is full: 1 MB are free, and 100 are needed: make room, or name another LOCAL_DIR" \
        last_line env LOCAL_DIR="$disk/platform" setup/local.sh up
    is 'and nothing is left there' filler ls "$disk"

    install -d "$disk/setup/lib/common"
    cp setup/secrets.sh "$disk/setup"
    cp setup/lib/common/posix.sh "$disk/setup/lib/common"
    echo RUST_LOG=debug >"$disk/.env.local"
    cat /dev/zero >"$disk/filler" 2>/dev/null || true
    is 'secrets that do not fit leave the former file' 'secrets.sh: .env.local is unchanged' last_line sh "$disk/setup/secrets.sh"
    is 'whole' RUST_LOG=debug cat "$disk/.env.local"
    is 'a full disk for temporary files is not used' "/tmp/crud-master-$EUID" env TMPDIR="$disk" bash -p -c \
        'repo=$1; source "$1/setup/lib/common/surroundings.sh"; dirname "$(mktemp -u)"' bash "$repo"
    is 'a pid that cannot be written down starts nothing' 1 exit_of start_daemon "$disk/no/pid" /dev/null A=b sleep 600

    said=$(cd "$disk" && folder=$disk && (step 'Write something' cp /bin/bash "$disk/file") 2>&1) || true
    is 'a step that fails on a full disk names the disk' 1 grep -c "The disk of $disk is full" <(echo "$said")
    said=$( (step 'Read something' die 'it is not there') 2>&1) || true
    is 'a step whose reason is known says it once' $'  Read something\nrun.sh: it is not there' echo "$said"

    mount -o remount,ro "$disk"
    is 'a disk that is read-only is told' "local.sh: $disk is read-only: name another LOCAL_DIR" \
        last_line env LOCAL_DIR="$disk/platform" setup/local.sh up
    umount "$disk"
    install -d "$scratch/checkout"
    cp -r setup .env Cargo.toml "$scratch/checkout"
    chmod 755 "$scratch"
    is 'and so is a checkout of another user' \
        "local.sh: $scratch/checkout belongs to root, and this is nobody: run this as that user, or have the project in a folder of your own" \
        last_line as_nobody "$scratch/checkout/setup/local.sh" up
    install -d "$scratch/checkout/.local"
    is 'whichever command it is' "local.sh: $scratch/checkout/.local belongs to root: run this as that user, or name another LOCAL_DIR" \
        last_line as_nobody "$scratch/checkout/setup/local.sh" status
    is 'a HOME of another user is not used' ~nobody as_nobody env HOME=/root bash -p -c \
        'repo=$1; source "$1/setup/lib/common/surroundings.sh"; echo "$HOME"' bash "$scratch/checkout"
}

as_nobody() {
    setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"
}

# lasts COMMAND…: runs the command in a shell of its own, which die ends.
lasts() (
    "$@"
)

last_line() {
    "$@" 2>&1 | tail -n 1
}

# built_in FOLDER: prints the output of cargo_build with that folder as cargo's output folder.
built_in() {
    local folder=$1
    cargo() { echo "{\"target_directory\":\"$folder\"}"; }
    cargo_build "$scratch"
}

# The address for requests to a program

addresses() {
    is 'all of IPv4 is asked on loopback' 127.0.0.1 host_to_ask 0.0.0.0
    is 'all of IPv6 too' '[::1]' host_to_ask ::
    is 'however it is written' '[::1]' host_to_ask 0:0:0:0:0:0:0:0
    is 'another address is itself' '[2001:db8::1]' host_to_ask 2001:db8::1
    is 'of either kind' 192.0.2.1 host_to_ask 192.0.2.1
}

# Keys of callers

the_keys() {
    local file=$scratch/keys key
    key=$(keys_script add ann read 2>/dev/null)
    is 'the hash of a new key is in the file' "ann:$(printf %s "$key" | sha256sum | cut -c1-64):read" cat "$file"
    is 'which is for its owner alone' 600 stat -c %a "$file"
    printf '# of last year\nbob:%s:admin' "$(printf %s bobs | sha256sum | cut -c1-64)" >>"$file"
    chmod 640 "$file"
    keys_script add eve write >/dev/null 2>&1
    is 'a last line without an end stays one' $'ann                  read\nbob                  admin\neve                  write' keys_script list
    is 'a name is one caller' 'keys.sh: there is a key of eve already: remove it first' last_line keys_script add eve read
    is 'a name that is part of another is not its' 'keys.sh: there is no key of an' last_line keys_script remove an
    keys_script remove ann
    keys_script remove eve
    is 'the others stay, and what is said of them' '# of last year' head -n 1 "$file"
    is 'with the rights that the file had' 640 stat -c %a "$file"
    keys_script remove bob 2>/dev/null || true
    is 'the last key stays' 1 grep -c : "$file"
    is 'a role is one of three' 'keys.sh: a role is read, write or admin' last_line keys_script add dan root
    is 'what is not set is said' 'keys.sh: API_KEYS_FILE is not set: put API_KEYS_FILE=/PATH/OF/A/FILE into .env.local, and run this again' \
        last_line env -u API_KEYS_FILE sh "$repo/setup/keys.sh" list
}

keys_script() {
    API_KEYS_FILE=$scratch/keys sh "$repo/setup/keys.sh" "$@"
}

# Numbers in the Vagrantfile

the_vagrantfile() {
    if ! command -v ruby >/dev/null; then
        note 'NOTE: there is no Ruby here: the numbers in the Vagrantfile are not checked'
        return
    fi
    is 'a number is one' 512 number 512
    is 'and what is none is named' 'Vagrantfile: GATEWAY_VM_MEMORY must be a whole number from 256 to 1048576' number 1GB
}

number() {
    ruby -e 'eval(File.read(ARGV[0])[/^def refuse.*?(?=^# settings_in)/m] + File.read(ARGV[0])[/^def number.*?^end/m])
        print number("GATEWAY_VM_MEMORY", ARGV[1], 256..1_048_576)' "$repo/Vagrantfile" "$1"
}

main "$@"
