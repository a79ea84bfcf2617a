# shellcheck shell=bash
# Whether a folder will do for what is to be written or started there. Asked before anything is
# done, so that one sentence says what a failure in the middle would not.

# What a platform takes at first, and what it needs to go on: PostgreSQL's cluster and its log of
# changes take 50 MB, and RabbitMQ accepts no orders with less than 50 MB left.
megabytes_needed=100

# The way out where it is the project's own folder that will not do.
# shellcheck disable=SC2034
own_copy='have the project in a folder of your own'

# require_writable FOLDER WAY_OUT: it need not be there yet.
require_writable() {
    local place free
    place=$(nearest_folder "$1")
    [[ -d $place ]] || die "$place is no folder: $2"
    if [[ ! -w $place || ! -x $place ]]; then
        ((EUID != 0)) || die "$place is read-only: $2"
        die "$place belongs to $(stat -c %U "$place"), and this is $(id -un 2>/dev/null || id -u): be that user, or $2"
    fi
    free=$(free_megabytes "$place")
    ((free >= megabytes_needed)) ||
        die "the disk of $1 is full: $free MB are free, and $megabytes_needed are needed: make room, or $2"
}

# require_executable FOLDER WAY_OUT: programs can be started from there. A disk that is mounted with
# noexec forbids it to root too.
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

# require_home: where cargo, rustup and npm keep what they fetch.
require_home() {
    [[ -d $HOME && -w $HOME ]] || die "$(id -un 2>/dev/null || id -u) has no home folder that can be written to: set HOME to another one"
}

# nearest_folder FOLDER: itself, or the one below which it would be made.
nearest_folder() {
    local place=$1
    until [[ -e $place || -z $place ]]; do
        place=${place%/*}
    done
    echo "${place:-/}"
}

# open_lock VARIABLE FOLDER: sets VARIABLE to a descriptor for flock. Whoever can open a file can lock it, so this
# one is for its owner alone.
open_lock() {
    local descriptor
    install -d -m 700 "$2/lock"
    exec {descriptor}<"$2/lock"
    printf -v "$1" '%s' "$descriptor"
}

free_megabytes() {
    df --output=avail --block-size=1M "$1" | tail -n 1 | tr -d ' '
}

# full_places FOLDER…: those whose disk takes nothing any more.
full_places() {
    local place
    for place in "$@"; do
        place=$(nearest_folder "$place")
        (($(free_megabytes "$place") > 1)) || echo "$place"
    done
}
