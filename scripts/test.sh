#!/usr/bin/env bash
# Everything that must hold before a change lands: `make test`.
#
#   scripts/test.sh [STAGE...]
#
# Stages: fmt, clippy, docs, alone, test (these if none is named), kernels.
#
# VELLUM_SLOW=1 adds the slow tier: newer clients, the largest inputs, and the stage kernels,
# which runs part of the tests on Debian's oldest and newest kernels (scripts/vm-tests.sh). A test
# that lacks a kernel feature or a program says so and is counted. The count is printed at the end,
# because an untested claim has not passed.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"

untested=$(mktemp "${TMPDIR:-/tmp}/vellum-untested.XXXXXX")
export VELLUM_UNTESTED="$untested"
times=()
failed=""
trap 'rm -f "$untested"' EXIT

stage_fmt() { cargo fmt --all --check; }
stage_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }
stage_docs() {
  RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --locked --quiet &&
    cargo run --quiet --locked --package vellum-xtask -- check-docs &&
    scripts/pictures.py --check
}
# The mount program alone builds without database, gRPC and TLS; the command without servers and
# registries builds without gRPC, HTTP and TLS.
stage_alone() {
  cargo build --locked --package vellum-overlay &&
    lacks vellum-overlay rusqlite tonic rustls tokio &&
    cargo check --locked --package vellum-cli --no-default-features &&
    lacks vellum-cli tonic axum hyper reqwest rustls
}
lacks() { # PACKAGE CRATE...
  local package=$1 crates
  shift
  crates=$(IFS='|'; echo "$*")
  ! cargo tree --locked --package "$package" --no-default-features --edges normal,build --prefix none | grep -E "^($crates) "
}
stage_test() { scripts/run-tests.py; }
stage_kernels() {
  local kernel ended=0
  if [ "$(id -u)" != 0 ]; then
    echo "UNTESTED other kernels [kernels]: emulated machines need root" >>"$VELLUM_UNTESTED"
    return 0
  fi
  for kernel in 6.1 new; do
    scripts/vm-tests.sh "$kernel" || ended=1
  done
  return "$ended"
}

run() {
  printf '\n== %s\n' "$1"
  local start=$SECONDS
  if ! "stage_$1"; then
    failed="$failed $1"
  fi
  times+=("$1 $((SECONDS - start))s")
}

stages=("$@")
[ "$#" -gt 0 ] || stages=(fmt clippy docs alone test ${VELLUM_SLOW:+kernels})
printf 'test: %s\n' "${stages[*]}"
[ "$#" -gt 0 ] || printf 'test: on two cores about 25 minutes%s, of which the build takes 6; a summary ends it\n' \
  "${VELLUM_SLOW:+ and an hour for the slow tier}"
for stage in "${stages[@]}"; do
  run "$stage"
done

printf '\n== summary\n'
printf 'time: %s\n' "$(IFS=,; echo "${times[*]}" | sed 's/,/, /g'), all $((SECONDS))s"
if [ -s "$untested" ]; then
  printf 'untested here: %s\n' "$(wc -l <"$untested")"
  sed 's/^/  /' "$untested" | sort | uniq -c
else
  printf 'untested here: 0\n'
fi
if [ -n "$failed" ]; then
  printf 'FAILED:%s\n' "$failed"
  exit 1
fi
