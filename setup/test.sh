#!/usr/bin/env bash
# All checks, as CI runs them, with a PostgreSQL and a RabbitMQ of their own, which are removed afterwards. The checks
# touch nothing else that runs on this machine.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"
source "$repo/setup/lib/local/checkers.sh"
source "$repo/setup/lib/local/browser.sh"
source "$repo/setup/lib/local/test_servers.sh"
source "$repo/setup/lib/local/readme.sh"
source "$repo/setup/lib/local/monitoring.sh"

usage() {
    cat <<'USAGE'
All checks, as CI runs them.

  setup/test.sh                   checks the format, clippy, each service alone, tests,
                                  dependencies, shell scripts, and provisioning; then starts a
                                  platform and checks the examples in README.md, the alerts and
                                  the dashboard, the API documents, and the console in a browser
  setup/test.sh run COMMAND…      runs a command with the servers that the tests need, for
                                  instance: setup/test.sh run cargo test -p billing
  setup/test.sh help | version
USAGE
}

main() {
    answer_help_and_version "$@"
    case ${1:-} in
        '') all_checks ;;
        run)
            (($# > 1)) || wrong_usage 'run takes the command to run'
            with_servers "${@:2}"
            ;;
        *) wrong_usage "there is no command $1" ;;
    esac
}

all_checks() {
    cd "$repo"
    heading 'Preparation'
    install_what_is_missing
    start_servers

    check 'Format' cargo fmt --all --check
    check 'Clippy' cargo clippy --workspace --all-targets --locked -- -D warnings
    check 'Each service alone' each_alone
    check 'Tests' run_tests
    check 'The schedules of the server' schedules
    check 'The API on tiny_http' on_tiny_http
    check 'Dependencies' dependencies
    check 'The figures of docs/AUDIT.md' setup/audit.sh check
    check 'Shell scripts' shell_scripts
    check 'The command lines of the scripts' command_lines
    check 'The set-up in unusual environments' tests/setup/run.sh
    check 'The deployment, without machines' tests/vms/offline.sh
    check 'Backups' tests/vms/backups.sh "$folder/postgres" "$first_port"
    check 'Roles and users, and attacks by a service on the superuser' tests/vms/roles.sh "$folder" "$first_port"

    choose_platform
    check 'A platform on a full disk' tests/setup/platform.sh
    check 'A platform for the next checks' setup/local.sh up
    check 'The examples in README.md' readme_examples
    check 'Monitoring' check_monitoring "$LOCAL_DIR/settings.env"
    if may_trace; then
        check 'The table of running programs in docs/AUDIT.md' setup/audit.sh check running
    else
        not_run+=('The table of running programs in docs/AUDIT.md: strace may not attach to a process')
    fi
    check 'The API documents' tests/api/run.sh
    if find_chromium >/dev/null; then
        check 'The console in a browser' tests/browser/run.sh
    else
        not_run+=('The console in a browser: there is no Chromium on this machine, and no package of it')
    fi
    sum_up
}

# with_servers COMMAND…
with_servers() {
    local status=0
    install_what_is_missing >&2
    start_servers >&2
    "$@" || status=$?
    exit "$status"
}

# Preparation

install_what_is_missing() {
    local missing
    require_debian
    refresh_package_lists
    mapfile -t missing < <(lacking_basics && lacking_servers && lacking_node && lacking_checkers && lacking_chromium)
    install_packages "${missing[@]}"
    install_rust
    install_cargo_deny
    install_promtool
}

# refresh_package_lists: apt may have no lists yet, and could not say whether it has vagrant.
refresh_package_lists() {
    if ! command -v vagrant >/dev/null && { ((EUID == 0)) || sudo --non-interactive true 2>/dev/null; }; then
        step 'Refresh the lists of packages' wait_for_package_lists apt-get --quiet
    fi
}

# start_servers: starts the servers of the tests, which do not wait for the disk, since their data may be lost. They
# have the first ports; the other ports are for the platform of the later checks.
start_servers() {
    folder=$(mktemp -d "${TMPDIR:-/tmp}/crud-master-test-XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    first_port=''
    claim_ports first_port 15
    TEST_TLS_PORT=$((first_port + 14))
    test_servers_start "$folder" "$first_port" \
        'fsync = off' 'synchronous_commit = off' 'full_page_writes = off'
    export TEST_ENV_FILE=$folder/test.env
}

clean_up() {
    trap '' INT TERM HUP
    [[ ! -d $folder/local ]] || LOCAL_DIR=$folder/local "$repo/setup/local.sh" reset --yes >/dev/null || true
    test_servers_remove "$folder"
    give_ports_back
}

# The checks

failed=()
not_run=()

# check TITLE COMMAND…: runs a check and notes a failure; the next check runs in any case.
check() {
    local title=$1 started=$SECONDS status
    shift
    heading "$title"
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    if ((status == 0)); then
        note "passed after $(time_text $((SECONDS - started)))"
    else
        note "FAILED after $(time_text $((SECONDS - started)))"
        failed+=("$title")
    fi
}

# each_alone: checks each service alone, since a build of the workspace gives every crate the features that any crate
# names, and so hides a feature that is missing.
each_alone() {
    cargo check --locked -p common
    cargo check --locked -p common --features db
    cargo check --locked -p common --features queue
    cargo check --locked -p gateway
    cargo check --locked -p inventory
    cargo check --locked -p billing
}

# run_tests: runs twice as many tests at a time as there are cores, since most of them wait for servers and deadlines.
run_tests() {
    RUST_TEST_THREADS=$(($(nproc) * 2)) cargo test --workspace --locked --no-fail-fast 2>&1 | tee "$folder/tests.log"
}

# schedules: runs the server's threads on a kernel in memory in 100,000 random and 100,000 PCT schedules, a fifth of
# them for each scenario.
schedules() {
    SCHEDULES=20000 cargo test --locked --package common --lib --features shuttle \
        --config profile.dev.package.common.opt-level=2 -- http::server::schedules
}

# on_tiny_http: shows that the handlers do not depend on our server, and by an attack why tiny_http is not the default.
on_tiny_http() {
    cargo test --locked --package inventory --features tiny_http --test api --test attack
    cargo test --locked --package billing --features tiny_http --test api
    cargo test --locked --package gateway --features tiny_http --test orders
}

# dependencies: checks the crates, with a new list of known vulnerabilities. If the list cannot be fetched, the check
# does not fail.
dependencies() {
    cargo deny check bans licenses sources
    if timeout 120 cargo deny fetch db; then
        cargo deny check advisories
    else
        note 'NOTE: the list of known vulnerabilities cannot be fetched, so it was not checked'
    fi
}

shell_scripts() {
    { find setup tests bench -name '*.sh' -print0 && printf '%s\0' .ci/run tests/vms/vagrant; } |
        xargs --null --max-procs="$(nproc)" --max-args=4 shellcheck --external-sources
}

# command_lines: checks how every script that users call answers help, version and wrong arguments.
command_lines() {
    local script status said=$folder/said
    for script in setup/*.sh bench/run.sh tests/e2e/cluster.sh tests/{api,browser,setup,vms}/run.sh; do
        [[ $("$script" --help) == *"$script"* ]] || die "$script --help does not show its usage"
        [[ $("$script" --version) == "${script##*/} "[0-9]* ]] || die "$script --version does not show the version"
        status=0
        "$script" --nonsense >"$said" 2>"$said.error" || status=$?
        [[ $status == 2 && ! -s $said && $(<"$said.error") == *"$script"* ]] ||
            die "$script --nonsense does not exit with 2 and show the usage"
    done
}

# choose_platform: sets the folder and the ports of setup/local.sh for the next checks. The README's tour is the first
# to use the platform, since it expects a new one.
choose_platform() {
    local next=$((first_port + 5)) name
    for name in API_GATEWAY_PORT INVENTORY_API_PORT BILLING_API_PORT BILLING_CONSUMER_PORT \
        POSTGRES_PORT RABBITMQ_PORT RABBITMQ_MANAGEMENT_PORT RABBITMQ_DIST_PORT ERL_EPMD_PORT; do
        export "$name=$((next++))"
    done
    export LOCAL_DIR=$folder/local
}

# may_trace: whether strace may attach to a process; containers and kernels may forbid it.
may_trace() {
    local traced status=0
    sleep 60 &
    traced=$!
    timeout 1 strace --quiet=all --output /dev/null --attach "$traced" || status=$?
    kill "$traced"
    wait "$traced" || true
    ((status == 124))
}

readme_examples() {
    run_tour README.md tour ":5000=:$API_GATEWAY_PORT" ":8080=:$INVENTORY_API_PORT" \
        ":8081=:$BILLING_API_PORT" ":8082=:$BILLING_CONSUMER_PORT" \
        ":15673=:$RABBITMQ_MANAGEMENT_PORT"
}

# sum_up: prints the results, with cargo's totals as the last line.
sum_up() {
    local line tests_passed=0 tests_failed=0
    while read -r line; do
        [[ $line =~ ^test\ result:.*\ ([0-9]+)\ passed\;\ ([0-9]+)\ failed ]] || continue
        ((tests_passed += BASH_REMATCH[1], tests_failed += BASH_REMATCH[2])) || true
    done <"$folder/tests.log"

    if ((${#failed[@]} == 0 && ${#not_run[@]} == 0)); then
        heading "All checks passed, after $(time_text $SECONDS)"
    elif ((${#failed[@]} == 0)); then
        heading "All checks that could be run passed, after $(time_text $SECONDS)"
    else
        heading "Failed, after $(time_text $SECONDS)"
        printf '    %s\n' "${failed[@]}"
    fi
    if ((${#not_run[@]} > 0)); then
        heading 'Not run'
        printf '    %s\n' "${not_run[@]}"
    fi
    echo "$tests_passed passed, $tests_failed failed"
    ((${#failed[@]} == 0))
}

main "$@"
