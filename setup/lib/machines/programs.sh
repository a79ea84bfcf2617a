# shellcheck shell=bash
# Installs the programs on a machine, from dist/ARCHITECTURE in the project or, if none there fit, after a build on the
# machine. Built programs are in /var/lib/crud-master/dist; the Vagrantfile copies them to dist/ on the host, so that
# the next machine need not build.
#
# The file built-from beside the programs has a hash of their sources; when the sources change, the Vagrantfile removes
# the programs from dist/. Programs without that file, which were put into dist/ by hand or from a release, are
# installed without a check of their sources.

# provide_programs PROGRAM… [-- OPTIONAL…]: installs the programs in /opt/crud-master/bin, and the optional ones if they
# exist.
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
        [[ -e $prebuilt/built-from ]] || note 'they were put there by hand, so their sources are not known'
    else
        prebuilt=${state:?}/dist
        programs_fit "$prebuilt" "$source" "${wanted[@]}" || build_programs "$source"
    fi
    step "Install ${wanted[*]}" install_programs "$prebuilt" "${wanted[@]}" -- "${optional[@]}"
}

# sources_fingerprint FOLDER: prints a hash of the paths and contents of all sources of the programs.
sources_fingerprint() (
    cd "$1" || exit
    {
        ls Cargo.toml Cargo.lock rust-toolchain.toml .cargo/config.toml docs/openapi.yaml
        find common inventory gateway billing -type f ! -path '*/tests/*'
    } | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -c 1-64
)

# programs_fit FOLDER SOURCE PROGRAM…: whether all programs exist, are of these sources or of unknown ones, and run on this
# machine; a program for another processor or a newer C library does not.
programs_fit() {
    local folder=$1 program
    [[ ! -e $folder/built-from || $(<"$folder/built-from") == "$2" ]] || return 1
    for program in "${@:3}"; do
        [[ -f $folder/$program ]] && program_runs "$folder/$program" || return 1
    done
}

# program_runs FILE: whether a copy of the program runs; in a copied or shared folder it may not be executable. The user
# nobody runs it, since a malicious crate may have changed it.
program_runs() {
    local trial=${home:?}/trial status=0 as=(bare)
    ((EUID != 0)) || as=(as_user nobody)
    install -m 755 "$1" "$trial"
    (cd / && "${as[@]}" timeout --kill-after=1 10 "$trial" --version) >/dev/null 2>&1 </dev/null || status=$?
    rm -f "$trial"
    return "$status"
}

# install_programs FOLDER PROGRAM… -- OPTIONAL…: installs the programs; an equal program stays and continues to run.
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

# build_programs SOURCE: builds all programs, for the other machines too, as a user without other rights, since a build
# runs code of every crate.
build_programs() {
    local built=true
    say 'dist/ has no programs for this machine and these sources, so they are built here'
    require_executable "$state" 'mount that disk without noexec'
    trap end_build EXIT
    provide_builder
    provide_compiler
    free_memory_to_build
    say 'Build the programs (this takes some minutes)'
    # The output of a crate might have control sequences of a terminal.
    as_builder build_in_copy 2>&1 | tr -cd '[:print:]\n' || built=false
    $built || die 'the programs could not be built; the cause is above. Programs that were built elsewhere can be put into dist/'
    clear_builder
    step 'Keep the programs for the other machines' keep_built "$1"
    trap - EXIT
    end_build
}

builder=crud-master-builder
workshop=$state/build
# The folder of rustup's Rust and a colon, if the system's Rust is too old.
builder_path=''

# The files that a build needs. Other files of the project may be secrets.
build_sources=(Cargo.toml Cargo.lock rust-toolchain.toml .cargo/config.toml docs/openapi.yaml
    {common,inventory,gateway,billing,tests/kit,tests/e2e}/{Cargo.toml,src} {inventory,billing}/migrations gateway/console)

# provide_builder: makes the user of builds with empty folders, since files of one build could affect the next.
provide_builder() {
    make_builder
    clear_builder
    rm -rf "$workshop"
    # The folders of the builder are in a folder of root's; root does nothing within them.
    install -d -m 755 "$workshop"
    install -d -m 700 -o "$builder" -g "$builder" "$workshop"/{home,home/tmp,source,target}
    # The build uses a copy: the shared folder is closed to this user, and does not support locks.
    tar -C "${repo:?}" -cf - "${build_sources[@]}" | as_user "$builder" tar -C "$workshop/source" -xf -
}

make_builder() {
    id "$builder" >/dev/null 2>&1 ||
        useradd --system --user-group --home-dir "$workshop/home" --no-create-home --shell /usr/sbin/nologin "$builder"
}

# clear_builder: removes jobs and files that a build has left, and ends its processes.
clear_builder() {
    rm -f "/var/lib/systemd/linger/$builder"
    remove_of_builder /var/spool/cron
    # One call ends all processes.
    as_user "$builder" bash -c 'kill -KILL -1' 2>/dev/null || true
    remove_of_builder /tmp /var/tmp /dev/shm
}

# remove_of_builder FOLDER…: removes the builder's files. find fails if other users remove theirs meanwhile, so a second
# search checks that no file of the builder is left.
remove_of_builder() {
    local folder
    for folder in "$@"; do
        [[ -d $folder ]] || continue
        find "$folder" -xdev -user "$builder" -delete 2>/dev/null || true
        [[ -z $(find "$folder" -xdev -user "$builder" 2>/dev/null) ]] ||
            die "files that the build has left in $folder cannot be removed"
    done
}

# end_build: removes everything of the build except the programs that were kept.
end_build() {
    clear_builder
    remove_swap
    rm -rf "$workshop"
}

# as_builder FUNCTION: runs the function as the builder.
as_builder() (
    cd "$workshop" || exit
    as_user "$builder" env "PATH=$builder_path$PATH" "HOME=$workshop/home" "TMPDIR=$workshop/home/tmp" \
        "workshop=$workshop" "jobs=$(build_jobs)" bash -c "$(declare -f "$1"); set -eu; $1" </dev/null
)

build_in_copy() {
    cd "$workshop/source" || exit
    # Without --quiet cargo prints a line for each crate.
    CARGO_TARGET_DIR=$workshop/target cargo build --release --locked --quiet --jobs "$jobs"
}

# build_jobs: prints the number of processors, limited so that each job has 0.9 GB: the last step of a program, which
# optimizes all its crates together, takes 0.6 GB, and the compiler itself 0.2 GB.
build_jobs() {
    local jobs processors
    jobs=$(awk '$1 == "MemTotal:" { print int($2 / 900000) }' /proc/meminfo)
    processors=$(nproc)
    ((jobs < processors)) || jobs=$processors
    echo $((jobs < 1 ? 1 : jobs))
}

# free_memory_to_build: makes a swap file on a small machine for the time of the build; a container cannot have one.
free_memory_to_build() {
    local kilobytes
    kilobytes=$(awk '$1 ~ /^(MemAvailable|SwapFree):$/ { sum += $2 } END { print sum }' /proc/meminfo)
    ((kilobytes < 1800000)) && ! systemd-detect-virt --quiet --container || return 0
    step 'Make a swap file for the build' make_swap
}

swap=$state/swap

make_swap() {
    remove_swap
    # A swap file cannot have holes.
    install -m 600 /dev/null "$swap"
    dd if=/dev/zero of="$swap" bs=1M count=2048 status=none
    mkswap "$swap"
    swapon "$swap"
}

remove_swap() {
    ! grep -qF "$swap" /proc/swaps || swapoff "$swap"
    rm -f "$swap"
}

# The programs that are built and kept on the host; the list in the Vagrantfile must be equal.
built_programs=(api-gateway inventory-api billing-api billing-consumer billing-dead-letters)

# keep_built SOURCE: keeps the built programs. The stamp is written last, since it shows that the folder is complete. The
# programs are read as the builder, who may have put links in their place.
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

# provide_compiler: installs Debian's compiler if it is new enough for this workspace; otherwise rustup installs the
# toolchain of rust-toolchain.toml.
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

# new_enough_cargo: whether the system's cargo, which all users have, is new enough; rustup's does not count.
new_enough_cargo() {
    local version
    version=$(/usr/bin/cargo --version 2>/dev/null) || return 1
    at_least "$(cut -d ' ' -f 2 <<<"$version")" "$(minimum_rust)"
}

# cargo_package: prints the package with a cargo that is new enough. Debian's package cargo-web is newer than cargo, since
# browsers need it.
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
