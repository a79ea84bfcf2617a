#!/usr/bin/env bash
# A smoke test of any gateway that can be reached, with curl alone. It prints one line for each step, and deletes the
# movie that it creates.
# shellcheck source-path=SCRIPTDIR/..
case $- in *p*) ;; *) exec bash -p "$0" "$@" ;; esac # surroundings.sh says why
set -euo pipefail

repo=$(readlink -f "$0") repo=${repo%/*/*}
source "$repo/setup/lib/common/surroundings.sh"
source "$repo/setup/lib/common/say.sh"
source "$repo/setup/lib/common/usage.sh"

usage() {
    cat <<'USAGE'
A smoke test of a gateway, with curl alone.

  setup/smoke.sh [URL]                 tests a movie from its creation to its end, mistakes, and an
                                       order; URL is the gateway's (http://localhost:5000)
  setup/smoke.sh [URL] --orders URL    tests also that the order arrives at that billing-api,
                                       for instance http://localhost:8081
  setup/smoke.sh help | version

If the gateway requires a key, API_KEY in the environment must be one with the role write or admin.
The test deletes its movie in any case; its order, of the user smoke-test, stays. If a step fails,
the test names it and exits with 1.
USAGE
}

main() {
    local gateway='' orders=''
    answer_help_and_version "$@"
    while (($# > 0)); do
        case $1 in
            --orders)
                (($# > 1)) || wrong_usage '--orders takes the URL of a billing-api'
                orders=$2
                shift
                ;;
            http://?* | https://?*)
                [[ -z $gateway ]] || wrong_usage "one gateway at a time: $1"
                gateway=$1
                ;;
            *) wrong_usage "this is not a URL: $1" ;;
        esac
        shift
    done
    [[ -z $orders || $orders == http://?* || $orders == https://?* ]] || wrong_usage "this is not a URL: $orders"
    gateway=${gateway:-http://localhost:5000}
    gateway=${gateway%/}
    answer=$(mktemp)
    movie=''
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
    movies_go_from_creation_to_end "$gateway/api/movies"
    mistakes_are_refused "$gateway/api/movies"
    an_order_is_taken "$gateway/api/billing"
    [[ -z $orders ]] || an_order_arrives "${orders%/}/api/orders"
    ((failures == 0)) || die "$failures of $steps steps failed"
    say "All $steps steps passed"
}

clean_up() {
    [[ -z $movie ]] || ask "$movie" --request DELETE >/dev/null || true
    rm -f "$answer"
}

json=(--header 'Content-Type: application/json')

# ask URL [CURL_ARGUMENT…]: prints the status and writes the answer into a file, since a list may be long. The key is
# on no command line, and is sent to the gateway alone.
ask() {
    local key=''
    [[ $1 != "$gateway"/* || -z ${API_KEY:-} ]] || key="Authorization: Bearer $API_KEY"
    : >"$answer"
    curl --disable --noproxy '*' --silent --show-error --max-time 30 --output "$answer" \
        --write-out '%{http_code}' --header @<(printf '%s\n' "$key") "$@" 2>"$answer.error" ||
        cat "$answer.error" >>"$answer"
    rm -f "$answer.error"
}

steps=0
failures=0

# check TEXT STATUS PART URL [CURL_ARGUMENT…]: checks that the answer has this status and contains PART.
check() {
    local status
    steps=$((steps + 1))
    status=$(ask "${@:4}")
    [[ $status != 000 ]] || die "$1: there is no answer: $(<"$answer")"
    if [[ $status == "$2" ]] && grep -qF -- "$3" "$answer"; then
        say "ok    $1: $status"
    else
        failures=$((failures + 1))
        say "FAIL  $1: expected $2 and $3, got $status and $(head -c 300 "$answer" | tr '\n' ' ')"
    fi
}

movies_go_from_creation_to_end() {
    local title="Smoke test $$-$RANDOM" id=0
    check 'create a movie' 201 "\"$title\"" "$1" "${json[@]}" --data "{\"title\": \"$title\", \"description\": \"A test\"}"
    if [[ $(head -c 1000 "$answer") =~ \"id\":\ *([0-9]+) ]]; then
        id=${BASH_REMATCH[1]}
        movie=$1/$id
    fi
    check 'list all movies' 200 "\"$title\"" "$1"
    check 'find it by a part of its title' 200 "\"$title\"" "$1?title=mOKE%20test%20$$"
    check 'read it' 200 "\"$title\"" "$1/$id"
    check 'change its title' 200 "\"$title, changed\"" "$1/$id" --request PUT "${json[@]}" --data "{\"title\": \"$title, changed\"}"
    check 'read the changed movie' 200 "\"$title, changed\"" "$1/$id"
    check 'delete it' 200 'has been deleted' "$1/$id" --request DELETE
    ((failures > 0)) || movie=''
    check 'read it after its deletion' 404 '"status":404' "$1/$id"
}

mistakes_are_refused() {
    local unknown=$1/9223372036854775807
    check 'read a movie that does not exist' 404 '"status":404' "$unknown"
    check 'change a movie that does not exist' 404 '"status":404' "$unknown" --request PUT "${json[@]}" --data '{"title": "A"}'
    check 'delete a movie that does not exist' 404 '"status":404' "$unknown" --request DELETE
    check 'create a movie without a description' 400 description "$1" "${json[@]}" --data '{"title": "A"}'
    check 'create a movie from a body that is not JSON' 400 '"status":400' "$1" "${json[@]}" --data 'A'
}

an_order_is_taken() {
    check 'place an order' 200 'Message posted' "$1" "${json[@]}" \
        --data '{"user_id": "smoke-test", "number_of_items": "1", "total_amount": "10"}'
    message_id=''
    [[ ! $(head -c 1000 "$answer") =~ \"message_id\":\ *\"([^\"]+)\" ]] || message_id=${BASH_REMATCH[1]}
    check 'place an order of no items' 400 number_of_items "$1" "${json[@]}" \
        --data '{"user_id": "smoke-test", "number_of_items": 0, "total_amount": "10"}'
    check 'place an order without an amount' 400 total_amount "$1" "${json[@]}" \
        --data '{"user_id": "smoke-test", "number_of_items": 1}'
}

# an_order_arrives URL: waits up to half a minute for the order.
an_order_arrives() {
    local deadline=$((SECONDS + 30)) found="$1?message_id=${message_id:-none}"
    until ask "$found" >/dev/null && grep -qF '"total_amount"' "$answer" || ((SECONDS >= deadline)); do
        sleep 0.2
    done
    check 'see the order recorded' 200 '"total_amount":"10.00"' "$found"
}

main "$@"
