# shellcheck shell=bash
# Checks that files can be written to a folder, or programs started from it. Scripts check this first, so that a clear
# message replaces a failure in the middle.

# The free space that a platform needs: PostgreSQL's cluster and its write-ahead log take 50 MB, and RabbitMQ accepts no
# orders with less than 50 MB free.
megabytes_needed=100

# The remedy if the project's own folder is the one that cannot be used.
# shellcheck disable=SC2034
own_copy='have the project in a folder of your own'

# require_writable FOLDER REMEDY: the folder need not exist yet.
require_writable() {
    local place free
    place=$(nearest_folder "$1")
    [[ -d $place ]] || die "$place is not a folder: $2"
    if [[ ! -w $place || ! -x $place ]]; then
        ((EUID != 0)) || die "$place is read-only: $2"
        die "$place belongs to $(stat -c %U "$place"), and this is $(id -un 2>/dev/null || id -u): run this as that user, or $2"
    fi
    free=$(free_megabytes "$place")
    ((free >= megabytes_needed)) ||
        die "the disk of $1 is full: $free MB are free, and $megabytes_needed are needed: make room, or $2"
}

# require_executable FOLDER REMEDY: checks that programs can be started from the folder. A disk that is mounted with
# noexec forbids this to root too.
require_executable() {
    local place trial
    place=$(nearest_folder "$1")
    trial=$(mktemp "$place/.trial-XXXXXX") || die "$place cannot be written to: $2"
    printf '#!/bin/sh\n' >"$trial"
    chmod 700 "$trial"
    if ! "$trial" 2>/dev/null; then
        rm -f "$trial"
        die "no program can be started from $1, whose disk is mounted with noexec: $2"
    fi
    rm -f "$trial"
}

# require_home: checks the home folder, where cargo, rustup and npm store their downloads.
require_home() {
    [[ -d $HOME && -w $HOME ]] || die "$(id -un 2>/dev/null || id -u) has no home folder that can be written to: set HOME to another one"
}

# nearest_folder FOLDER: prints the folder, or the nearest existing one above it.
nearest_folder() {
    local place=$1
    until [[ -e $place || -z $place ]]; do
        place=${place%/*}
    done
    echo "${place:-/}"
}

# open_lock VARIABLE FOLDER: sets VARIABLE to a descriptor for flock. A user who can open a file can lock it, so only the
# owner can open this one.
open_lock() {
    local descriptor
    install -d -m 700 "$2/lock"
    exec {descriptor}<"$2/lock"
    printf -v "$1" '%s' "$descriptor"
}

free_megabytes() {
    df --output=avail --block-size=1M "$1" | tail -n 1 | tr -d ' '
}

# full_places FOLDER…: prints the folders whose disk is full.
full_places() {
    local place
    for place in "$@"; do
        place=$(nearest_folder "$place")
        (($(free_megabytes "$place") > 1)) || echo "$place"
    done
}
