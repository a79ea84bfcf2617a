#!/usr/bin/env bash
# Tests the console in a real browser on a platform that setup/local.sh has started.
# shellcheck source-path=SCRIPTDIR/../..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/common/say.sh"
source "$repo/setup/lib/common/usage.sh"
source "$repo/setup/lib/common/settings.sh"
source "$repo/setup/lib/common/install.sh"
source "$repo/setup/lib/local/browser.sh"

usage() {
    cat <<'USAGE'
Tests the console in Chromium.

  LOCAL_DIR=FOLDER tests/browser/run.sh             runs all tests
  LOCAL_DIR=FOLDER tests/browser/run.sh pictures    makes the pictures in docs/pictures anew
  tests/browser/run.sh help | version

FOLDER is the folder of a running platform (setup/local.sh up). THE TESTS DELETE ALL MOVIES OF THAT
PLATFORM and stop its consumer for some time, so the folder must be named even if it is .local.
USAGE
}

main() {
    local tests=(console.test.js)
    answer_help_and_version "$@"
    case ${1:-} in
        '') ;;
        pictures) tests=(pictures.test.js) ;;
        *) wrong_usage "there is no command $1" ;;
    esac
    [[ -n ${LOCAL_DIR:-} ]] || wrong_usage 'LOCAL_DIR must name the folder of the platform'
    LOCAL_DIR=$(realpath -m -- "$LOCAL_DIR")
    [[ -f $LOCAL_DIR/settings.env ]] || die "nothing has been started in $LOCAL_DIR yet: start the platform with setup/local.sh up"
    read_settings "$LOCAL_DIR/settings.env"
    CHROMIUM=$(find_chromium) || die 'there is no Chromium: install it (on Debian the package chromium)'
    GATEWAY_URL=http://127.0.0.1:${SETTINGS[API_GATEWAY_PORT]}
    GATEWAY_PROGRAM=$LOCAL_DIR/programs/api-gateway
    RABBITMQ_URL=http://127.0.0.1:${SETTINGS[RABBITMQ_MANAGEMENT_PORT]}
    RABBITMQ_QUEUE=${SETTINGS[RABBITMQ_QUEUE]}
    RABBITMQ_LOGIN=${SETTINGS[RABBITMQ_USER]}:${SETTINGS[RABBITMQ_PASSWORD]}
    install_browser_tools
    export RABBITMQ_URL RABBITMQ_QUEUE RABBITMQ_LOGIN
    export LOCAL_DIR CHROMIUM GATEWAY_URL GATEWAY_PROGRAM NODE_PATH=$tools/browser/node_modules
    cd "$repo/tests/browser"
    timeout 600 node --test --test-reporter=spec "${tests[@]}"
}

main "$@"
