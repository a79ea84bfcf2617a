#!/bin/sh
# Strong passwords in .env.local, which wins over .env and which git does not know. For the host,
# so for macOS, Linux, and Git Bash on Windows.
set -eu

usage() {
    cat <<'USAGE'
Strong passwords in .env.local, over the development values of .env.

  setup/secrets.sh          writes those that .env.local does not have yet
  setup/secrets.sh renew    replaces all of them
  setup/secrets.sh help | version

They come into force with: vagrant provision (on one machine: setup/local.sh).
USAGE
}

# As setup/lib/usage.sh says it, which a shell on macOS or Windows may not understand.
show_version() {
    echo "secrets.sh $(sed -n 's/^version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")"
}

keys='POSTGRES_PASSWORD RABBITMQ_PASSWORD'
file=$(cd "$(dirname "$0")/.." && pwd -P)/.env.local

case ${1:-} in
    '') renew=false ;;
    renew) renew=true ;;
    help | --help | -h) usage && exit ;;
    version | --version | -V) show_version && exit ;;
    *) echo "secrets.sh: there is no command $1" >&2 && usage >&2 && exit 2 ;;
esac

umask 077
trap 'rm -f "$file.new"' EXIT
if [ -e "$file" ]; then
    cat "$file" >"$file.new"
else
    echo '# Secrets of this installation, made by setup/secrets.sh. Wins over .env.' >"$file.new"
fi
written=''
for key in $keys; do
    if grep -q "^$key=." "$file.new"; then
        $renew || continue
    fi
    secret=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
    [ "${#secret}" -eq 48 ] || { echo 'secrets.sh: there is no /dev/urandom to read from: write the passwords into .env.local yourself' >&2 && exit 1; }
    grep -v "^$key=" "$file.new" >"$file.rest" || true
    { cat "$file.rest" && echo "$key=$secret"; } >"$file.new"
    rm -f "$file.rest"
    written="$written $key"
done

if [ -z "$written" ]; then
    echo 'There are strong passwords in .env.local already; "setup/secrets.sh renew" replaces them.'
else
    mv "$file.new" "$file"
    echo "Written to .env.local:$written"
    echo 'They come into force with: vagrant provision (on one machine: setup/local.sh)'
fi
