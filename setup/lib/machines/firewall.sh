# shellcheck shell=bash
# The firewall of a machine. It accepts SSH from the host and the services of the machine's role, and rejects every
# other packet with an answer, since a client whose packets are dropped would wait. nftables.service loads the rules
# at every start, before the network is up.

# provide_firewall RULE…: each RULE is a line of nftables that accepts packets.
provide_firewall() {
    step 'Close all ports but those of this machine' load_firewall "$@"
}

load_firewall() {
    foreign_file /etc/nftables.conf | stop_at_foreign || exit
    if firewall_rules "$@" | write_if_new /etc/nftables.conf 755 || ! firewall_loaded; then
        nft -f /etc/nftables.conf
    fi
    systemctl is-enabled --quiet nftables || systemctl enable --quiet nftables
    # "systemctl status nftables" then shows the state of the firewall.
    systemctl is-active --quiet nftables || systemctl start nftables
}

# from_monitoring PORT_KEY…: prints the rule that accepts the machine that collects metrics, if there is one.
from_monitoring() {
    local key ports=()
    [[ -n ${SETTINGS[MONITORING_IP]:-} ]] || return 0
    for key in "$@"; do
        ports+=("${SETTINGS[$key]}")
    done
    echo "ip saddr ${SETTINGS[MONITORING_IP]} tcp dport { $(IFS=, && echo "${ports[*]}") } accept"
}

# to_service PORT_KEY: prints the rules for clients of a service. Without keys all are accepted. With keys in force
# only the gateway and the machine that collects metrics are, and nobody over IPv6, since the machines have no IPv6
# addresses.
to_service() {
    if [[ -z ${SETTINGS[API_KEYS_FILE]:-} ]]; then
        echo "tcp dport ${SETTINGS[$1]} accept"
    else
        echo "ip saddr ${SETTINGS[GATEWAY_VM_IP]} tcp dport ${SETTINGS[$1]} accept"
        from_monitoring "$1"
    fi
}

# from_host PORTS: prints the rules that accept the computer on which the machines run, and not the machines, since an
# attacker may control one of them. The computer has the first address of their network, and with NAT the address of
# the default gateway. A machine with one network card accepts all addresses except those of the other two machines.
from_host() {
    local card='' way='' way_card=''
    card=$(ip -oneline -4 address show to "${machine_address:?}" | awk '{ print $2; exit }')
    read -r way way_card < <(ip -4 route show default | awk '{ print $3, $5; exit }') || true
    if [[ -n $card && -n $way_card && $card != "$way_card" ]]; then
        echo "iifname \"$card\" ip saddr ${machine_address%.*}.1 tcp dport { $1 } accept"
        echo "iifname \"$way_card\" ip saddr $way tcp dport { $1 } accept"
    else
        echo "ip saddr != { $(other_machines) } tcp dport { $1 } accept"
        echo "ip6 saddr != fe80::/10 tcp dport { $1 } accept"
    fi
}

other_machines() {
    local key
    for key in GATEWAY_VM_IP INVENTORY_VM_IP BILLING_VM_IP; do
        [[ ${SETTINGS[$key]} == "$machine_address" ]] || echo "${SETTINGS[$key]}"
    done | paste -sd ,
}

firewall_loaded() {
    nft list table inet crud_master >/dev/null 2>&1
}

# firewall_rules RULE…: prints these rules and that for SSH, without which nobody could repair the machine.
firewall_rules() {
    cat <<RULES
#!/usr/sbin/nft -f
# Made by setup/lib/machines/firewall.sh of crud-master; provisioning writes it anew.
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

$(printf '%s\n' "$(from_host "$(ssh_ports)")" "$@" | sed 's/^./        &/')

        meta l4proto tcp reject with tcp reset
        reject
    }
}
RULES
}

# ssh_ports: prints the ports of sshd, which may differ from 22.
ssh_ports() {
    local ports
    ports=$(sshd -T 2>/dev/null | awk '$1 == "port" { print $2 }' | paste -sd ,) || true
    echo "${ports:-22}"
}
