#!/usr/bin/env bash
# base.sh FOLDER [RELEASE]: what a Vagrant box has, as a folder: a small Debian with systemd,
# sshd, the user vagrant with the well-known key, and sudo. Packages come from where this
# machine gets its own; a certificate authority that this machine trusts is trusted there too,
# for networks that need it. The product's scripts know nothing of either.
set -euo pipefail

# The folder for temporary files is one of this machine, not of the box.
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

# debian_sources: this machine's own entries for Debian itself, for the release in question;
# other repositories are none of a fresh box's business.
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
    # Node brings a list of its own.
    echo 'cafile=/etc/ssl/certs/ca-certificates.crt' >"$folder/root/.npmrc"
}

main
