# shellcheck shell=bash
# Rust: the version that the workspace needs, and how rustup is installed.

# minimum_rust: prints the version in Cargo.toml.
minimum_rust() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' "${repo:?}/Cargo.toml"
}

# at_least VERSION MINIMUM
at_least() {
    [[ $(printf '%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

run_rustup() {
    local script
    script=$(mktemp)
    trap 'rm -f "$script"' EXIT
    curl --proto '=https' --tlsv1.2 --silent --show-error --fail https://sh.rustup.rs >"$script"
    sh "$script" -y --profile minimal --default-toolchain none --no-modify-path
}
