# shellcheck shell=bash
# The programs on a machine: taken from dist/ARCHITECTURE beside this folder, or built here where
# nothing there fits. What was built lies in /var/lib/crud-master/dist, from where the
# Vagrantfile brings it to dist/ on the host, so that the next machine need not build.
#
# A file built-from beside the programs says from which sources they are; of other sources than there are
# now, the Vagrantfile removes them from dist/. Programs without one, put into dist/ by hand or from a
# release, are taken as they are.

# provide_programs PROGRAM… [-- OPTIONAL…]: installed in /opt/crud-master/bin. The optional ones
# only where they exist.
provide_programs() {
    local wanted=() optional=() prebuilt source
    while (($# > 0)) && [[ $1 != -- ]]; do
        wanted+=("$1")
        shift
    done
    (($# == 0)) || optional=("${@:2}")
    prebuilt=${repo:?}/dist/$(uname -m)
    source=$(sources_fingerprint "$repo")

    if programs_fit "$prebuilt" "$source" "${wanted[@]}"; then
        say "Take the programs from dist/$(uname -m)"
        [[ -e $prebuilt/built-from ]] || note 'put there by hand: whether they are of these sources is not known'
    else
        prebuilt=${state:?}/dist
        programs_fit "$prebuilt" "$source" "${wanted[@]}" || build_programs "$source"
    fi
    step "Install ${wanted[*]}" install_programs "$prebuilt" "${wanted[@]}" -- "${optional[@]}"
}

# sources_fingerprint FOLDER: of everything that goes into the programs. The paths are part of it.
sources_fingerprint() (
    cd "$1" || exit
    {
        ls Cargo.toml Cargo.lock rust-toolchain.toml .cargo/config.toml docs/openapi.yaml
        find common inventory gateway billing -type f ! -path '*/tests/*'
    } | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -c 1-64
)

# programs_fit FOLDER SOURCE PROGRAM…: all are there, of these sources or of unknown ones, and
# run on this machine: one for another processor or a newer C library does not.
programs_fit() {
    local folder=$1 program
    [[ ! -e $folder/built-from || $(<"$folder/built-from") == "$2" ]] || return 1
    for program in "${@:3}"; do
        [[ -f $folder/$program ]] && program_runs "$folder/$program" || return 1
    done
}

# program_runs FILE: tried in a place of its own, since a copied or shared folder may have lost
# the right to execute; and by nobody, since it may be what a hostile crate has made.
program_runs() {
    local trial=${home:?}/trial status=0 as=(bare)
    ((EUID != 0)) || as=(as_user nobody)
    install -m 755 "$1" "$trial"
    (cd / && "${as[@]}" timeout --kill-after=1 10 "$trial" --version) >/dev/null 2>&1 </dev/null || status=$?
    rm -f "$trial"
    return "$status"
}

# install_programs FOLDER PROGRAM… -- OPTIONAL…: a program that is the same already stays, and
# so goes on running.
install_programs() {
    local folder=$1 program required=true
    shift
    for program in "$@"; do
        if [[ $program == -- ]]; then
            required=false
        elif [[ -f $folder/$program ]]; then
            cmp -s "$folder/$program" "$home/bin/$program" || {
                install -m 755 "$folder/$program" "$home/bin/$program.new"
                mv "$home/bin/$program.new" "$home/bin/$program"
            }
        elif $required; then
            echo "there is no $program in $folder"
            return 1
        fi
    done
}

# build_programs SOURCE: all of them, for the other machines too, by a user who may do nothing
# else: building runs code of every crate.
build_programs() {
    local built=true
    say 'There are no programs that fit in dist/, so they are built here'
    require_executable "$state" 'mount that disk without noexec'
    trap end_build EXIT
    provide_builder
    provide_compiler
    free_memory_to_build
    say 'Build the programs (this takes some minutes)'
    # A terminal would obey what a crate says.
    as_builder build_in_copy 2>&1 | tr -cd '[:print:]\n' || built=false
    $built || die 'the programs could not be built; above is why. Programs built elsewhere may be put into dist/'
    clear_builder
    step 'Keep the programs for the other machines' keep_built "$1"
    trap - EXIT
    end_build
}

builder=crud-master-builder
workshop=$state/build
# Where Rust is, if the system has none that is new enough; with a colon.
builder_path=''

# What building takes. Whatever else lies in the project may be a secret.
build_sources=(Cargo.toml Cargo.lock rust-toolchain.toml .cargo/config.toml docs/openapi.yaml
    {common,inventory,gateway,billing,tests/kit,tests/e2e}/{Cargo.toml,src} {inventory,billing}/migrations gateway/console)

# provide_builder: with empty folders, since what one build has left could command the next.
provide_builder() {
    make_builder
    clear_builder
    rm -rf "$workshop"
    # Folders of the builder's in one of root's: within them root does nothing.
    install -d -m 755 "$workshop"
    install -d -m 700 -o "$builder" -g "$builder" "$workshop"/{home,home/tmp,source,target}
    # Not in place: the shared folder is closed to this user, and knows no locks.
    tar -C "${repo:?}" -cf - "${build_sources[@]}" | as_user "$builder" tar -C "$workshop/source" -xf -
}

make_builder() {
    id "$builder" >/dev/null 2>&1 ||
        useradd --system --user-group --home-dir "$workshop/home" --no-create-home --shell /usr/sbin/nologin "$builder"
}

# clear_builder: removes what a build has left to be run later, ends what it has left running, and removes
# what it has left where others look for files.
clear_builder() {
    rm -f "/var/lib/systemd/linger/$builder"
    remove_of_builder /var/spool/cron
    # All at once.
    as_user "$builder" bash -c 'kill -KILL -1' 2>/dev/null || true
    remove_of_builder /tmp /var/tmp /dev/shm
}

# remove_of_builder FOLDER…: what is the builder's in there. Others may remove files of theirs meanwhile,
# which is a failure to find, so what counts is whether anything of the builder's is left.
remove_of_builder() {
    local folder
    for folder in "$@"; do
        [[ -d $folder ]] || continue
        find "$folder" -xdev -user "$builder" -delete 2>/dev/null || true
        [[ -z $(find "$folder" -xdev -user "$builder" 2>/dev/null) ]] ||
            die "what the build has left in $folder cannot be removed"
    done
}

# end_build: nothing of it stays but what was kept.
end_build() {
    clear_builder
    remove_swap
    rm -rf "$workshop"
}

# as_builder FUNCTION
as_builder() (
    cd "$workshop" || exit
    as_user "$builder" env "PATH=$builder_path$PATH" "HOME=$workshop/home" "TMPDIR=$workshop/home/tmp" \
        "workshop=$workshop" "jobs=$(build_jobs)" bash -c "$(declare -f "$1"); set -eu; $1" </dev/null
)

build_in_copy() {
    cd "$workshop/source" || exit
    # Most of what cargo says is one line per crate.
    CARGO_TARGET_DIR=$workshop/target cargo build --release --locked --quiet --jobs "$jobs"
}

# build_jobs: one for each processor, as long as each has 0.9 GB: the last step of a program, which
# sees all its crates at once, takes 0.6 GB, and the compiler itself 0.2.
build_jobs() {
    local jobs processors
    jobs=$(awk '$1 == "MemTotal:" { print int($2 / 900000) }' /proc/meminfo)
    processors=$(nproc)
    ((jobs < processors)) || jobs=$processors
    echo $((jobs < 1 ? 1 : jobs))
}

# free_memory_to_build: a small machine gets a swap file for as long as it builds; to a container
# its host gives none.
free_memory_to_build() {
    local kilobytes
    kilobytes=$(awk '$1 ~ /^(MemAvailable|SwapFree):$/ { sum += $2 } END { print sum }' /proc/meminfo)
    ((kilobytes < 1800000)) && ! systemd-detect-virt --quiet --container || return 0
    step 'Make a swap file for the build' make_swap
}

swap=$state/swap

make_swap() {
    remove_swap
    # Without holes, which swap cannot use.
    install -m 600 /dev/null "$swap"
    dd if=/dev/zero of="$swap" bs=1M count=2048 status=none
    mkswap "$swap"
    swapon "$swap"
}

remove_swap() {
    ! grep -qF "$swap" /proc/swaps || swapoff "$swap"
    rm -f "$swap"
}

# What is built, and kept on the host, where the Vagrantfile has these names too.
built_programs=(api-gateway inventory-api billing-api billing-consumer billing-dead-letters)

# keep_built SOURCE: the stamp comes last: without it the folder is not whole. What lies where the builder
# writes is read as the builder, since a link may stand for it.
keep_built() {
    local program
    rm -rf "$state/dist"
    install -d "$state/dist"
    for program in "${built_programs[@]}"; do
        as_user "$builder" cat "$workshop/target/release/$program" >"$state/dist/$program"
        chmod 755 "$state/dist/$program"
    done
    echo "$1" >"$state/dist/built-from"
}

# provide_compiler: Debian's own, where it is new enough for this workspace, else the very
# toolchain that rust-toolchain.toml names, by rustup.
provide_compiler() {
    local missing package
    mapfile -t missing < <(lacking_basics)
    if ! new_enough_cargo && package=$(cargo_package); then
        missing+=("${package/cargo/rustc}" "$package")
    fi
    install_machine_packages "${missing[@]}"
    new_enough_cargo && return
    step 'Install Rust, by rustup' as_builder run_rustup
    builder_path=$workshop/home/.cargo/bin:
}

# new_enough_cargo: one of the system, for all users; not rustup's stand-in of the same name.
new_enough_cargo() {
    local version
    version=$(/usr/bin/cargo --version 2>/dev/null) || return 1
    at_least "$(cut -d ' ' -f 2 <<<"$version")" "$(minimum_rust)"
}

# cargo_package: the package with a new enough one. Debian carries newer ones than its first as
# cargo-web, for the sake of browsers.
cargo_package() {
    local package version
    for package in cargo cargo-web; do
        version=$(LC_ALL=C apt-cache policy "$package" | awk '$1 == "Candidate:" { print $2 }')
        version=${version#*:}
        if [[ $version == [0-9]* ]] && at_least "${version%%[+~-]*}" "$(minimum_rust)"; then
            echo "$package"
            return
        fi
    done
    return 1
}
