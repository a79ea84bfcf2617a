# shellcheck shell=bash
# A path without odd characters to a folder whose own path has some. PM2 takes a blank for the end
# of a command, pg_ctl a $ for a variable, RabbitMQ 3.10 dies of Cyrillic, and a Unix socket has
# place for 107 bytes. All of them get this path, which is a symbolic link.

# alias_of FOLDER: FOLDER itself, where that will do. Else the link has the same name whatever the
# environment is, so that who stops a program finds what another has started.
alias_of() {
    if [[ $1 =~ ^[A-Za-z0-9/._-]*$ && ${#1} -le 80 ]]; then
        echo "$1"
    else
        echo "$(aliases_folder)/$(printf '%s' "$1" | sha256sum | cut -c 1-16)"
    fi
}

# aliases_folder: outlives sessions and restarts, and other users may not write there.
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
    [[ -O $parent && ! -L $parent ]] || die "$parent belongs to somebody else: remove it, or name a LOCAL_DIR of letters, digits and ._- alone"
    ln -sfnT "$1" "$2"
}

# remove_alias FOLDER ALIAS
remove_alias() {
    [[ $1 != "$2" ]] || return 0
    rm -f "$2"
    rmdir --ignore-fail-on-non-empty "${2%/*}"
}
