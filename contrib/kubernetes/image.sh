#!/bin/sh
# Builds the image of the node installer: the command with the libraries it needs, a busybox, and
# nothing else.
#
#   contrib/kubernetes/image.sh VELLUM NAME [ARCHIVE]
#
# VELLUM is the command itself, ARCHIVE a docker-archive.
#
# Then: vellum push NAME, or copy the archive to the nodes. The program is copied to the nodes, so
# their C library must be at least as new as this machine's.
set -eu
vellum=${1:?the vellum command}
name=${2:?a name for the image}
tree=$(mktemp -d)
trap 'rm -rf --one-file-system "$tree"' EXIT
install -D -m 0755 "$vellum" "$tree/vellum"
install -D -m 0755 "$(command -v busybox)" "$tree/busybox"
ldd "$vellum" | grep -o '/[^ ]*' | while read -r library; do
  install -D -m 0755 "$library" "$tree$library"
done
# `vellum node install --activate` calls it; it starts the node's own units.
mkdir -p "$tree/usr/sbin" "$tree/host"
ln -s /busybox "$tree/usr/sbin/chroot"
"$vellum" import "$tree" "$name" --change 'ENTRYPOINT ["/vellum"]' --change 'ENV PATH=/usr/sbin'
[ -z "${3:-}" ] || "$vellum" save "$name" --output "$3"
