#!/usr/bin/env bash
# base.sh FOLDER [RELEASE]: makes a folder with the content of a Vagrant box: a small Debian with systemd, sshd, the user
# vagrant with the well-known key, and sudo. The packages come from this machine's sources, and the box trusts this
# machine's certificate authorities, which some networks need. The project's scripts use neither.
set -euo pipefail

# TMPDIR names a folder of this machine, which the box does not have.
unset TMPDIR
folder=$1
release=${2:-bookworm}

main() {
    local key
    debian_sources | mmdebstrap --quiet --variant=minbase --include="$(packages)" \
        "$release" "$folder" -
    trust_what_this_machine_trusts

    chroot "$folder" useradd --create-home --shell /bin/bash vagrant
    echo vagrant:vagrant | chroot "$folder" chpasswd
    echo 'vagrant ALL=(ALL) NOPASSWD:ALL' >"$folder/etc/sudoers.d/vagrant"
    key=$(find -L /usr/share/vagrant* /usr/share/rubygems-integration -path '*/keys/vagrant.pub' | head -n 1)
    install -D -m 600 "$key" "$folder/home/vagrant/.ssh/authorized_keys"
    chmod 700 "$folder/home/vagrant/.ssh"
    chroot "$folder" chown -R vagrant:vagrant /home/vagrant
}

packages() {
    echo ca-certificates,curl,iproute2,systemd,systemd-sysv,dbus,openssh-server,sudo,rsync,procps,udev,kmod
}

# debian_sources: prints this machine's entries for Debian, changed to the release; a new box has no other repositories.
debian_sources() {
    local own
    own=$(. /etc/os-release && echo "$VERSION_CODENAME")
    {
        awk 'BEGIN { RS = ""; ORS = "\n\n" } /debian-archive-keyring/' \
            /etc/apt/sources.list.d/*.sources 2>/dev/null || true
        grep -hsE '^deb ([^#]*/)?[^#]*(debian|debian-security)/? ' \
            /etc/apt/sources.list /etc/apt/sources.list.d/*.list || true
    } | sed "s/\\b$own\\b/$release/g; s/\\b$own-/$release-/g"
}

trust_what_this_machine_trusts() {
    local authorities
    mapfile -t authorities < <(find /usr/local/share/ca-certificates -name '*.crt')
    ((${#authorities[@]} > 0)) || return 0
    cp "${authorities[@]}" "$folder/usr/local/share/ca-certificates/"
    chroot "$folder" update-ca-certificates >/dev/null
    # Node has a list of its own.
    echo 'cafile=/etc/ssl/certs/ca-certificates.crt' >"$folder/root/.npmrc"
}

main
