# The newer Podman and Buildah with a container's own ids, id-mapped volumes and additional image
# stores, as root in a separate root file system. Prints the output of the containers.
#
#   podman_5_scenario.sh NAME [MOUNT-PROGRAM]
#
# /exchange/plain.tar is an image; NAME: the store's directory below /exchange. Without a mount
# program the kernel's overlay mounts. With one, which is Vellum's, images that /exchange/vellum
# exports are read, too.
set -eu
export LC_ALL=C.UTF-8 PODMAN_IGNORE_CGROUPSV1_WARNING=1
name=$1 program=${2:-}
here=/exchange/$name
export TMPDIR=$here/tmp
mkdir -p "$TMPDIR" "/run/$name"
# Ids for --userns=auto, in this mount namespace only. Ranges are looked up only for existing users.
{ cat /etc/passwd; echo "containers:x:61999:61999::/nonexistent:/usr/sbin/nologin"; } > /run/passwd
mount --bind /run/passwd /etc/passwd
for file in subuid subgid; do
    [ -e "/etc/$file" ] || : > "/etc/$file"
    echo "containers:2000000000:1000000" > "/run/$file"
    mount --bind "/run/$file" "/etc/$file"
done
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > "$here/policy.json"
ulimits="--ulimit nofile=1000:1000 --ulimit nproc=1000:1000"
limits="--network none $ulimits"
image=localhost/plain:1
# A tool on the store named second, with further options.
on() {
    tool=$1 store=$here/$2
    shift 2
    set -- --root "$store" --runroot "/run/$name/${store##*/}" --storage-driver overlay "$@"
    [ "$tool" = buildah ] || set -- --runtime runc --cgroup-manager cgroupfs --events-backend file --tmpdir "/run/$name/tmp" "$@"
    timeout 120 "$tool" "$@"
}
# Podman's own clean-up after an ended container may still be running.
surely() {
    for try in $(seq 30); do
        ! "$@" > /dev/null 2> "/run/$name/complaint" || return 0
        sleep 1
    done
    cat "/run/$name/complaint" >&2
    return 1
}
fuse=
[ -z "$program" ] || fuse="--storage-opt overlay.mount_program=$program"
own() { on podman own $fuse "$@"; }
build() { on buildah own $fuse "$@"; }
step() { printf '== %s\n' "$1"; }
see="stat -c '%n %a %u %g' /new /inner /inner/file /etc /etc/passwd /bin/busybox"
script="stat -c '%u %g' /bin/busybox; echo x > /new; chown 3:4 /new; chmod 4755 /new; mkdir /inner; echo y > /inner/file; chown 5:6 /inner/file
    echo more >> /etc/passwd; [ ! -e /srv ] || rm -r /srv"
removed="[ -e /srv ] && echo not removed || echo removed"

own load --quiet --input /exchange/plain.tar > /dev/null
# In the last one, container ids and host ids overlap.
for ids in "--uidmap 0:100000:65536 --gidmap 0:100000:65536" --userns=auto "--uidmap 0:1000:60000 --gidmap 0:1000:60000"; do
    step "$ids"
    own run $limits $ids --name box $image sh -c "$script; $see; while read -r in out many; do [ \$out = 0 ] && echo not mapped || echo mapped; done < /proc/self/uid_map"
    own diff box | grep -v -x -e 'A /etc/mtab' | sort
    own commit --quiet box localhost/mine:1 > /dev/null
    own run --rm $limits localhost/mine:1 sh -c "$see; cat /new /inner/file; $removed"
    own run --rm $limits $ids localhost/mine:1 sh -c "$see"
    step again
    own start --attach box 2> /dev/null | tail -n 1
    own commit --quiet box localhost/mine:2 > /dev/null
    own run --rm $limits localhost/mine:2 sh -c "$see; $removed"
    step live
    own run $limits $ids --detach --name live $image sh -c "$script; echo done > /done; sleep 1000" > /dev/null
    surely own exec live cat /done
    own commit --quiet live localhost/mine:3 > /dev/null
    own run --rm $limits localhost/mine:3 sh -c "$see; cat /done"
    own export live | tar --numeric-owner -tvf - | grep -e ' new$' -e ' inner' | sed 's/  */ /g' | cut -d' ' -f1-3,6- | sort
    surely own rm --force --time 0 live
    surely own rm --force box
    surely own rmi --force localhost/mine:1 localhost/mine:2 localhost/mine:3
done

step buildah
working=$(build from $ulimits --quiet --signature-policy "$here/policy.json" --userns-uid-map 0:100000:65536 --userns-gid-map 0:100000:65536 $image)
build run --isolation oci --runtime runc --network none "$working" -- sh -c "$script; $see"
build commit --quiet --signature-policy "$here/policy.json" "$working" localhost/mine:4 > /dev/null
own run --rm $limits localhost/mine:4 sh -c "$see"
surely build rm "$working"
surely own rmi --force localhost/mine:4

step idmap
# A host directory with the container's ids, in a container with its own ids.
mkdir -p "$here/volume"
own run --rm $limits --userns=auto -v "$here/volume:/data:idmap" $image sh -c 'echo v > /data/file; chown 5:6 /data/file; stat -c "%u %g" /data/file'
stat -c '%u %g' "$here/volume/file"

step 'additional store'
for by in "$fuse" ""; do
    on podman reader $by --storage-opt "overlay.imagestore=$here/own" images --format '{{.Repository}} {{.ReadOnly}}'
    for ids in "" --userns=auto; do
        on podman reader $by --storage-opt "overlay.imagestore=$here/own" run --rm $limits $ids $image sh -c 'echo y > /etc/new; cat /etc/new /odd/links/first; stat -c "%u %g" /odd'
    done
    surely on podman reader $by --storage-opt "overlay.imagestore=$here/own" rm --all --force
    rm -rf --one-file-system "${here:?}/reader"
done
surely own rmi --all --force

vellum() { /exchange/vellum --root "$here/store" --run-dir "/run/$name/vellum" "$@" > /dev/null; }
reader() { on podman reader --storage-opt "overlay.imagestore=$here/shared" "$@"; }
for driver in ${program:+overlay2 overlay native}; do
    step "exported, $driver"
    vellum --storage-driver "$driver" load --quiet --tag $image /exchange/plain.tar
    vellum export containers-storage "$here/shared"
    reader images --format '{{.Repository}}:{{.Tag}} {{.ReadOnly}}'
    reader run --name box $limits $image sh -c 'ls /odd /usr/share/doc; echo new > /etc/new; rm /etc/group'
    reader diff box | grep -e /etc/new -e /etc/group | sort
    reader commit --quiet box localhost/mine:1 > /dev/null
    reader run --rm $limits localhost/mine:1 sh -c 'cat /etc/new; ls -d /etc/group 2> /dev/null || echo gone'
    for tag in plain mine; do
        reader save --quiet --format docker-archive --output "$here/saved.tar" localhost/$tag:1
        vellum --storage-driver "$driver" load --quiet --tag localhost/back:1 "$here/saved.tar"
        rm "$here/saved.tar"
    done
    # Its own check of a store, tar-splits and digests included.
    reader system check | sed 's/[0-9a-f]\{64\}/ID/g'
    surely reader rm --all --force
    surely reader rmi --force localhost/mine:1
    vellum export containers-storage "$here/shared" --remove
    vellum rmi localhost/back:1 $image
    vellum gc
    rm -rf --one-file-system "${here:?}/reader" "${here:?}/store"
done
grep "$here/" /proc/self/mounts | grep -v -e "$here/own/overlay " -e "$here/reader/overlay " || echo "no mount is left"
