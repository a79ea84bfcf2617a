# shellcheck shell=bash
# The programs, built on this computer from this checkout.

# fitting_cargo CARGO: rustup's, which brings the toolchain that rust-toolchain.toml names, or one
# that is new enough itself, with the compiler beside it.
fitting_cargo() {
    local program version
    [[ -x $1 ]] || return 1
    [[ ! $1 -ef ${1%/*}/rustup ]] || return 0
    for program in "$1" "${1%/*}/rustc"; do
        version=$("$program" --version 2>/dev/null) && at_least "$(cut -d ' ' -f 2 <<<"$version")" "$(minimum_rust)" || return 1
    done
}

# install_rust: by rustup, where no cargo fits. One that is too old may come first on the PATH, as
# Debian's does.
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

# cargo_build FOLDER ARGUMENT…: builds, and lets FOLDER/programs lead to where cargo put the programs,
# which variables and files of the user's may decide.
cargo_build() {
    local programs
    programs=$(cargo metadata --locked --no-deps --format-version=1 |
        sed -n 's/.*"target_directory":"\(\([^"\]\|\\.\)*\)".*/\1/p' | sed 's/\\\(.\)/\1/g')
    require_writable "$programs" 'set CARGO_TARGET_DIR to another folder'
    require_executable "$programs" 'set CARGO_TARGET_DIR to another folder'
    cargo build --locked --message-format=json-render-diagnostics "${@:2}" >"$1/built.json"
    programs=$(sed -n 's|.*"executable":"\(.*\)/[^/"]*".*|\1|p' "$1/built.json" | head -n 1 | sed 's/\\\(.\)/\1/g')
    rm -f "$1/built.json"
    [[ -d $programs ]] || die "cargo has not said where it put the programs"
    ln -sfnT "$programs" "$1/programs"
}
