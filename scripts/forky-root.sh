#!/usr/bin/env bash
# A root file system with the newest container tools, from Debian's next release (forky):
# containerd 2, docker 28, podman 5, buildah, skopeo, runc, crun.
#
#   scripts/forky-root.sh make           creates .cache/forky if it does not exist, prints its path
#   scripts/forky-root.sh run COMMAND    runs a command in it (as root), in a private mount
#                                        namespace; /exchange is the directory $EXCHANGE
#
# The machine is not changed: its packages stay as they are, and no daemon is left running.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
root=${FORKY_ROOT:-$here/.cache/forky}
packages="containerd docker.io docker-cli docker-buildx podman buildah skopeo umoci runc crun fuse3 iptables ca-certificates"
say() { printf 'forky: %s\n' "$*" >&2; }

mirror() { # the machine's own mirror
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -n 1
}

has_all() {
  local package
  for package in $packages; do
    compgen -G "$root/var/lib/dpkg/info/$package[.:]*list" >/dev/null || return 1
  done
}

install_all() {
  # shellcheck disable=SC2016
  FORKY_ROOT=$root EXCHANGE=$root/var/tmp inside sh -ec 'export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends $1
    apt-get clean' sh "$packages" >&2
}

make_root() {
  if [ -e "$root/.complete" ]; then
    # An older root may lack a program; several tests may notice that at the same time.
    has_all || (flock 9 && has_all || install_all) 9<"$root/.complete"
    return 0
  fi
  [ "$(id -u)" = 0 ] || { say "needs root"; exit 1; }
  command -v debootstrap >/dev/null || { say "needs debootstrap"; exit 1; }
  local url
  url=$(mirror)
  say "creating $root from ${url:-the Debian mirror}: a few minutes, once"
  rm -rf --one-file-system "$root"
  mkdir -p "$root"
  # An older debootstrap has no script for this release; use sid's.
  debootstrap --variant=minbase forky "$root" "${url:-http://deb.debian.org/debian}" \
    /usr/share/debootstrap/scripts/sid >&2
  echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90dated-mirror"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod 755 "$root/usr/sbin/policy-rc.d"
  install_all
  touch "$root/.complete"
}

inside() { # COMMAND...: with how=exec it takes the place of this process, and all that runs inside ends with it
  # containerd refuses to load without a mount entry for its root, so bind the root onto itself.
  # shellcheck disable=SC2016
  ${how:-} unshare --mount --pid --fork --kill-child --propagation private sh -ec '
    root=$1 exchange=$2
    shift 2
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t tmpfs tmpfs "$root/run"
    mkdir -p "$root/exchange"
    mount --bind "$exchange" "$root/exchange"
    [ ! -e /etc/resolv.conf ] || cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    # Not chroot: a process that later joins a mount namespace created in there would be in
    # the machine'"'"'s root.
    cd "$root"
    pivot_root . mnt
    umount -l mnt
    exec "$@"' sh "$root" "${EXCHANGE:-$root/var/tmp}" "$@"
}

case "${1:-}" in
make) make_root && echo "$root" ;;
run)
  shift
  make_root
  how=exec inside "$@"
  ;;
*)
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
