# The Debian packages, installed, used and removed in a copy of this machine's root. Prints a line
# "ok: ..." for each step. Runs in a mount namespace of its own, which takes all mounts along.
#
#   packages_scenario.sh PACKAGES DIR ARCHIVE
#
# PACKAGES: where the packages are. DIR: an empty directory on a disk. ARCHIVE: a small image.
set -eu
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
packages=$1 dir=$2 archive=$3
mount --make-rprivate /
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
root=$dir/root
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root/var/lib/vellum"
mount -t tmpfs tmpfs "$root/var/lib/vellum"
mkdir "$root/tmp/debs" "$root/tmp/union"
cp "$packages"/*.deb "$root/tmp/debs"
cp "$archive" "$root/tmp/image.tar"
inside() { chroot "$root" "$@"; }
ok() { printf 'ok: %s\n' "$1"; }

inside sh -c 'dpkg --install /tmp/debs/*.deb' >&2
[ -z "$(inside dpkg --verify vellum vellum-fuse-overlayfs)" ]
ok installed
inside sh -c 'dpkg --listfiles vellum vellum-fuse-overlayfs' | sort -u >"$dir/files"
for file in /usr/share/man/man1/vellum.1.gz /usr/share/man/man1/vellum-create.1.gz \
  /usr/share/bash-completion/completions/vellum /usr/share/zsh/site-functions/_vellum \
  /usr/share/fish/vendor_completions.d/vellum.fish /lib/systemd/system/vellum-containerd.socket \
  /usr/share/vellum/containerd/config-v3.toml; do
  inside test -s "$file"
done
! grep -r /usr/local/bin/vellum "$root"/lib/systemd/system/vellum-* >&2
ok 'pages, completions and units are there'

inside vellum load /tmp/image.tar >&2
box=$(inside vellum create "$(inside vellum images --ids | head -n 1)")
inside vellum mount "$box" >"$dir/where"
inside test -d "$(cat "$dir/where")"
inside vellum umount "$box" >&2
ok 'an image is loaded and a container mounted'

inside mkdir /tmp/union/lower /tmp/union/upper /tmp/union/work /tmp/union/merged
inside sh -c 'echo below >/tmp/union/lower/file'
options=lowerdir=/tmp/union/lower,upperdir=/tmp/union/upper,workdir=/tmp/union/work
inside mount -t fuse.vellum -o "$options" layers /tmp/union/merged
[ "$(inside cat /tmp/union/merged/file)" = below ]
inside umount /tmp/union/merged
ok 'mount(8) knows the type fuse.vellum'
inside vellum-fuse-overlayfs -o "$options" /tmp/union/merged
inside sh -c 'echo above >/tmp/union/merged/file'
[ "$(inside cat /tmp/union/merged/file)" = above ]
inside umount /tmp/union/merged
[ "$(inside cat /tmp/union/upper/file /tmp/union/lower/file)" = 'above
below' ]
ok 'the mount program alone serves a union'

inside vellum rm "$box" >&2
inside dpkg --purge vellum vellum-fuse-overlayfs >&2
while read -r file; do
  if [ ! -d "$root$file" ] && { [ -e "$root$file" ] || [ -L "$root$file" ]; }; then
    printf 'left: %s\n' "$file"
  fi
done <"$dir/files"
[ ! -e "$root/usr/share/vellum" ]
inside test -e /var/lib/vellum/vellum.db
ok 'removed, and the store is kept'
