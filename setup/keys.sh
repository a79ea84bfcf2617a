#!/bin/sh
# Manages the keys of the gateway's callers, in the file that API_KEYS_FILE names. The script is for the host: macOS,
# Linux, and Git Bash on Windows.
set -eu

usage() {
    cat <<'USAGE'
Manages the keys of the gateway's callers, in the file that API_KEYS_FILE names.

  setup/keys.sh add NAME ROLE   makes a key, writes its hash into the file and shows the key, once;
                                ROLE is read, write or admin; each role includes those before it
  setup/keys.sh remove NAME     removes a key from the file
  setup/keys.sh list            lists names and roles
  setup/keys.sh help | version

A gateway on this machine applies a change within seconds.
USAGE
}

unset CDPATH
folder=$(cd "$(dirname "$0")/.." && pwd -P)
. "$folder/setup/lib/common/posix.sh"

# setting: prints API_KEYS_FILE as the programs read it, from the environment or a file.
setting() {
    [ -z "${API_KEYS_FILE:-}" ] || { echo "$API_KEYS_FILE" && return; }
    for settings in "$folder/.env.local" "$folder/.env"; do
        [ -e "$settings" ] || continue
        value=$(value_of API_KEYS_FILE "$settings")
        [ -z "$value" ] || { echo "$value" && return; }
    done
    return 1
}

# keys: prints the lines of the file that are keys, without blanks around them.
keys() {
    [ ! -e "$file" ] || sed -e 's/^[[:blank:]]*//; s/[[:blank:]]*$//' -e '/^#/d; /^$/d' "$file"
}

has() {
    keys | cut -d: -f1 | grep -qxF -e "$1"
}

# replace: replaces the content of the file with the input, completely or not at all.
replace() {
    # The new file is made beside the target of a link, so that the link stays.
    target=$(readlink "$file" 2>/dev/null || echo "$file")
    case $target in /*) ;; *) target=$(dirname "$file")/$(basename "$target") ;; esac
    # The new file gets the owner and the mode of the old one.
    if { [ ! -e "$target" ] || cp -p "$target" "$target.new"; } &&
        (umask 077 && cat >"$target.new") && mv "$target.new" "$target"; then
        return
    fi
    rm -f "$target.new"
    fail "$file cannot be written: run this as its owner"
}

add() {
    case $1 in '' | *[!A-Za-z0-9._-]*) fail 'a name has letters, digits, dots, dashes and underscores' 2 ;; esac
    [ "${#1}" -le 128 ] || fail 'a name has at most 128 characters' 2
    case $2 in read | write | admin) ;; *) fail 'a role is read, write or admin' 2 ;; esac
    ! has "$1" || fail "there is a key of $1 already: remove it first"
    key=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    [ "${#key}" -eq 48 ] || fail 'there is no /dev/urandom to read from'
    # printf is a builtin of the shell, so the key is on no command line.
    hash=$(printf %s "$key" | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-64)
    {
        [ ! -e "$file" ] || { cat "$file" && [ -z "$(tail -c 1 "$file")" ] || echo; }
        echo "$1:$hash:$2"
    } | replace
    echo "$key"
    echo "keys.sh: this is the key of $1; store it, since it is shown only once" >&2
}

remove() {
    has "$1" || fail "there is no key of $1"
    [ "$(keys | wc -l)" -gt 1 ] ||
        fail "$1 has the only key, and a gateway without keys does not start: take API_KEYS_FILE out of the settings instead"
    awk -v name="$1" '{ key = $0; sub(/^[[:blank:]]*/, "", key) } index(key, name ":") != 1' "$file" | replace
}

case ${1:-}:$# in
    add:3 | remove:2 | list:1) ;;
    help:1 | --help:1 | -h:1) usage && exit ;;
    version:1 | --version:1 | -V:1) show_version && exit ;;
    *) usage >&2 && exit 2 ;;
esac
file=$(setting) ||
    fail 'API_KEYS_FILE is not set: put API_KEYS_FILE=/PATH/OF/A/FILE into .env.local, and run this again'
case $file in /*) ;; *) fail 'API_KEYS_FILE must be an absolute path: the programs run in other folders' ;; esac
case $1 in
    add) add "$2" "$3" ;;
    remove) remove "$2" ;;
    list) keys | awk -F: '{ printf "%-20s %s\n", $1, $3 }' ;;
esac
