# shellcheck shell=sh
# What secrets.sh and keys.sh build on. They are for the host, where the shell may be that of macOS or of Git
# Bash on Windows. Before: FOLDER, the project's.
script=$(basename "$0")

# show_version: usage.sh says it to bash.
show_version() {
    echo "$script $(sed -n 's/^version = "\(.*\)"/\1/p' "${folder:?}/Cargo.toml")"
}

# fail TEXT [STATUS]
fail() {
    echo "$script: $1" >&2
    exit "${2:-1}"
}

# line_of KEY: how a line of settings that sets it begins. The last one counts.
line_of() {
    printf '^[[:blank:]]*\(export[[:blank:]][[:blank:]]*\)\{0,1\}%s[[:blank:]]*=[[:blank:]]*' "$1"
}

# value_of KEY FILE: as it stands in the file, without quotes, blanks and a comment around it.
value_of() {
    sed -n "s/$(line_of "$1")//p" "$2" | tail -n 1 | tr -d '\r' |
        sed -e "s/^'\(.*\)'.*/\1/; t" -e 's/^"\(.*\)".*/\1/; t' -e 's/[[:blank:]].*//; s/^#.*//'
}
