#!/usr/bin/env bash
# Measures our programs and comparable ones on this machine, with servers of their own.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/local/servers.sh"
source "$repo/setup/lib/local/test_servers.sh"

parts=(http movies gateway orders consume footprint scale)

usage() {
    cat <<'USAGE'
Measures our programs and comparable ones.

  bench/run.sh [PART…]    http, movies, gateway, orders, consume, footprint, scale; all of them
  bench/run.sh help | version

The script installs the other programs, builds, measures, and writes RESULTS.md, results.json and
ratios.svg. Variables of the environment:

  BENCH_ROUNDS=5            how often each candidate is measured
  BENCH_SECONDS=1           how long each measurement takes
  BENCH_QUEUE_TYPE=classic  the type of the queue, or quorum
  BENCH_RESULTS=bench       the folder for the results
  BENCH_BEFORE=COMMIT       measures the programs of that commit too, as rows "before"
USAGE
}

main() {
    local part
    answer_help_and_version "$@"
    for part in "$@"; do
        [[ " ${parts[*]} " == *" $part "* ]] || wrong_usage "there is no part $part"
    done
    heading 'Preparation'
    require_debian
    install_what_is_missing
    build
    start_servers
    heading 'Measure'
    measure "$@"
}

# Preparation

install_what_is_missing() {
    local missing
    mapfile -t missing < <(lacking_basics && lacking_servers && lacking_node && lacking_peers)
    install_packages "${missing[@]}"
    install_rust
    install_node_packages bench-express 'Install Express and pg' "$peers/express"
    install_tool bench-python "$(fingerprint "$peers/python/requirements.txt") $(python3 --version)" \
        'Install Flask, SQLAlchemy, pika and requests' fetch_python
}

peers=$repo/bench/peers

lacking_peers() {
    local program
    for program in nginx haproxy wrk; do
        command -v "$program" >/dev/null || [[ -x /usr/sbin/$program ]] || echo "$program"
    done
    python3 -I -m pip --version >/dev/null 2>&1 || echo python3-pip
}

fetch_python() {
    python3 -I -m pip install --disable-pip-version-check --no-deps --only-binary :all: \
        --target "$1" --requirement "$peers/python/requirements.txt"
}

build() {
    cd "$repo"
    folder=$(mktemp -d "${TMPDIR:-/tmp}/crud-master-bench-XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    our_programs=$folder/programs
    peer_programs=$folder/peers/programs
    install -d "$folder/peers"
    step 'Build our programs' cargo_build "$folder" --release
    install -d "$folder/tiny_http"
    step 'Build them on tiny_http' cargo_build "$folder/tiny_http" --release --package gateway --package inventory \
        --features tiny_http --target-dir "${CARGO_TARGET_DIR:-target}/tiny_http"
    [[ -z ${BENCH_BEFORE:-} ]] || step "Build those of $BENCH_BEFORE" build_before
    # The folder is not that of our programs, which has other versions of these crates.
    step 'Build the peers in Rust' cargo_build "$folder/peers" --release \
        --target-dir "${CARGO_TARGET_DIR:-target}/peers" --manifest-path "$peers/rust/Cargo.toml"
}

# build_before: builds the sources of that commit, without later changes.
build_before() {
    install -d "$folder/before/sources"
    git archive "$BENCH_BEFORE" | tar -x -C "$folder/before/sources"
    cargo_build "$folder/before" --release --manifest-path "$folder/before/sources/Cargo.toml" \
        --target-dir "${CARGO_TARGET_DIR:-target}/before"
}

# start_servers: starts the servers with their default settings, so that every write is on disk before its answer. They
# have the first five ports; the candidates have the others.
ports=24
start_servers() {
    first_port=''
    claim_ports first_port "$ports"
    test_servers_start "$folder" "$first_port"
}

clean_up() {
    trap '' INT TERM HUP
    if [[ -n ${harness:-} ]]; then
        kill "$harness" 2>/dev/null || true
        wait "$harness" || true
    fi
    test_servers_remove "$folder"
    give_ports_back
}

# The measurement. The harness runs in the background, so that this shell handles a signal at once.
measure() {
    local programs status=0
    programs=$(postgres_programs "$folder/postgres")
    mkdir -p "$folder/work" "${BENCH_RESULTS:=$repo/bench}"
    BENCH_RESULTS=$(realpath "$BENCH_RESULTS")
    (
        cd "$folder/work"
        set -a
        # shellcheck source=/dev/null
        source "$folder/test.env"
        export PATH=$PATH:/usr/sbin PYTHONDONTWRITEBYTECODE=1
        export POSTGRES_PROGRAMS=$programs RABBITMQ_QUEUE=bench_orders
        export OUR_PROGRAMS=$our_programs PEER_PROGRAMS=$peer_programs
        export TINY_HTTP_PROGRAMS=$folder/tiny_http/programs
        [[ -z ${BENCH_BEFORE:-} ]] || export BEFORE_PROGRAMS=$folder/before/programs
        export NODE_MODULES=$tools/bench-express/node_modules PYTHON_PACKAGES=$tools/bench-python
        export BENCH_ROUNDS=${BENCH_ROUNDS:-5} BENCH_SECONDS=${BENCH_SECONDS:-1}
        export BENCH_QUEUE_TYPE=${BENCH_QUEUE_TYPE:-classic} BENCH_RESULTS
        export BENCH_FIRST_PORT=$((first_port + 5)) BENCH_PORTS=$((ports - 5))
        exec python3 "$repo/bench/harness/main.py" "$@"
    ) &
    harness=$!
    wait "$harness" || status=$?
    harness=''
    if ((status != 0)); then
        tail -n 5 "$folder"/work/*.log >&2 || true
        die 'the comparison did not come to its end; above is why, or its logs say it'
    fi
    say "Written: ${BENCH_RESULTS#"$repo/"}/RESULTS.md, results.json and ratios.svg"
}

main "$@"
