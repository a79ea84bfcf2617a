#!/bin/sh
# Writes strong passwords into .env.local, which overrides .env and which git ignores. The script is for the host:
# macOS, Linux, and Git Bash on Windows.
set -eu

usage() {
    cat <<'USAGE'
Writes strong passwords into .env.local, which override the development values of .env.

  setup/secrets.sh          writes each password that is missing, empty or well known in .env.local
  setup/secrets.sh renew    replaces all of them
  setup/secrets.sh help | version

They take effect with: vagrant provision (on one machine: setup/local.sh).
USAGE
}

unset CDPATH
folder=$(cd "$(dirname "$0")/.." && pwd -P)
. "$folder/setup/lib/common/posix.sh"

keys='POSTGRES_PASSWORD POSTGRES_READER_PASSWORD RABBITMQ_PASSWORD RABBITMQ_CONSUMER_PASSWORD'
file=$folder/.env.local

case ${1:-} in
    '') renew=false ;;
    renew) renew=true ;;
    help | --help | -h) usage && exit ;;
    version | --version | -V) show_version && exit ;;
    *) echo "secrets.sh: there is no command $1" >&2 && usage >&2 && exit 2 ;;
esac

# is_secret TEXT: whether it is a password that is neither empty nor well known, as those of .env are.
is_secret() {
    [ -n "$1" ] && ! grep -qxF -e "$1" "$folder/setup/lib/common/well_known_passwords"
}

umask 077
[ -w "$folder" ] || fail "$folder cannot be written to: run this as its owner, or have the project in a folder of your own"
# shellcheck disable=SC2154 # the trap sets it
trap 'status=$?; rm -f "$file.new" "$file.rest"; [ $status -eq 0 ] || echo "secrets.sh: .env.local is unchanged" >&2' EXIT
if [ -e "$file" ]; then
    [ "$(tr -d '\000' <"$file" | wc -c)" -eq "$(wc -c <"$file")" ] ||
        fail '.env.local is UTF-16: save it as UTF-8'
    # A byte order mark would hide the first line.
    LC_ALL=C sed "1s/^$(printf '\357\273\277')//" "$file" >"$file.new"
else
    echo '# Secrets of this installation, made by setup/secrets.sh. They override .env.' >"$file.new"
fi
written=''
for key in $keys; do
    $renew || ! is_secret "$(value_of "$key" "$file.new")" || continue
    secret=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    [ "${#secret}" -eq 48 ] || fail 'there is no /dev/urandom to read from: write the passwords into .env.local yourself'
    # The password replaces the first line that sets it, since a comment may be before that line.
    awk -v line="$(line_of "$key" | sed 's/\\(/(/; s/\\)\\{0,1\\}/)?/')" -v secret="$key=$secret" '
        $0 ~ line { if (!done) print secret; done = 1; next }
        { print }
        END { if (!done) print secret }' "$file.new" >"$file.rest"
    mv "$file.rest" "$file.new"
    written="$written $key"
done

if [ -z "$written" ]; then
    echo 'There are strong passwords in .env.local already; "setup/secrets.sh renew" replaces them.'
else
    mv "$file.new" "$file"
    echo "Written to .env.local:$written"
    echo 'They take effect with: vagrant provision (on one machine: setup/local.sh)'
fi
