# shellcheck shell=bash
# What every script answers alike: help, its version, and a call that it does not understand. The
# script has a function usage, and repo names the folder of the project.

# answer_help_and_version [ARGUMENT…]: and ends the script, if that was asked for.
answer_help_and_version() {
    case ${1:-} in
        help | --help | -h) usage ;;
        version | --version | -V) show_version ;;
        *) return 0 ;;
    esac
    exit 0
}

# show_version: with the commit, where this is a checkout and not a copy.
show_version() {
    local number commit=''
    number=$(sed -n 's/^version = "\(.*\)"/\1/p' "${repo:?}/Cargo.toml")
    [[ ! -e $repo/.git ]] || commit=$(git -C "$repo" describe --always --dirty 2>/dev/null) || true
    echo "${0##*/} $number${commit:+ ($commit)}"
}

# wrong_usage [TEXT]: what is wrong with the call, and how the script is called.
wrong_usage() {
    {
        [[ -z ${1:-} ]] || printf '%s: %s\n\n' "${0##*/}" "$1"
        usage
    } >&2
    exit 2
}

# take_no_arguments [ARGUMENT…]: for scripts that do one thing.
take_no_arguments() {
    answer_help_and_version "$@"
    (($# == 0)) || wrong_usage "it takes no arguments, and got: $*"
}
