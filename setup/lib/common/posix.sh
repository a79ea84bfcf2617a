# shellcheck shell=sh
# Functions of secrets.sh and keys.sh. These scripts are for the host, where the shell may be that of macOS or Git Bash
# on Windows. FOLDER must be set to the folder of the project before.
script=$(basename "$0")

# show_version: prints the version; usage.sh has this function for bash.
show_version() {
    echo "$script $(sed -n 's/^version = "\(.*\)"/\1/p' "${folder:?}/Cargo.toml")"
}

# fail TEXT [STATUS]
fail() {
    echo "$script: $1" >&2
    exit "${2:-1}"
}

# line_of KEY: prints a regular expression for the beginning of a line that sets KEY. The last such line counts.
line_of() {
    printf '^[[:blank:]]*\(export[[:blank:]][[:blank:]]*\)\{0,1\}%s[[:blank:]]*=[[:blank:]]*' "$1"
}

# value_of KEY FILE: prints the value in the file without quotes, blanks and a comment around it.
value_of() {
    sed -n "s/$(line_of "$1")//p" "$2" | tail -n 1 | tr -d '\r' |
        sed -e "s/^'\(.*\)'.*/\1/; t" -e 's/^"\(.*\)".*/\1/; t' -e 's/[[:blank:]].*//; s/^#.*//'
}
