#!/usr/bin/env bash
# The API documents beside a platform that runs: is docs/openapi.yaml well-formed, is every example
# in it really answered, does schemathesis find anything, and does the Postman collection pass?
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/surroundings.sh"
source "$repo/setup/lib/say.sh"
source "$repo/setup/lib/usage.sh"
source "$repo/setup/lib/quoting.sh"
source "$repo/setup/lib/settings.sh"
source "$repo/setup/lib/ports.sh"
source "$repo/setup/lib/install.sh"

usage() {
    cat <<'USAGE'
The API documents beside a platform that runs.

  tests/api/run.sh                all of it, as setup/test.sh does
  tests/api/run.sh explore [SEED] schemathesis alone, longer and with requests of its own choice
  tests/api/run.sh help | version

The platform is the one in LOCAL_DIR (.local), started by setup/local.sh. It is not left as it was:
movies are deleted, orders are placed, and billing-consumer is stopped and started.
USAGE
}

# How many requests schemathesis makes of each operation, at each of its stages.
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
    [[ -z ${guarded_pid:-} ]] || kill "$guarded_pid" || true
    rm -rf "$work"
}

check_documents() {
    local status=0
    say 'The form of docs/openapi.yaml'
    python -m openapi_spec_validator docs/openapi.yaml

    say 'Its examples'
    python tests/api/examples.py docs/openapi.yaml "$settings" "$programs/api-gateway"

    say 'schemathesis, at the gateway'
    schemathesis "$gateway" --exclude-path /api/health --max-examples "$examples_max"
    say 'schemathesis, at billing-api'
    schemathesis "$billing" --include-path-regex "$billing_paths" --max-examples "$examples_max"

    say 'schemathesis, at a gateway with keys'
    start_guarded_gateway
    # The one check that finds nothing to do where keys are optional, as the document says they are.
    sed '/^security:$/,/^tags:$/ { /^  - {}$/d }' docs/openapi.yaml >"$work/guarded.yaml"
    document=$work/guarded.yaml schemathesis "$guarded" --exclude-path /api/health \
        --header "Authorization: Bearer $key" --phases examples,coverage

    say 'The Postman collection'
    newman Movies Orders 'Dead letters' Errors Operations
    newman Movies --env-var "gateway=$guarded" --env-var "key=$key"
    setup/local.sh pm2 stop billing-consumer >/dev/null
    newman 'Orders while nobody records them' || status=$?
    setup/local.sh pm2 start billing-consumer >/dev/null
    ((status == 0))
    newman 'Orders when billing is back'
}

# start_guarded_gateway: beside the platform's own, before the same servers, with one key.
start_guarded_gateway() {
    local deadline=$((SECONDS + 30))
    key=$(random_secret)
    printf 'tests:%s:admin\n' "$(printf '%s' "$key" | sha256sum | cut -d ' ' -f 1)" >"$work/keys"
    : >"$work/guarded.log"
    ENV_FILE=$settings RUST_LOG=info LOG_FORMAT=logfmt API_GATEWAY_PORT=0 API_KEYS_FILE=$work/keys \
        "$programs/api-gateway" 2>"$work/guarded.log" &
    guarded_pid=$!
    until guarded=$(grep -m 1 listening "$work/guarded.log" | grep -o 'address=[^ ]*'); do
        ((SECONDS < deadline)) || die "a gateway with keys does not start: $(tail -n 5 "$work/guarded.log")"
        sleep 0.1
    done
    guarded=http://${guarded#address=}
    until curl --disable --noproxy '*' --silent --fail --output /dev/null "$guarded/ready"; do
        ((SECONDS < deadline)) || die 'a gateway with keys does not become ready'
        sleep 0.1
    done
}

# explore [SEED]: what a fixed choice of requests cannot find.
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

# schemathesis URL ARGUMENT…: a stage that broke off leaves operations unasked, and is no success
# even where nothing was found until then.
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
    ! grep -q 'Exception in thread' "$work/schemathesis.log" || die 'schemathesis itself broke off'
}

# newman FOLDER… [ARGUMENT…]: of the collection; what one run has learnt, the next one knows.
newman() {
    local folders=() environment=$work/environment.json
    [[ -f $environment ]] || cp docs/postman/local.postman_environment.json "$environment"
    while (($# > 0)) && [[ $1 != --* ]]; do
        folders+=(--folder "$1")
        shift
    done
    "$tools/api-node/node_modules/.bin/newman" run docs/postman/crud-master.postman_collection.json \
        --environment "$environment" --export-environment "$environment" \
        --env-var "gateway=$gateway" --env-var "billing=$billing" \
        --color off --reporters cli --reporter-cli-no-success-assertions --reporter-cli-no-banner \
        --timeout-request 30000 "${folders[@]}" "$@"
}

main "$@"
