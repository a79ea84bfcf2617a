# shellcheck shell=bash
# The beginning of every script, so that its effect does not depend on the caller's environment. Two lines of the script
# precede it, since they exclude what would act before: the first starts the script again in bash's privileged mode,
# in which BASH_ENV, SHELLOPTS and exported functions have no effect, and the second finds the folder of the project
# through symbolic links, without cd, which CDPATH would change.

unset CDPATH GLOBIGNORE ENV BASH_ENV POSIXLY_CORRECT GREP_OPTIONS TAR_OPTIONS NODE_OPTIONS LANGUAGE "${!PG@}"
set +o posix
IFS=$' \t\n'
umask 022
# The scripts search the output of programs for English texts, and detect bytes that are not UTF-8.
export LANG=C.UTF-8 LC_ALL=C.UTF-8

# cron and systemd set only some of these folders or none, and sudo may keep the HOME of another user.
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
if [[ ! -d ${HOME:-} || ! -w $HOME ]]; then
    unset HOME
    HOME=~
fi
export HOME
# Node would run code that another user has put into its compile cache.
export NODE_DISABLE_COMPILE_CACHE=1
# own_folder FOLDER: prints a folder below FOLDER into which no other user can put files, if its disk is not full, since
# programs trust files of fixed names in TMPDIR. Other users can reach files in it whose names they have.
own_folder() {
    local place=$1/crud-master-$EUID
    # FOLDER must be one from which other users cannot move it.
    [[ -n $(find -H "$1" -maxdepth 0 \( -uid 0 -o -uid "$EUID" \) \( -perm -1000 -o ! -perm /022 \) 2>/dev/null) ]] || return 1
    if is_own "$1"; then
        place=$1 # of a script that has called this one
    elif ! mkdir -m 711 "$place" 2>/dev/null && ! is_own "$place"; then
        place=$(mktemp -d "$place-XXXXXX" 2>/dev/null) && chmod 711 "$place" || return 1
    fi
    takes_files "$place" && echo "$place"
}
# is_own FOLDER: whether no other user can write there.
is_own() {
    [[ ! -L $1 && -n $(find "$1" -maxdepth 0 -type d -uid "$EUID" ! -perm /022 2>/dev/null) ]]
}
# takes_files FOLDER: whether the folder exists and its disk is not full.
takes_files() {
    local trial status=0
    trial=$(mktemp "$1/crud-master-XXXXXX" 2>/dev/null) || return 1
    head -c 65536 /dev/zero >"$trial" 2>/dev/null || status=1
    rm -f "$trial"
    return "$status"
}
for place in "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm; do
    [[ $place == /* ]] && TMPDIR=$(own_folder "${place%/}") && break
    TMPDIR=''
done
if [[ -z $TMPDIR ]]; then
    printf '%s: no folder for temporary files can be made: make room in /tmp, or set TMPDIR to another folder\n' "${0##*/}" >&2
    exit 1
fi
export TMPDIR
unset place
# The working directory may have been deleted.
pwd -P >/dev/null 2>&1 || cd /

# cargo and PostgreSQL write each path on a line of a file.
if [[ ${repo:?} == *[[:cntrl:]]* ]] || [[ ! $repo =~ ^.*$ ]]; then
    printf '%s: the path of this folder must be UTF-8 without line breaks or control characters: move the folder\n' "${0##*/}" >&2
    exit 1
fi
