#!/usr/bin/env bash
# Makes two Debian packages: vellum, which has everything, and vellum-fuse-overlayfs, the mount
# program for Podman and Buildah alone.
#
#   scripts/deb.sh BUILT OUT
#
# BUILT is the directory of the two programs (target/release), OUT gets the packages. Their files
# are those of `make install`, so no list stands twice. Nothing is enabled or started by an install,
# and a store outlives the package: it holds people's containers.
#
# DEB_LEVEL: how hard to compress (6).
set -euo pipefail
cd "$(dirname "$0")/.."
built=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
architecture=$(dpkg --print-architecture)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
umask 022

# The libraries that a program is linked with, as a Depends field has them.
libraries() {
  mkdir -p "$stage/shlibs/debian"
  printf 'Source: vellum\n\nPackage: vellum\nArchitecture: any\n' >"$stage/shlibs/debian/control"
  (cd "$stage/shlibs" && dpkg-shlibdeps -O "$1" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
}

# Makes the package NAME from the tree $stage/NAME, whose program is PROGRAM. The rest of the
# control file comes on standard input.
package() {
  local name=$1 program=$2 tree=$stage/$1
  strip --strip-unneeded "$tree/$program"
  find "$tree/usr/share/man" -type f -name '*.1' -exec gzip -9n {} + 2>/dev/null || true
  install -d "$tree/DEBIAN" "$tree/usr/share/doc/$name"
  cat LICENSE-MIT LICENSE-APACHE >"$tree/usr/share/doc/$name/copyright"
  gzip -9nc CHANGELOG.md >"$tree/usr/share/doc/$name/changelog.gz"
  {
    printf 'Package: %s\nVersion: %s\nArchitecture: %s\n' "$name" "$version" "$architecture"
    printf 'Maintainer: The Vellum developers <vellum@localhost>\n'
    printf 'Installed-Size: %s\n' "$(du -sk --exclude=DEBIAN "$tree" | cut -f1)"
    printf 'Depends: %s\n' "$(libraries "$tree/$program")"
    cat
  } >"$tree/DEBIAN/control"
  (cd "$tree" && find . -type f -not -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum) \
    >"$tree/DEBIAN/md5sums"
  dpkg-deb --root-owner-group -z"${DEB_LEVEL:-6}" --build "$tree" "$out/${name}_${version}_$architecture.deb"
}

# A maintainer script of the package vellum, for where systemd runs.
script() {
  install -d "$stage/vellum/DEBIAN"
  {
    printf '#!/bin/sh\nset -e\n[ -d /run/systemd/system ] || exit 0\n'
    cat
  } >"$stage/vellum/DEBIAN/$1"
  chmod 0755 "$stage/vellum/DEBIAN/$1"
}

# A running server goes on with the old program until it is restarted; its socket stays meanwhile.
script postinst <<'EOF'
systemctl daemon-reload
systemctl try-restart vellum-containerd.service vellum-docker.service
EOF
script prerm <<'EOF'
[ "$1" = remove ] || exit 0
systemctl disable --now vellum-containerd.socket vellum-containerd.service \
  vellum-docker.socket vellum-docker.service
EOF
script postrm <<'EOF'
systemctl daemon-reload
EOF
make --no-print-directory --silent install-files BUILT="$built/vellum" DESTDIR="$stage/vellum" \
  PREFIX=/usr UNITDIR=/lib/systemd/system
package vellum usr/bin/vellum <<'EOF'
Recommends: fuse3, runc, uidmap
Suggests: containerd, docker.io, podman
Section: admin
Priority: optional
Description: layered storage for containers
 A union file system, a layer store, and what containerd, Docker and Podman need to
 use them: a snapshotter and differ, a graph driver plugin, a mount program.
EOF

install -D -m 0755 "$built/vellum-fuse-overlayfs" \
  "$stage/vellum-fuse-overlayfs/usr/bin/vellum-fuse-overlayfs"
package vellum-fuse-overlayfs usr/bin/vellum-fuse-overlayfs <<'EOF'
Recommends: fuse3
Suggests: podman, buildah
Section: admin
Priority: optional
Description: overlay file systems through FUSE, for Podman and Buildah
 The mount program of Vellum alone, without the store: name it as mount_program in
 storage.conf.
EOF
