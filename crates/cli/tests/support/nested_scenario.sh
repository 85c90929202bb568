# The steps of a build in a container with Podman and Buildah, with Vellum as the mount program, on
# the container's own file system, without a volume. Prints the final content of the image.
#
#   nested_scenario.sh VELLUM [kernel]      with `kernel`, the kernel's overlay mounts
set -eu
export LC_ALL=C.UTF-8 PODMAN_IGNORE_CGROUPSV1_WARNING=1
dir=$(mktemp -d)
export XDG_RUNTIME_DIR="$dir/xdg"
mkdir -p "$dir/context/tree/dir/sub" "$dir/context/tree/gone" "$dir/context/bin" "$dir/bin" "$XDG_RUNTIME_DIR"
cp "$1" "$dir/bin/fuse-overlayfs"
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > "$dir/policy.json"
storage="--root $dir/store --runroot $dir/run --storage-driver overlay"
[ "${2:-}" = kernel ] || storage="$storage --storage-opt overlay.mount_program=$dir/bin/fuse-overlayfs"
policy="--signature-policy $dir/policy.json"
limits="--ulimit nofile=1000:1000 --ulimit nproc=1000:1000"
podman="podman $storage --cgroup-manager cgroupfs --events-backend file"
clean() {
    buildah $storage umount --all && buildah $storage rm --all
    rm -rf "$dir" || buildah $storage unshare rm -rf "$dir"
} > /dev/null 2>&1
trap clean EXIT
quietly() { "$@" > "$dir/said" 2>&1 || { cat "$dir/said" >&2; exit 1; }; }

cd "$dir/context"
cp /usr/bin/busybox bin
for name in sh rm mv chmod mkdir cat find sort stat grep cut; do ln -s busybox bin/$name; done
echo a > tree/dir/sub/file; echo b > tree/gone/file; echo c > tree/file; echo d > tree/other; chmod 750 tree/dir
cat > Containerfile <<'END'
FROM scratch
COPY bin /bin
COPY tree /tree
RUN rm -r /tree/gone; mv /tree/dir /tree/moved; chmod 700 /tree/file; echo new > /tree/new
RUN mv /tree/moved/sub /tree/sub; rm /tree/file; mkdir /tree/gone; echo more >> /tree/other
END
quietly buildah $storage bud --isolation chroot --layers $policy $limits -f Containerfile -t localhost/built .

# Changes a container of it, commits, saves and loads it again.
container=$(buildah $storage from $policy --pull-never $limits localhost/built)
quietly buildah $storage run --isolation chroot "$container" -- sh -ec 'rm -r /tree/sub; mv /tree/other /tree/last; echo 1 > /tree/committed'
quietly buildah $storage commit $policy --rm "$container" localhost/committed
quietly $podman save --quiet --output "$dir/saved.tar" localhost/committed
quietly $podman rmi --all --force
quietly $podman load --quiet --input "$dir/saved.tar"
container=$(buildah $storage from $policy --pull-never $limits localhost/committed)
buildah $storage run --isolation chroot "$container" -- sh -ec '
    grep " / " /proc/mounts | cut -d" " -f3
    cd /tree; for name in $(find . | sort); do stat -c "%n %F %a" "$name"; done
    cat last new' 2> "$dir/said" || { cat "$dir/said" >&2; exit 1; }
