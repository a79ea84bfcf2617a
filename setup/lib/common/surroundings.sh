# shellcheck shell=bash
# What every script begins with, so that it does the same whoever calls it, and from where. The two
# lines before this file is read keep out what would act before it: the first starts the script again
# in bash's privileged mode, where BASH_ENV, SHELLOPTS and exported functions mean nothing, and the
# second finds the folder of the project through symbolic links, without cd, which CDPATH leads astray.

unset CDPATH GLOBIGNORE ENV BASH_ENV POSIXLY_CORRECT GREP_OPTIONS TAR_OPTIONS NODE_OPTIONS LANGUAGE "${!PG@}"
set +o posix
IFS=$' \t\n'
umask 022
# What programs say is searched for English texts, and a byte that is no UTF-8 is to be noticed.
export LANG=C.UTF-8 LC_ALL=C.UTF-8

# cron and systemd leave out some of these, or all, and sudo may keep the HOME of another user.
PATH=${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
if [[ ! -d ${HOME:-} || ! -w $HOME ]]; then
    unset HOME
    HOME=~
fi
export HOME
# Node would run what others have put where it keeps what it has compiled.
export NODE_DISABLE_COMPILE_CACHE=1
# own_folder FOLDER: prints one in it where nobody else can put anything, if its disk is not full: programs
# find files of fixed names in TMPDIR and believe them. Others get through to what they know the name of.
own_folder() {
    local place=$1/crud-master-$EUID
    # Where others cannot move it away.
    [[ -n $(find -H "$1" -maxdepth 0 \( -uid 0 -o -uid "$EUID" \) \( -perm -1000 -o ! -perm /022 \) 2>/dev/null) ]] || return 1
    if is_own "$1"; then
        place=$1 # of a script that has called this one
    elif ! mkdir -m 711 "$place" 2>/dev/null && ! is_own "$place"; then
        place=$(mktemp -d "$place-XXXXXX" 2>/dev/null) && chmod 711 "$place" || return 1
    fi
    takes_files "$place" && echo "$place"
}
# is_own FOLDER: nobody else writes there.
is_own() {
    [[ ! -L $1 && -n $(find "$1" -maxdepth 0 -type d -uid "$EUID" ! -perm /022 2>/dev/null) ]]
}
# takes_files FOLDER: it is there, and its disk is not full.
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
# The folder that this was called in may be gone.
pwd -P >/dev/null 2>&1 || cd /

# cargo and PostgreSQL write paths into files whose lines they are.
if [[ ${repo:?} == *[[:cntrl:]]* ]] || [[ ! $repo =~ ^.*$ ]]; then
    printf '%s: the path of this folder must be UTF-8 without line breaks or control characters: move the folder\n' "${0##*/}" >&2
    exit 1
fi
