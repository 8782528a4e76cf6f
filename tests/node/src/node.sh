# Process 1 of a private node. It runs in its own mount, network, pid, uts and ipc namespaces, and lives as long as its standard
# input: when the test drops the pipe or dies, this shell ends and the kernel ends everything in the pid namespace.
#
# usage: sh node.sh <node dir>   (stdin: the pipe that holds the node alive)
set -eu
dir=$1

mount --make-rprivate /
# What a real machine loses at a reboot: namespaces' bind mounts, shims' sockets, containerd's state, the xtables lock.
mount -t tmpfs tmpfs /run
mkdir -p /run/netns
# What it keeps: the CNI result cache and host-local's address leases. /var/lib/cni may not exist here and must not be
# created on the host, hence the tmpfs on its parent.
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/cni "$dir/var-lib-cni"
mount --bind "$dir/var-lib-cni" /var/lib/cni
hostname "$(basename "$dir")"
ip link set lo up

# containerd is restarted when it ends, as a service manager would. It is a grandchild: shims that it leaves behind become
# children of process 1, which reaps them in the `wait` below.
exec 3<&0 </dev/null
(
    exec 3<&-
    while :; do
        containerd -c "$dir/containerd.toml" >>"$dir/containerd.log" 2>&1 &
        echo $! >"$dir/containerd.pid"
        wait $! || true
        sleep 0.2
    done
) &
cat <&3 >/dev/null &
wait $!
