#!/usr/bin/env bash
# Gets the sources of containerd 2.1's test suite for snapshotters, and a Go that can compile it,
# from packages of Debian's next release (forky), unpacked into their own directory. A download of
# about 60 MB.
#
#   scripts/containerd-2-suite.sh make
#
# Creates .cache/containerd-2-suite if it does not exist, and prints its path.
#
# Nothing is installed, and root is not needed: apt uses its own lists and cache. Downloads are
# checked against Debian's signature, like any package.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
root=${CONTAINERD_2_SUITE:-$here/.cache/containerd-2-suite}
say() { printf 'containerd-2-suite: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# The release that our part of the suite (crates/snapshotter/tests/suite) is written for.
version=2.1.

# What the suite imports, according to `go list -deps -test`: a twentieth of the packages'
# dependencies.
packages="golang-github-containerd-containerd-dev golang-github-containerd-containerd-api-dev
  golang-github-containerd-continuity-dev golang-github-containerd-errdefs-dev golang-github-containerd-log-dev
  golang-github-containerd-ttrpc-dev golang-github-containerd-typeurl-dev golang-github-davecgh-go-spew-dev
  golang-github-gogo-protobuf-dev golang-github-golang-protobuf-1-5-dev golang-github-google-go-cmp-dev
  golang-github-moby-sys-dev golang-github-opencontainers-go-digest-dev
  golang-github-opencontainers-image-spec-dev golang-github-pmezard-go-difflib-dev
  golang-github-sirupsen-logrus-dev golang-github-stretchr-testify-dev golang-golang-x-net-dev
  golang-golang-x-sync-dev golang-golang-x-sys-dev golang-golang-x-text-dev golang-google-genproto-dev
  golang-google-grpc-dev golang-google-protobuf-dev golang-gopkg-yaml.v3-dev"

mirror() { # the machine's own mirror
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -n 1
}

# apt with all its state in $work.
apt() {
  local program=$1
  shift
  APT_CONFIG=$work/apt.conf "$program" "$@"
}

make_root() {
  [ ! -e "$root/.complete" ] || return 0
  local program url
  for program in apt-get apt-cache dpkg-deb; do
    command -v "$program" >/dev/null || die "needs $program"
  done
  url=$(mirror)
  url=${url:-http://deb.debian.org/debian}
  say "fetching from $url, once"
  mkdir -p "$(dirname "$root")"
  work=$(mktemp -d "$root.XXXXXX")
  trap 'rm -rf --one-file-system "$work"' EXIT
  mkdir -p "$work"/{lists/partial,archives/partial,parts,debs,root}
  : >"$work/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $url forky main" >"$work/sources.list"
  cat >"$work/apt.conf" <<EOF
Dir::State "$work";
Dir::State::status "$work/status";
Dir::State::lists "$work/lists";
Dir::Cache "$work";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "$work/parts";
Dir::Etc::preferences "$work/none";
Dir::Etc::preferencesparts "$work/parts";
APT::Architecture "$(dpkg --print-architecture)";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "2";
Acquire::http::Timeout "20";
EOF
  apt apt-get update -qq >&2
  local found
  found=$(apt apt-cache show --no-all-versions golang-github-containerd-containerd-dev | sed -n 's/^Version: //p')
  case "$found" in
  "$version"*) ;;
  *) die "Debian's next release now has containerd $found; this suite is for ${version}x" ;;
  esac
  # golang-go only depends on the newest Go; its path differs between releases.
  local go
  go=$(apt apt-cache show --no-all-versions golang-go | sed -n 's/^Depends:.*\(golang-[0-9.]*\)-go.*/\1/p')
  [ -n "$go" ] || die "cannot tell which Go golang-go depends on"
  # shellcheck disable=SC2086  # word splitting is the point
  (cd "$work/debs" && apt apt-get download -qq "$go-go" "$go-src" $packages >&2)
  local deb
  for deb in "$work"/debs/*.deb; do
    dpkg-deb --extract "$deb" "$work/root"
  done
  ln -s "usr/lib/${go/lang/}" "$work/root/go"
  # A Go binary needs no library of its release, so it runs on this machine.
  "$work/root/go/bin/go" version >&2 || die "this Go does not run here"
  rm -rf --one-file-system "$root"
  mv "$work/root" "$root"
  touch "$root/.complete"
}

case "${1:-}" in
make) make_root && echo "$root" ;;
*)
  sed -n '2,11s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
