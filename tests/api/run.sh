#!/usr/bin/env bash
# Checks the API documents against a running platform: docs/openapi.yaml is well-formed, a platform gives every answer in
# it, schemathesis finds no difference, and the smoke test and the Postman collection pass.
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/common/say.sh"
source "$repo/setup/lib/common/usage.sh"
source "$repo/setup/lib/common/quoting.sh"
source "$repo/setup/lib/common/settings.sh"
source "$repo/setup/lib/common/ports.sh"
source "$repo/setup/lib/common/install.sh"
source "$repo/setup/lib/local/checkers.sh"

usage() {
    cat <<'USAGE'
Checks the API documents against a running platform.

  tests/api/run.sh                all checks, as setup/test.sh runs them
  tests/api/run.sh explore [SEED] only schemathesis, for longer and with random requests
  tests/api/run.sh help | version

LOCAL_DIR (.local) names the folder of the platform, which setup/local.sh has started. The checks
change it: they delete movies, place orders, and stop and start billing-consumer.
USAGE
}

# How many requests schemathesis sends for each operation, in each of its stages.
examples_max=20
examples_max_explore=100

main() {
    answer_help_and_version "$@"
    case $* in
        '') prepare && check_documents ;;
        explore | explore\ [0-9]*) prepare && explore "${@:2}" ;;
        *) wrong_usage "this is no command: $*" ;;
    esac
}

prepare() {
    local folder=${LOCAL_DIR:-$repo/.local}
    settings=$folder/settings.env
    programs=$folder/programs
    [[ -f $settings ]] || die "there is no platform in $folder: start one with setup/local.sh up"
    read_settings "$settings"
    gateway=http://$(host_to_ask "${SETTINGS[LISTEN_ADDRESS]}"):${SETTINGS[API_GATEWAY_PORT]}
    billing=http://$(host_to_ask "${SETTINGS[LISTEN_ADDRESS]}"):${SETTINGS[BILLING_API_PORT]}
    install_api_checkers
    work=$(mktemp -d)
    trap clean_up EXIT
    cd "$repo"
}

clean_up() {
    ((${#gateways[@]} == 0)) || kill "${gateways[@]}" || true
    rm -rf "$work"
}

check_documents() {
    local status=0
    say 'docs/openapi.yaml is well-formed'
    python -m openapi_spec_validator docs/openapi.yaml

    say 'The examples of docs/openapi.yaml'
    python tests/api/examples.py docs/openapi.yaml "$settings" "$programs/api-gateway"

    say 'schemathesis against the gateway'
    schemathesis "$gateway" --exclude-path /api/health --max-examples "$examples_max"
    say 'schemathesis against billing-api'
    schemathesis "$billing" --include-path-regex "$billing_paths" --max-examples "$examples_max"

    say 'schemathesis against a gateway with keys'
    start_guarded_gateway
    # This check has nothing to test where keys are optional, as the document describes them.
    sed '/^security:$/,/^tags:$/ { /^  - {}$/d }' docs/openapi.yaml >"$work/guarded.yaml"
    document=$work/guarded.yaml schemathesis "$guarded" --exclude-path /api/health \
        --header "Authorization: Bearer $key" --phases examples,coverage

    say 'The smoke test'
    smoke_tests

    say 'The Postman collection'
    newman "$gateway"
    newman "$guarded" --folder Movies --env-var "key=$key"
    start_gateway EXPOSE_ORDERS=false
    newman "$started"
    setup/local.sh pm2 stop billing-consumer >/dev/null
    newman "$gateway" --folder 'Orders while nobody records them' --env-var consumer=stopped || status=$?
    setup/local.sh pm2 start billing-consumer >/dev/null
    ((status == 0))
    newman "$gateway" --folder 'Orders when billing is back' --env-var 'consumer=started again'
}

start_guarded_gateway() {
    key=$(random_secret)
    printf 'tests:%s:admin\n' "$(printf '%s' "$key" | sha256sum | cut -d ' ' -f 1)" >"$work/keys"
    start_gateway "API_KEYS_FILE=$work/keys"
    guarded=$started
}

# start_gateway NAME=VALUE…: starts a second gateway with these settings before the platform's servers. Sets `started` to
# its URL.
gateways=()
start_gateway() {
    local deadline=$((SECONDS + 30)) log=$work/gateway-${#gateways[@]}.log
    : >"$log"
    env ENV_FILE="$settings" RUST_LOG=info LOG_FORMAT=logfmt API_GATEWAY_PORT=0 "$@" \
        "$programs/api-gateway" 2>"$log" &
    gateways+=("$!")
    until started=$(grep -m 1 listening "$log" | grep -o 'address=[^ ]*'); do
        ((SECONDS < deadline)) || die "a gateway with $* does not start: $(tail -n 5 "$log")"
        sleep 0.1
    done
    started=http://${started#address=}
    until curl --disable --noproxy '*' --silent --fail --output /dev/null "$started/ready"; do
        ((SECONDS < deadline)) || die "a gateway with $* does not become ready"
        sleep 0.1
    done
}

# smoke_tests: checks that the smoke test passes, with a key if one is needed, that it exits with 1 after a failed step,
# and that it leaves the movies unchanged.
smoke_tests() {
    local before
    before=$(curl --disable --noproxy '*' --silent --fail "$gateway/api/movies")
    setup/smoke.sh "$gateway" --orders "$billing"
    API_KEY=$key setup/smoke.sh "$guarded" --orders "$billing"
    smoke_test_fails "$guarded" 'create a movie: expected 201 .* got 401'
    smoke_test_fails "$billing" 'place an order'
    [[ $(curl --disable --noproxy '*' --silent --fail "$gateway/api/movies") == "$before" ]] ||
        die 'the smoke test has changed the movies'
}

# smoke_test_fails URL STEP: checks that the smoke test exits with 1 and names the step.
smoke_test_fails() {
    local status=0
    setup/smoke.sh "$1" >"$work/smoke.log" 2>&1 || status=$?
    if ((status != 1)) || ! grep -q "FAIL  $2" "$work/smoke.log"; then
        die "the smoke test of $1 has not failed at '$2': $(<"$work/smoke.log")"
    fi
}

# explore [SEED]: sends random requests.
explore() {
    local seed=${1:-$RANDOM}
    sed 's/^deterministic = true/deterministic = false/' tests/api/schemathesis.toml >"$work/explore.toml"
    schemathesis_config=$work/explore.toml
    schemathesis "$gateway" --exclude-path /api/health --max-examples "$examples_max_explore" --seed "$seed"
    schemathesis "$billing" --include-path-regex "$billing_paths" --max-examples "$examples_max_explore" \
        --seed "$seed"
}

# The paths that billing-api has.
billing_paths='^/(api/orders|api/dead-letters|api/health|health|ready|metrics)'

python() {
    PYTHONPATH=$tools/api-python:$repo/tests/api PYTHONDONTWRITEBYTECODE=1 python3 "$@"
}

# schemathesis URL ARGUMENT…: fails also if a stage ended early, since operations without a request are not checked.
schemathesis_config=tests/api/schemathesis.toml
document=docs/openapi.yaml
schemathesis() {
    local url=$1 report=$work/report.json
    rm -f "$report"
    SCHEMATHESIS_HOOKS=hooks python -m schemathesis.cli --config-file "$schemathesis_config" \
        run "$document" --url "$url" --no-color --continue-on-failure \
        --generation-database none --report json --report-json-path "$report" "${@:2}" 2>&1 |
        tee "$work/schemathesis.log"
    python3 - "$report" <<'PYTHON'
import json, sys
report = json.load(open(sys.argv[1]))
operations = report["operations"]
left_out = {name: phase for name, phase in report["phases"].items() if phase["status"] not in ("success", "skip")}
if operations["tested"] != operations["selected"] or left_out or not report["complete"]:
    sys.exit(f"schemathesis has not asked for everything: {operations}, {left_out}")
PYTHON
    ! grep -q 'Exception in thread' "$work/schemathesis.log" || die 'schemathesis itself failed'
}

# newman GATEWAY [ARGUMENT…]: runs the collection with these addresses and no other change, as after an import. A run
# without requests fails.
newman() {
    local collection=$work/collection.json globals=$work/globals.json report=$work/newman.json
    [[ -f $globals ]] || echo '{"values": []}' >"$globals"
    sed "s|http://localhost:5000|$1|; s|http://localhost:8081|$billing|" \
        docs/postman/crud-master.postman_collection.json >"$collection"
    "$tools/api-node/node_modules/.bin/newman" run "$collection" \
        --globals "$globals" --export-globals "$globals" \
        --color off --reporters cli,json --reporter-json-export "$report" \
        --reporter-cli-no-success-assertions --reporter-cli-no-banner \
        --timeout-request 30000 "${@:2}" || return
    python3 -c 'import json, sys; sys.exit(not json.load(open(sys.argv[1]))["run"]["stats"]["requests"]["total"])' "$report" ||
        die "the Postman collection has sent no requests: ${*:2}"
}

main "$@"
