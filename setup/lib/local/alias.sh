# shellcheck shell=bash
# A path without special characters to a folder whose own path has some: PM2 splits a command at a blank, pg_ctl
# substitutes a $, RabbitMQ 3.10 fails with Cyrillic letters, and the path of a Unix socket has at most 107 bytes. All
# of them get this path, which is a symbolic link.

# alias_of FOLDER: prints FOLDER itself if its path has no special characters. Otherwise the name of the link depends on
# the path only, so that one shell can stop the programs that another has started.
alias_of() {
    if [[ $1 =~ ^[A-Za-z0-9/._-]*$ && ${#1} -le 80 ]]; then
        echo "$1"
    else
        echo "$(aliases_folder)/$(printf '%s' "$1" | sha256sum | cut -c 1-16)"
    fi
}

# aliases_folder: prints a folder that outlives sessions and restarts, and in which other users cannot write.
aliases_folder() {
    if ((EUID == 0)); then
        echo /var/lib/crud-master
    else
        echo "/var/tmp/crud-master-$EUID"
    fi
}

# make_alias FOLDER ALIAS
make_alias() {
    local parent=${2%/*}
    [[ $1 != "$2" && $(readlink "$2") != "$1" ]] || return 0
    [[ -d $parent ]] || install -d -m 755 "$parent"
    [[ -O $parent && ! -L $parent ]] || die "$parent belongs to another user: remove it, or name a LOCAL_DIR of letters, digits and ._- alone"
    ln -sfnT "$1" "$2"
}

# remove_alias FOLDER ALIAS
remove_alias() {
    [[ $1 != "$2" ]] || return 0
    rm -f "$2"
    rmdir --ignore-fail-on-non-empty "${2%/*}"
}
