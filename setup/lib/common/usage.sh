# shellcheck shell=bash
# The answers of every script to help, version and wrong arguments. The script has a function usage, and repo names the
# folder of the project.

# answer_help_and_version [ARGUMENT…]: if the first argument asks for help or the version, prints it and ends the script.
answer_help_and_version() {
    case ${1:-} in
        help | --help | -h) usage ;;
        version | --version | -V) show_version ;;
        *) return 0 ;;
    esac
    exit 0
}

# show_version: prints the version, with the commit if this is a checkout and not a copy.
show_version() {
    local number commit=''
    number=$(sed -n 's/^version = "\(.*\)"/\1/p' "${repo:?}/Cargo.toml")
    [[ ! -e $repo/.git ]] || commit=$(git -C "$repo" describe --always --dirty 2>/dev/null) || true
    echo "${0##*/} $number${commit:+ ($commit)}"
}

# wrong_usage [TEXT]: prints what is wrong with the arguments, and the usage, and ends the script.
wrong_usage() {
    {
        [[ -z ${1:-} ]] || printf '%s: %s\n\n' "${0##*/}" "$1"
        usage
    } >&2
    exit 2
}

# take_no_arguments [ARGUMENT…]: refuses arguments other than help and version.
take_no_arguments() {
    answer_help_and_version "$@"
    (($# == 0)) || wrong_usage "the script takes no arguments, and got: $*"
}
