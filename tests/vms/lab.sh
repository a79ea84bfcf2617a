#!/usr/bin/env bash
# Machines for the Vagrantfile without VirtualBox: containers with systemd as process 1, which need only util-linux,
# iproute2 and slirp4netns. Each machine has two network cards, as with VirtualBox: eth0 behind NAT, with forwarded
# ports, and eth1 on the private network, a bridge in a network namespace of its own, whose address .1 is the host.
#
# Only run.sh and provider.rb call this script, as root.
# shellcheck source-path=SCRIPTDIR/../..
set -euo pipefail

lab=${VMLAB:?names the folder of the lab}
network=crud-master-lab
bridge=br56

usage() {
    cat <<'USAGE'
Machines of the VM test, in the folder that VMLAB names.

  lab.sh net | netdown                       makes and removes the private network
  lab.sh up NAME ADDRESS MEGABYTES PORTS     PORTS: HOST_ADDRESS:HOST_PORT:GUEST_PORT,…
  lab.sh start | halt | reboot | destroy NAME
  lab.sh cut NAME                            cuts the power
  lab.sh exec NAME COMMAND…                  runs the command as root
  lab.sh host COMMAND…                       runs the command in the private network, as on the host
  lab.sh in-use | limit | out-of-memory NAME  bytes; megabytes; processes ended for lack of memory
USAGE
}

# The network

net() {
    ip netns add "$network"
    ip -n "$network" link set lo up
    ip -n "$network" link add "$bridge" type bridge
    ip -n "$network" link set "$bridge" up
}

netdown() {
    ip netns delete "$network"
}

host() {
    exec ip netns exec "$network" "$@"
}

# A machine's life

# up NAME ADDRESS MEGABYTES PORTS: starts a machine, which writes to a layer over the base image.
up() {
    local home=$lab/machines/$1
    mkdir -p "$home"/{upper/etc,work,root}
    printf 'address=%s\nmegabytes=%s\nports=%s\n' "$2" "$3" "$4" >"$home/machine"
    echo "$1" >"$home/upper/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$1" >"$home/upper/etc/hosts"
    echo 'nameserver 10.0.2.3' >"$home/upper/etc/resolv.conf"
    ip -n "$network" address replace "${2%.*}.1/24" dev "$bridge"
    start "$1"
}

start() {
    boot "$1"
    wait_until_up "$1"
}

boot() {
    local home=$lab/machines/$1 address megabytes ports pid
    # shellcheck source=/dev/null
    source "$home/machine"
    groups_make "$1" "$megabytes"
    setsid "$0" container "$1" </dev/null >"$home/container.log" 2>&1 &
    echo "$!" >"$home/unshare.pid"
    # Before the process executes "unshare" it is this script, with children of its own.
    until [[ $(<"/proc/$(<"$home/unshare.pid")/comm") == unshare ]] &&
        pid=$(pgrep -P "$(<"$home/unshare.pid")"); do
        kill -0 "$(<"$home/unshare.pid")" || fail "$1 did not start" "$home/container.log"
        sleep 0.05
    done
    echo "$pid" >"$home/pid"
    plug_private "$pid" "$address"
    plug_nat "$home" "$pid" "$ports"
}

# container NAME: executes "unshare", whose child becomes the machine's process 1.
container() {
    local group groups
    # A pipe is not used, since its child would still run beside the machine's process 1.
    groups=$(groups_of "$1")
    while read -r group; do
        echo "$$" >"$group/cgroup.procs"
    done <<<"$groups"
    exec unshare --mount --pid --fork --net --uts --ipc --cgroup --propagation private \
        "$0" init "$1"
}

# init NAME: mounts the file systems that systemd expects, and executes systemd. The kernel's settings are read-only except
# those of the machine's own network.
init() {
    local name=$1 home=$lab/machines/$1 root=$lab/machines/$1/root device
    mount -t overlay overlay \
        -o "lowerdir=$lab/base,upperdir=$home/upper,workdir=$home/work" "$root"
    mount -t proc proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
    mount -o remount,bind,ro "$root/proc/sys"
    meminfo "$name" >"$home/meminfo"
    mount --bind "$home/meminfo" "$root/proc/meminfo"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty; do
        mknod -m 666 "$root/dev/$device" c "$(stat -c '0x%t' "/dev/$device")" \
            "$(stat -c '0x%T' "/dev/$device")"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mkdir -p "$root/run/lock"
    ip link set lo up
    hostname "$name"
    until ip link show eth1 >/dev/null 2>&1; do
        sleep 0.05
    done

    cd "$root"
    mkdir -p .old
    pivot_root . .old
    exec <&- >/run/console.log 2>&1
    umount --lazy /.old
    exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --log-target=console --show-status=1
}

# plug_private PID ADDRESS: adds the card, whose hardware address stays through restarts, as that of a real card does. With
# a new one, the other machines would send to the old one for a while.
plug_private() {
    local port=veth${2##*.} card
    card=$(printf '08:00:27:00:56:%02x' "${2##*.}")
    # The kernel removes the card of a machine without power after some time.
    ip -n "$network" link delete "$port" 2>/dev/null || true
    ip -n "$network" link add "$port" type veth peer name eth1 address "$card" netns "$1"
    ip -n "$network" link set "$port" master "$bridge" up
    nsenter --target "$1" --net ip address add "$2/24" dev eth1
    nsenter --target "$1" --net ip link set eth1 up
}

plug_nat() {
    local home=$1 pid=$2 forward from port to
    rm -f "$home/slirp.sock"
    slirp4netns --configure --mtu=1400 --disable-host-loopback --cidr 10.0.2.0/24 \
        --api-socket "$home/slirp.sock" "$pid" eth0 </dev/null >"$home/slirp.log" 2>&1 &
    echo "$!" >"$home/slirp.pid"
    until [[ -S $home/slirp.sock ]]; do
        kill -0 "$(<"$home/slirp.pid")" || fail 'no NAT' "$home/slirp.log"
        sleep 0.05
    done
    for forward in ${3//,/ }; do
        IFS=: read -r from port to <<<"$forward"
        printf '{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_addr": "%s", "host_port": %d, "guest_port": %d}}' \
            "$from" "$port" "$to" | nc -q1 -U "$home/slirp.sock" >"$home/forward"
        ! grep -q error "$home/forward" || fail "port $port cannot be forwarded" "$home/forward"
    done
}

wait_until_up() {
    local state deadline=$((SECONDS + 90))
    until state=$(run_in "$1" systemctl is-system-running 2>/dev/null) || [[ $state == degraded ]]; do
        ((SECONDS < deadline)) || fail "$1 is not up: $state" "$lab/machines/$1/container.log"
        sleep 0.2
    done
}

halt() {
    run_in "$1" systemctl poweroff 2>/dev/null || true
    wait_until_down "$1"
    clear_away "$1"
}

reboot() {
    run_in "$1" systemctl reboot 2>/dev/null || true
    wait_until_down "$1"
    clear_away "$1"
    start "$1"
}

cut() {
    clear_away "$1"
}

destroy() {
    clear_away "$1"
    groups_remove "$1"
    rm -rf "${lab:?}/machines/${1:?}"
}

wait_until_down() {
    local pid deadline=$((SECONDS + 120))
    pid=$(<"$lab/machines/$1/pid")
    while kill -0 "$pid" 2>/dev/null; do
        ((SECONDS < deadline)) || fail "$1 does not go down" "$lab/machines/$1/container.log"
        sleep 0.1
    done
}

# clear_away NAME: ends all processes of the machine.
clear_away() {
    local home=$lab/machines/$1 pid
    for pid in slirp unshare; do
        [[ ! -f $home/$pid.pid ]] || kill "$(<"$home/$pid.pid")" 2>/dev/null || true
        rm -f "$home/$pid.pid"
    done
    # The end of process 1 ends all others; the control group counts those that have not ended yet.
    [[ ! -f $home/pid ]] || kill -KILL "$(<"$home/pid")" 2>/dev/null || true
    until group_is_empty "$unified/crud-master-lab/$1"; do
        echo 1 >"$unified/crud-master-lab/$1/cgroup.kill"
        sleep 0.05
    done
    rm -f "$home/pid"
}

run_in() (
    enter "$@"
)

# enter NAME COMMAND…: executes the command within the machine.
enter() {
    local name=$1 pid group
    shift
    pid=$(<"$lab/machines/$name/pid")
    while read -r group; do
        echo "$BASHPID" >"$group/cgroup.procs"
    done < <(groups_of "$name")
    exec nsenter --target "$pid" --mount --net --pid --uts --ipc --cgroup --root --wd \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        TERM=dumb LANG=C.UTF-8 "$@"
}

# The limits of a machine. If the kernel has control groups of both versions, version 1 limits the memory.

unified=$(findmnt --noheadings --output TARGET --types cgroup2 | head -n 1)
memory_v1=$(findmnt --noheadings --output TARGET --types cgroup --options memory | head -n 1) || true

groups_of() {
    echo "$unified/crud-master-lab/$1"
    [[ -z $memory_v1 ]] || echo "$memory_v1/crud-master-lab-$1"
}

groups_make() {
    local group limit=$(($2 * 1024 * 1024))
    while read -r group; do
        mkdir -p "$group"
    done < <(groups_of "$1")
    if [[ -n $memory_v1 ]]; then
        echo "$limit" >"$memory_v1/crud-master-lab-$1/memory.limit_in_bytes"
    else
        echo +memory >"$unified/cgroup.subtree_control"
        echo +memory >"$unified/crud-master-lab/cgroup.subtree_control"
        echo "$limit" >"$unified/crud-master-lab/$1/memory.max"
    fi
}

group_is_empty() {
    [[ ! -d $1 ]] || grep -qx 'populated 0' "$1/cgroup.events"
}

# meminfo NAME: prints /proc/meminfo for a machine of that size, which programs read to choose their limits. The control
# group enforces the size.
meminfo() {
    awk -v kilobytes="$(($(limit "$1") * 1024))" '
        $1 ~ /^Mem(Total|Free|Available):$/ { $2 = kilobytes - ($1 == "MemTotal:" ? 0 : 120000) }
        $1 ~ /^Swap/ { $2 = 0 }
        { printf "%-16s %8s %s\n", $1, $2, $3 }' /proc/meminfo
}

groups_remove() {
    local group
    while read -r group; do
        [[ ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} +
    done < <(groups_of "$1")
}

# in_use NAME: prints the memory in use without the copies of files, which the kernel would drop first.
in_use() {
    local group=$unified/crud-master-lab/$1 all=memory.current droppable=inactive_file
    if [[ -n $memory_v1 ]]; then
        group=$memory_v1/crud-master-lab-$1 all=memory.usage_in_bytes droppable=total_inactive_file
    fi
    echo $(($(<"$group/$all") - $(awk -v name="$droppable" '$1 == name { print $2 }' "$group/memory.stat")))
}

limit() {
    local megabytes
    # shellcheck source=/dev/null
    source "$lab/machines/$1/machine"
    echo "$megabytes"
}

# out_of_memory NAME: prints how many processes the kernel has ended.
out_of_memory() {
    if [[ -n $memory_v1 ]]; then
        awk '$1 == "oom_kill" { print $2 }' "$memory_v1/crud-master-lab-$1/memory.oom_control"
    else
        awk '$1 == "oom_kill" { print $2 }' "$unified/crud-master-lab/$1/memory.events"
    fi
}

# fail TEXT LOG: prints the text and the end of the log, and ends the script.
fail() {
    tail -n 20 "$2" >&2
    printf 'lab.sh: %s\n' "$1" >&2
    exit 1
}

main() {
    local command=${1:-help}
    (($# == 0)) || shift
    case $command in
        net | netdown | host | up | start | halt | reboot | cut | destroy | container | init | limit)
            "$command" "$@"
            ;;
        exec) enter "$@" ;;
        in-use) in_use "$@" ;;
        out-of-memory) out_of_memory "$@" ;;
        *) usage ;;
    esac
}

main "$@"
