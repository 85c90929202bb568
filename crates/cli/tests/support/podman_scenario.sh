# Common work with Podman and Buildah, on a separate store; prints everything that must not depend
# on the mount program.
#
#   podman_scenario.sh DIR RUN ARCHIVE [MOUNT-PROGRAM]
#
# DIR: where the store goes. RUN: a short directory for sockets and state. ARCHIVE: the small image.
# RUNTIME runs the containers (runc). Without a mount program the kernel's overlay mounts. Times in
# layers are pinned where diff ids are printed.
set -eu
export LC_ALL=C.UTF-8
dir=$1 run=$2 archive=$3 program=${4:-}
mkdir -p "$dir" "$run"
export TMPDIR="$dir"
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > "$dir/policy.json"
storage() {
    set -- "$@" --root "$dir/store" --runroot "$run/r" --storage-driver overlay
    [ -z "$program" ] || set -- "$@" --storage-opt "overlay.mount_program=$program"
    printf '%s\n' "$@"
}
# shellcheck disable=SC2046 # splitting is intended
podman() {
    timeout 120 podman $(storage) --tmpdir "$run/t" --runtime "${RUNTIME:-runc}" --cgroup-manager cgroupfs --events-backend file "$@"
}
# shellcheck disable=SC2046
buildah() { timeout 120 buildah $(storage) "$@"; }
export PODMAN_IGNORE_CGROUPSV1_WARNING=1
ulimits="--ulimit nofile=1000:1000 --ulimit nproc=1000:1000"
limits="--network none $ulimits"
# Podman's own clean-up after an ended container may still be running.
surely() {
    for try in $(seq 30); do
        ! "$@" > /dev/null 2> "$dir/complaint" || return 0
        sleep 1
    done
    cat "$dir/complaint" >&2
    return 1
}
step() { printf '== %s\n' "$1"; }
# Prints a tar's content: names, modes, owners, sizes and links, no times; and one sum over the
# content of its files. Files that runtimes add are left out.
own='\(\./\)\?\(proc\|sys\|dev\|run\|etc/hosts\|etc/resolv.conf\|etc/hostname\|etc/mtab\)'
picture() {
    tar --numeric-owner -tvf "$1" | sed 's/  */ /g' | cut -d' ' -f1-3,6- | grep -v -e " $own\(/\|\$\| ->\)" -e ' \(\./\)\?etc/$' | LC_ALL=C sort -k4 > "$dir/names" || true
    cat "$dir/names"
    tar -xOf "$1" --exclude 'run/*' --exclude 'etc/host*' --exclude 'etc/resolv.conf' 2> /dev/null | sha256sum
}

step load
image=$(podman load --quiet --input "$archive" 2> /dev/null | sed 's/.*: //')
podman images --format '{{.Repository}}:{{.Tag}} {{.Size}} {{.ReadOnly}}'
podman image inspect --format '{{.RootFS.Layers}}' "$image"

step run
podman run $limits --name box "$image" sh -c '
    echo changed > /etc/new; chmod 600 /etc/passwd; [ -e /usr/share/moved ] || mv /usr/share/vellum /usr/share/moved
    rm -r /srv/*; echo x > /srv/x; mkdir -p /data/sub; ln -sf ../x /data/sub/link
    [ -e /data/fifo ] || mkfifo /data/fifo; chown 7:8 /data/sub; chmod 2755 /data/sub; dd if=/dev/zero of=/data/big bs=64k count=40 2> /dev/null
    [ -e /data/twin ] || ln /data/big /data/twin; rm -f /etc/group; echo "it ran"'
# The configured program really does the mounting.
shown=$(podman run --rm $limits "$image" sh -c 'while read -r a b type rest; do [ "$b" != / ] || echo "$type"; done < /proc/mounts' | tail -n 1)
[ "$shown" = "$([ -z "$program" ] && echo overlay || echo fuse.fuse-overlayfs)" ]
step exec
podman run $limits --detach --name live "$image" sleep 1000 > /dev/null
podman exec live sh -c 'echo inside > /tmp/file; cat /tmp/file; rm -r /odd; ls /'
podman cp live:/tmp/file "$dir/copied"
cat "$dir/copied"
podman exec live sh -c 'ls -d /odd 2> /dev/null || echo gone'
podman diff live | sort
podman kill live > /dev/null
surely podman rm --force live
step diff
podman diff box | sort
step commit
podman commit --quiet box localhost/mine:1 > /dev/null
podman run --rm $limits localhost/mine:1 sh -c 'cat /etc/new /srv/x; ls /usr/share /data /data/sub; stat -c "%a %u %g %h" /etc/passwd /data/sub /data/big; ls /etc/group 2> /dev/null || echo no group'
podman diff localhost/mine:1 | sort
podman run $limits --name again localhost/mine:1 sh -c 'echo again >> /etc/new; rm -r /data/sub'
# A comparing walk lists the directory above a change as well.
podman diff again | grep -v -x 'C /etc' | sort
podman start --attach box
podman restart --time 0 box > /dev/null
step export
podman export --output "$dir/box.tar" again
picture "$dir/box.tar"
step save
podman save --quiet --format oci-dir --output "$dir/saved" localhost/mine:1 > /dev/null
layer=$(podman image inspect --format '{{range .RootFS.Layers}}{{println .}}{{end}}' localhost/mine:1 | grep . | tail -n 1)
for blob in "$dir"/saved/blobs/sha256/*; do
    [ "sha256:$( (gzip -dcf "$blob") | sha256sum | cut -d' ' -f1)" = "$layer" ] || continue
    echo "the saved layer has the recorded diff id"
    gzip -dcf "$blob" > "$dir/layer.tar"
    picture "$dir/layer.tar"
done
surely podman rm --force box again

# The content of an image's layers above its base. (The ids of layers created by RUN depend on more
# than the changes: see docs/overlay.md.)
new_layers() {
    podman save --quiet --format oci-dir --output "$dir/saved-$2" "$1" > /dev/null
    for diff in $(podman image inspect --format '{{range .RootFS.Layers}}{{println .}}{{end}}' "$1" | grep . | tail -n "+$((base + 1))"); do
        for blob in "$dir/saved-$2"/blobs/sha256/*; do
            [ "sha256:$(gzip -dcf "$blob" | sha256sum | cut -d' ' -f1)" = "$diff" ] || continue
            gzip -dcf "$blob" > "$dir/layer.tar"
            picture "$dir/layer.tar"
        done
    done
}
base=$(podman image inspect --format '{{len .RootFS.Layers}}' "$image")
step build
mkdir -p "$dir/context/tree/a"
echo one > "$dir/context/tree/a/one"
echo two > "$dir/context/tree/two"
cat > "$dir/context/Containerfile" << END
FROM $image
COPY tree /tree
RUN rm -r /odd/links && echo fresh > /odd/file
RUN mv /tree/a /tree/b && chmod 700 /tree && rm /tree/two && echo third > /tree/third && ln /tree/third /tree/fourth
RUN echo add >> /etc/passwd
WORKDIR /tree/b
CMD ["cat", "one"]
END
podman build $ulimits --quiet --isolation chroot --layers --timestamp 0 --tag localhost/built:1 "$dir/context" > /dev/null
podman image inspect --format '{{range .RootFS.Layers}}{{println .}}{{end}}' localhost/built:1 | head -n "$((base + 1))"
new_layers localhost/built:1 1
podman run --rm $limits localhost/built:1
podman run --rm $limits localhost/built:1 sh -c 'ls -R /tree; ls /odd; cat /odd/file /tree/third; stat -c "%a %h" /tree /tree/third; tail -n 1 /etc/passwd'
step cached
echo 'RUN rm -r /tree/b /usr/share/vellum && mkdir /usr/share/vellum && echo last > /usr/share/vellum/last' >> "$dir/context/Containerfile"
podman build $ulimits --isolation chroot --layers --timestamp 0 --tag localhost/built:2 "$dir/context" 2>&1 | grep -c 'Using cache'
podman run --rm $limits --workdir / localhost/built:2 sh -c 'ls -a /usr/share/vellum /tree'
step buildah
working=$(buildah from $ulimits --quiet --signature-policy "$dir/policy.json" "$image")
buildah run --isolation chroot "$working" -- sh -ec 'mkdir /made; echo by buildah > /made/file; rm -r /odd/links; chmod 1777 /srv'
buildah copy --quiet "$working" "$dir/context/tree" /copied > /dev/null
buildah config --cmd 'cat /made/file' "$working"
buildah commit --quiet --signature-policy "$dir/policy.json" --timestamp 0 "$working" localhost/worked:1 > /dev/null
new_layers localhost/worked:1 2
podman run --rm $limits localhost/worked:1
surely buildah rm "$working"
step rm
surely podman rm --all --force
surely podman rmi --all --force
ls "$dir/store/overlay" | grep -v -x -e l -e '\.has-mount-program' || echo "no tree is left"
grep "$dir" /proc/self/mounts | grep -v "$dir/store/overlay " || echo "no mount is left"
[ "$(id -u)" = 0 ] || podman system migrate
