# shellcheck shell=bash
# The packages and tools that the checks need besides those of the platform.

cargo_deny_version=0.20.2

lacking_checkers() {
    command -v shellcheck >/dev/null || echo shellcheck
    command -v git >/dev/null || echo git
    command -v openssl >/dev/null || echo openssl
    [[ -x /usr/sbin/pgbouncer ]] || echo pgbouncer
    command -v strace >/dev/null || echo strace
    command -v python3 >/dev/null || echo python3
    python3 -I -m pip --version >/dev/null 2>&1 || echo python3-pip
    [[ -x /usr/sbin/nft ]] || echo nftables
    lacking_vagrant
}

# lacking_vagrant: prints the packages of Vagrant, if the system has them; not every release of Debian and Ubuntu does.
lacking_vagrant() {
    local package
    for package in vagrant vagrant-libvirt; do
        if ! dpkg --status "$package" >/dev/null 2>&1 && is_offered "$package"; then
            echo "$package"
        fi
    done
}

# is_offered PACKAGE: whether the package is in apt's present lists.
is_offered() {
    [[ $(LC_ALL=C apt-cache policy "$1") == *'Candidate: '[0-9]* ]]
}

# install_api_checkers: installs the tools of tests/api. The lists in tests/api name every package with its hash, so that
# each machine has equal ones.
install_api_checkers() {
    local lists=${repo:?}/tests/api
    install_tool api-python "$(fingerprint "$lists/requirements.txt") $(python3 --version)" \
        'Install schemathesis and openapi-spec-validator' fetch_python_packages "$lists/requirements.txt"
    install_node_packages api-node 'Install newman' "$lists"
}

# install_cargo_deny: builds cargo-deny from source, which works on every machine with cargo. The build is not
# optimized, since a check takes only three seconds.
install_cargo_deny() {
    [[ $(cargo deny --version 2>/dev/null) != "cargo-deny $cargo_deny_version" ]] || return 0
    install_tool cargo-deny "$cargo_deny_version" \
        "Build cargo-deny $cargo_deny_version (once; it takes some minutes)" fetch_cargo_deny
    PATH=${tools:?}/cargo-deny/bin:$PATH
}

fetch_cargo_deny() {
    require_executable "$TMPDIR" 'set TMPDIR to another folder'
    CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug cargo-deny --version "$cargo_deny_version" --root "$1"
}

# install_promtool: extracts one program from Debian's package. An installed package would start a server with the
# machine.
install_promtool() {
    command -v promtool >/dev/null ||
        install_tool promtool "of $(dpkg --print-architecture)" 'Fetch promtool' fetch_promtool
    PATH=$PATH:$tools/promtool/usr/bin
}

fetch_promtool() {
    cd "$1" || return
    apt-get download prometheus || {
        wait_for_package_lists apt-get --quiet
        apt-get download prometheus
    }
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xf - ./usr/bin/promtool
    rm -f prometheus_*.deb
}
