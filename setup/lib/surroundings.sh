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
# takes_files FOLDER: it is there, and its disk is not full.
takes_files() {
    local trial status=0
    trial=$(mktemp "$1/crud-master-XXXXXX" 2>/dev/null) || return 1
    head -c 65536 /dev/zero >"$trial" 2>/dev/null || status=1
    rm -f "$trial"
    return "$status"
}
for TMPDIR in "${TMPDIR:-/tmp}" /tmp /var/tmp /dev/shm; do
    [[ $TMPDIR == /* ]] && takes_files "$TMPDIR" && break
done
export TMPDIR
# The folder that this was called in may be gone.
pwd -P >/dev/null 2>&1 || cd /

# cargo and PostgreSQL write paths into files whose lines they are.
if [[ ${repo:?} == *[[:cntrl:]]* ]] || [[ ! $repo =~ ^.*$ ]]; then
    printf '%s: the path of this folder must be UTF-8 without line breaks or control characters: move the folder\n' "${0##*/}" >&2
    exit 1
fi
