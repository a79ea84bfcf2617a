# shellcheck shell=bash
# The files that every script needs that sets up servers or programs, on this computer or on a machine.
source "${repo:?}/setup/lib/common/say.sh"
source "$repo/setup/lib/common/usage.sh"
source "$repo/setup/lib/common/quoting.sh"
source "$repo/setup/lib/common/settings.sh"
source "$repo/setup/lib/common/ports.sh"
source "$repo/setup/lib/common/daemon.sh"
source "$repo/setup/lib/common/users.sh"
source "$repo/setup/lib/common/install.sh"
source "$repo/setup/lib/common/rust.sh"
source "$repo/setup/lib/common/sql.sh"
source "$repo/setup/lib/common/rabbitmq_api.sh"
