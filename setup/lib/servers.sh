# shellcheck shell=bash
# What every script builds on that has servers to install, start and stop.

source "${repo:?}/setup/lib/say.sh"
source "$repo/setup/lib/usage.sh"
source "$repo/setup/lib/quoting.sh"
source "$repo/setup/lib/settings.sh"
source "$repo/setup/lib/ports.sh"
source "$repo/setup/lib/alias.sh"
source "$repo/setup/lib/daemon.sh"
source "$repo/setup/lib/users.sh"
source "$repo/setup/lib/install.sh"
source "$repo/setup/lib/build.sh"
source "$repo/setup/lib/postgres.sh"
source "$repo/setup/lib/rabbitmq.sh"
