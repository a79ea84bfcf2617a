# shellcheck shell=bash
# What may come in to a machine: SSH, and what its role offers. Everything else is refused, and
# told so, since a packet that is only dropped leaves people waiting. nftables.service loads the
# rules at every start, before the network is up.

# provide_firewall RULE…: lines of nftables, each of which lets something in.
provide_firewall() {
    step 'Close all ports but those of this machine' load_firewall "$@"
}

load_firewall() {
    foreign_file /etc/nftables.conf | stop_at_foreign || exit
    if firewall_rules "$@" | write_if_new /etc/nftables.conf 755 || ! firewall_loaded; then
        nft -f /etc/nftables.conf
    fi
    systemctl is-enabled --quiet nftables || systemctl enable --quiet nftables
    # So that systemd knows of it, and "systemctl status nftables" says what is the case.
    systemctl is-active --quiet nftables || systemctl start nftables
}

# from_monitoring PORT_KEY…: the rule that lets in the machine that collects metrics, if there is one.
from_monitoring() {
    local key ports=()
    [[ -n ${SETTINGS[MONITORING_IP]:-} ]] || return 0
    for key in "$@"; do
        ports+=("${SETTINGS[$key]}")
    done
    echo "ip saddr ${SETTINGS[MONITORING_IP]} tcp dport { $(IFS=, && echo "${ports[*]}") } accept"
}

firewall_loaded() {
    nft list table inet crud_master >/dev/null 2>&1
}

# firewall_rules RULE…: SSH stays open to all: it is the only way to mend anything, and Vagrant
# comes over the NAT card.
firewall_rules() {
    cat <<RULES
#!/usr/sbin/nft -f
# Made by setup/lib/firewall.sh of crud-master; provisioning writes it anew.
# Rules of others stay: the first line makes sure that there is a table to delete.
table inet crud_master
delete table inet crud_master

table inet crud_master {
    chain input {
        type filter hook input priority filter; policy drop;

        iifname "lo" accept
        ct state established,related accept
        ct state invalid drop
        meta l4proto { icmp, icmpv6 } accept
        udp dport { 68, 546 } accept comment "DHCP"
        tcp dport { $(ssh_ports) } accept

$(printf '        %s\n' "$@")

        meta l4proto tcp reject with tcp reset
        reject
    }
}
RULES
}

# ssh_ports: where sshd listens, which need not be 22.
ssh_ports() {
    local ports
    ports=$(sshd -T 2>/dev/null | awk '$1 == "port" { print $2 }' | paste -sd ,) || true
    echo "${ports:-22}"
}
