# shellcheck shell=bash
# What every script builds on that has servers to install, start and stop.

source "${repo:?}/setup/lib/common/say.sh"
source "$repo/setup/lib/common/usage.sh"
source "$repo/setup/lib/common/quoting.sh"
source "$repo/setup/lib/common/settings.sh"
source "$repo/setup/lib/common/ports.sh"
source "$repo/setup/lib/local/alias.sh"
source "$repo/setup/lib/common/daemon.sh"
source "$repo/setup/lib/common/users.sh"
source "$repo/setup/lib/common/install.sh"
source "$repo/setup/lib/common/build.sh"
source "$repo/setup/lib/common/postgres.sh"
source "$repo/setup/lib/common/rabbitmq.sh"
