# What the newer Podman does beyond the common scenario, as root in a root of its own: containers with ids of their own, additional image
# stores, Vellum's exported images. Prints what the containers said.
#
#   podman_5_scenario.sh    (/exchange/plain.tar: an image; /exchange/fuse-overlayfs and /exchange/vellum: Vellum's program)
set -eu
export LC_ALL=C.UTF-8 PODMAN_IGNORE_CGROUPSV1_WARNING=1 TMPDIR=/exchange/tmp
mkdir -p "$TMPDIR"
# Ids for --userns=auto, in this mount namespace only.
for file in subuid subgid; do
    [ -e "/etc/$file" ] || : > "/etc/$file"
    echo "containers:2000000000:1000000" > "/run/$file"
    mount --bind "/run/$file" "/etc/$file"
done
limits="--network none --ulimit nofile=1000:1000 --ulimit nproc=1000:1000"
image=localhost/plain:1
# podman on the store named first, with further options until `--`.
on() {
    store=/exchange/$1
    shift
    set -- --root "$store" --runroot "/run/${store##*/}" --storage-driver overlay --runtime runc --cgroup-manager cgroupfs --events-backend file "$@"
    timeout 120 podman "$@"
}
# Podman's own clean-up behind an ended container may still be at it.
surely() {
    for try in $(seq 30); do
        ! "$@" > /dev/null 2> /run/complaint || return 0
        sleep 1
    done
    cat /run/complaint >&2
    return 1
}
fuse="--storage-opt overlay.mount_program=/exchange/fuse-overlayfs"
own() { on own $fuse "$@"; }
step() { printf '== %s\n' "$1"; }
script="stat -c '%u %g' /bin/busybox; echo x > /new; chown 3:4 /new; chmod 4755 /new; rm -r /srv; stat -c '%a %u %g' /new; ls -d /srv 2> /dev/null || echo gone"

own load --quiet --input /exchange/plain.tar > /dev/null
for ids in "--uidmap 0:100000:65536 --gidmap 0:100000:65536" --userns=auto; do
    step "$ids"
    own run $limits $ids --name box $image sh -c "$script; while read -r in out many; do [ \$out = 0 ] && echo not mapped || echo mapped; done < /proc/self/uid_map"
    own diff box | grep -x -e 'A /new' -e 'D /srv' -e '. /bin.*' | sort
    own commit --quiet box localhost/mine:1 > /dev/null
    own run --rm $limits localhost/mine:1 stat -c '%a %u %g' /new /bin/busybox
    own run --rm $limits $ids localhost/mine:1 stat -c '%a %u %g' /new /bin/busybox
    own start --attach box | head -n 1
    surely own rm --force box
    surely own rmi --force localhost/mine:1
done
step idmap
# A directory of the host's with the container's ids, on a container with ids of its own.
mkdir -p /exchange/volume
own run --rm $limits --userns=auto -v /exchange/volume:/data:idmap $image sh -c 'echo v > /data/file; chown 5:6 /data/file; stat -c "%u %g" /data/file'
stat -c '%u %g' /exchange/volume/file

step 'additional store'
for by in "$fuse" ""; do
    on reader $by --storage-opt overlay.imagestore=/exchange/own images --format '{{.Repository}} {{.ReadOnly}}'
    on reader $by --storage-opt overlay.imagestore=/exchange/own run --rm $limits $image sh -c 'echo y > /etc/new; cat /etc/new /odd/links/first'
    on reader $by system reset --force > /dev/null 2>&1 || true
    rm -rf --one-file-system /exchange/reader
done
surely own rmi --all --force

vellum() { /exchange/vellum --root /exchange/store --run-dir /run/vellum "$@"; }
for driver in overlay2 overlay native; do
    step "exported, $driver"
    vellum --storage-driver $driver load --quiet --tag $image /exchange/plain.tar > /dev/null
    vellum --quiet export containers-storage /exchange/shared
    reader() { on reader --storage-opt overlay.imagestore=/exchange/shared "$@"; }
    reader images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}'
    reader run --name box $limits $image sh -c 'ls /odd /usr/share/doc; echo new > /etc/new; rm /etc/group'
    reader diff box | grep -e /etc/new -e /etc/group | sort
    reader commit --quiet box localhost/mine:1 > /dev/null
    reader run --rm $limits localhost/mine:1 sh -c 'cat /etc/new; ls -d /etc/group 2> /dev/null || echo gone'
    for name in plain mine; do
        reader save --quiet --format docker-archive --output /exchange/saved.tar localhost/$name:1
        vellum --storage-driver $driver load --quiet --tag localhost/back:1 /exchange/saved.tar > /dev/null
        rm /exchange/saved.tar
    done
    # Its own check of a store, tar-splits and digests included.
    reader system check | sed 's/[0-9a-f]\{64\}/ID/g'
    surely reader rm --all --force
    surely reader rmi --force localhost/mine:1
    vellum export containers-storage /exchange/shared --remove
    vellum rmi localhost/back:1 $image > /dev/null
    vellum gc > /dev/null
    rm -rf --one-file-system /exchange/reader /exchange/store
done
grep /exchange/ /proc/self/mounts | grep -v -e /exchange/own/overlay -e /exchange/reader/overlay || echo "no mount is left"
