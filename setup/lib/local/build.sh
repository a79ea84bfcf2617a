# shellcheck shell=bash
# Builds the programs on this computer from this checkout.

# fitting_cargo CARGO: whether this is rustup's cargo, which installs the toolchain of rust-toolchain.toml, or a cargo
# that is new enough, with its compiler beside it.
fitting_cargo() {
    local program version
    [[ -x $1 ]] || return 1
    [[ ! $1 -ef ${1%/*}/rustup ]] || return 0
    for program in "$1" "${1%/*}/rustc"; do
        version=$("$program" --version 2>/dev/null) && at_least "$(cut -d ' ' -f 2 <<<"$version")" "$(minimum_rust)" || return 1
    done
}

# install_rust: installs Rust by rustup if no cargo is new enough. An old cargo, such as Debian's, may come first on the
# PATH.
install_rust() {
    local own=${CARGO_HOME:-$HOME/.cargo}/bin
    require_home
    if ! fitting_cargo "$(type -P cargo)"; then
        fitting_cargo "$own/cargo" || {
            require_executable "$TMPDIR" 'set TMPDIR to another folder'
            step 'Install Rust, by rustup' run_rustup
        }
        PATH=$own:$PATH
    fi
}

# cargo_build FOLDER ARGUMENT…: builds the programs, and makes FOLDER/programs a link to cargo's output folder, which the
# user's variables and files may change.
cargo_build() {
    local programs
    programs=$(cargo metadata --locked --no-deps --format-version=1 |
        sed -n 's/.*"target_directory":"\(\([^"\]\|\\.\)*\)".*/\1/p' | sed 's/\\\(.\)/\1/g')
    require_writable "$programs" 'set CARGO_TARGET_DIR to another folder'
    require_executable "$programs" 'set CARGO_TARGET_DIR to another folder'
    cargo build --locked --message-format=json-render-diagnostics "${@:2}" >"$1/built.json"
    programs=$(sed -n 's|.*"executable":"\(.*\)/[^/"]*".*|\1|p' "$1/built.json" | head -n 1 | sed 's/\\\(.\)/\1/g')
    rm -f "$1/built.json"
    [[ -d $programs ]] || die "cargo did not report the folder of the programs"
    ln -sfnT "$programs" "$1/programs"
}
