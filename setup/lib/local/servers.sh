# shellcheck shell=bash
# The files that every script needs that has servers of its own on this computer.
source "${repo:?}/setup/lib/common/base.sh"
source "$repo/setup/lib/local/alias.sh"
source "$repo/setup/lib/local/claims.sh"
source "$repo/setup/lib/local/build.sh"
source "$repo/setup/lib/local/postgres.sh"
source "$repo/setup/lib/local/rabbitmq.sh"
