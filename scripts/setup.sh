#!/usr/bin/env bash
# Installs what is missing on a fresh Debian 12 with rustup, and nothing else.
#
#   scripts/setup.sh GROUP...     groups: build, deb, demo, docs, test, slow, bench
#
# Installed packages are left alone. If none is missing, neither the network nor root is
# needed. No package may leave a daemon running: while apt works, a policy-rc.d
# forbids it; it is removed afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

packages_build="gcc libc6-dev make ca-certificates"
packages_deb="binutils dpkg-dev"
packages_demo="python3 runc uidmap acl attr"
packages_docs="python3"
packages_test="git curl iproute2 binutils dpkg-dev openssl libarchive-tools libcap2-bin python3 python3-yaml
  runc crun uidmap acl attr strace busybox-static e2fsprogs fuse3
  xfsprogs btrfs-progs docker-registry containerd docker.io podman buildah skopeo umoci
  golang-go golang-github-containerd-containerd-dev"
packages_slow="debootstrap systemd-container qemu-system-x86 cpio kmod xz-utils zstd libpython3.11-testsuite"
packages_bench="python3"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

wanted=()
groups=" $* "
for group in "$@"; do
  name="packages_$group"
  [ -n "${!name:-}" ] || die "no such group: $group"
  # shellcheck disable=SC2206  # word splitting is the point
  wanted+=(${!name})
done

# ---- Debian packages --------------------------------------------------------
installed() {
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install_packages() {
  local policy=/usr/sbin/policy-rc.d made_policy=""
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made_policy=yes
  fi
  local status=0
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=300 update -qq || status=$?
  if [ "$status" = 0 ]; then
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >&2 || status=$?
  fi
  [ -z "$made_policy" ] || rm -f "$policy"
  return "$status"
}

if command -v dpkg-query >/dev/null; then
  missing=()
  for package in "${wanted[@]}"; do
    installed "$package" || missing+=("$package")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" -ne 0 ]; then
      say "these Debian packages are missing: ${missing[*]}"
      die "run this once as root: apt-get install --no-install-recommends ${missing[*]}"
    fi
    say "installing: ${missing[*]}"
    install_packages "${missing[@]}" || die "apt-get failed; the packages above are needed"
  fi
else
  say "not a Debian system; make sure that these are installed: ${wanted[*]}"
fi

# ---- the Rust toolchain -----------------------------------------------------
case "$groups" in
*" build "*)
  export PATH="$PATH:$HOME/.cargo/bin"
  command -v cargo >/dev/null ||
    die "no cargo: install rustup (https://rustup.rs); Debian 12's own rustc is too old"
  if ! cargo --version >/dev/null 2>&1; then
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
    say "installing Rust $channel (from rust-toolchain.toml)"
    rustup toolchain install "$channel" --profile minimal --component clippy --component rustfmt ||
      die "rustup could not install Rust $channel"
  fi
  ;;
esac

# ---- containerd 2's test suite ------------------------------------------------
# Debian 12 has only the suite of containerd 1.6. Without this one, its test reports itself as
# untested.
case "$groups" in
*" test "*)
  timeout --kill-after=10 240 scripts/containerd-2-suite.sh make >/dev/null ||
    say "containerd 2's test suite is not available now"
  ;;
esac

# ---- programs that the slow tests and the benchmark compare with, from crates.io
# If one is missing, the tests report what they did not test, and the benchmark skips the
# contender.
from_crates() {
  local program="$1" version="$2"
  command -v "$program" >/dev/null && return
  say "installing $program $version from crates.io"
  cargo install --quiet --locked "$program" --version "$version" || say "$program is not available"
}

case "$groups" in
*" slow "*) from_crates pjdfstest 0.2.2 ;;
esac
case "$groups" in
*" bench "*) from_crates fuse-overlayfs 2.0.0 ;;
esac
