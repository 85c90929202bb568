#!/usr/bin/env bash
# Runs named parts of the tests, and the demo, on another kernel in an emulated machine
# (scripts/vm.sh).
#
#   scripts/vm-tests.sh KERNEL [ROW]...     KERNEL: 6.1 or new; without rows, all of them
#   scripts/vm-tests.sh --list
#
# The programs are built here and run there, as root, in one boot. For each row one line says how
# many tests passed and failed, how many claims could not be tested there, and how long it took; the
# log of a failed row follows. The last lines say what was not tested. The exit code is 0 if nothing
# failed.
#
# VM_MINUTES: time limit for the whole run (60). VELLUM_UNTESTED: a file that gets a line for each
# claim that was not tested.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin"

# ROW PACKAGE TARGET MINUTES ARGUMENTS REASON. The arguments are those of the test program,
# separated by commas; - means none. A test belongs here if its result depends on the kernel. Not
# here: comparisons with models and documents, and tests that repeat something thousands of times (a
# kill at each call, storms, a million names, an engine on an engine), for which an emulated
# processor is too slow.
rows() {
  sed 's/ *#.*//; /^$/d' <<'ROWS'
sys              vellum-sys    lib                 5  -  # probes, ways to mount, handles, quotas: what decides all else
own-files        vellum-sys    own_files           2  -  # a user namespace acts for its user
user-namespaces  vellum-sys    userns              2  -  # id maps, and mounts within them
union            vellum-union  lib                 5  -  # the engine's parts, on xattrs and handles of this kernel
readers          vellum-union  kernel              5  -  # the kernel's overlay shows what the engine says it shows
turns            vellum-union  engine_differential 5  -  # the kernel and the engine answer the same, call by call
core             vellum-union  engine_core         5  --skip,a_directory_of_a_million_names,--skip,memory_is_returned
names            vellum-union  engine_names        3  -
rename           vellum-union  engine_rename       3  -
owners           vellum-union  engine_owners       3  -
nodes            vellum-union  engine_nodes        3  -
fuse             vellum-fuse   lib                 3  -  # what is negotiated, byte by byte
cached           vellum-fuse   cached              10 --skip,what_is_shown  # invalidations; what is skipped looks at thousands of pairs
session          vellum-fuse   session             20 --skip,a_few_descriptors  # mounts, signals, forgotten nodes, requests that warm files cost
posix            vellum-fuse   posix               10 -  # privileges, ACLs, flags, groups: half of each is the kernel's
mounted-names    vellum-fuse   names               8  -  # listings, renames and removals through the kernel's cache of names
copy-up          vellum-fuse   copy_up             8  -  # descriptors, mappings, locks and watches over a copy-up
passthrough      vellum-fuse   passthrough         5  -  # from 6.9
inodes           vellum-fuse   passthrough_inodes  8  --skip,one_inode_to_programs  # the same: what an old descriptor sees; what is skipped looks at thousands of pairs
rings            vellum-fuse   rings               5  -  # from 6.14
successor        vellum-fuse   successor           3  -  # a live mount changes hands
limits           vellum-fuse   limits              5  -
steps            vellum-fuse   differential        8  -  # mounts of the kernel and of the engine, step by step
store            vellum-store  lib                 5  -  # small disks, locks, lost trees
drivers          vellum-store  drivers             8  -  # trees on ext4, xfs, btrfs and tmpfs; a limit by project quota
snapshots        vellum-store  snapshots           5  -
quotas           vellum-cli    containers          5  size_limit  # the command's limits by project quotas of xfs and ext4
demo             vellum-cli    command             5  -  # every step of demo/run.sh on the kernel's overlay
demo-engine      vellum-cli    command             5  -  # and on Vellum's engine
ROWS
}
say() { printf 'vm-tests: %s\n' "$*" >&2; }

# ---- here ----------------------------------------------------------------------
# Prints PACKAGE TARGET DIRECTORY PROGRAM of each test program, and of the command. The programs are
# copies without debugging information: tests copy them for other users, which takes most of their
# time on an emulated machine.
build() {
  # The command's package is always included: with it, cargo builds other crates with the features
  # that `cargo test --workspace` gives them.
  local packages=(--package vellum-cli) targets=() package target
  while read -r _ package target _; do
    case $target in
    command) targets+=(--test containers) ;; # cargo builds the command with it
    lib) [[ " ${targets[*]-} " == *" --lib "* ]] || targets+=(--lib) ;;
    *) targets+=(--test "$target") ;;
    esac
    packages+=(--package "$package")
  done < <(chosen)
  case "${packages[*]}" in # the program that the tests of mounts use
  *vellum-fuse*) cargo build --locked "${packages[@]}" --example mount_union ;;
  esac
  cargo test --no-run --locked --message-format=json-render-diagnostics "${packages[@]}" "${targets[@]}" |
    python3 -c '
import json, os, sys
for line in sys.stdin:
    said = json.loads(line)
    if said["reason"] != "compiler-artifact" or not said["executable"]:
        continue
    kind, name = said["target"]["kind"][0], said["target"]["name"]
    name = {"lib": "lib", "bin": "command"}.get(kind, name)
    if said["profile"]["test"] == (kind == "bin"):
        continue
    directory = os.path.dirname(said["manifest_path"])
    print("vellum-" + os.path.basename(directory), name, directory, said["executable"])' |
    while read -r package name directory program; do
      mkdir -p .cache/vm/programs/deps
      strip --strip-debug -o ".cache/vm/programs/deps/$(basename "$program")" "$program"
      echo "$package $name $directory $PWD/.cache/vm/programs/deps/$(basename "$program")"
    done
  case "${packages[*]}" in # the tests look for it next to themselves
  *vellum-fuse*)
    mkdir -p .cache/vm/programs/examples
    strip --strip-debug -o .cache/vm/programs/examples/mount_union target/debug/examples/mount_union
    ;;
  esac
}

chosen() { # the lines of the requested rows
  local line row
  while read -r line; do
    row=${line%% *}
    [ "${#asked[@]}" = 0 ] || [[ " ${asked[*]} " == *" $row "* ]] || continue
    echo "$line"
  done < <(rows)
}

outside() {
  local kernel=$1 row known package target minutes arguments line programs jobs=() code=0
  shift
  asked=("$@")
  known=" $(rows | cut -d ' ' -f 1 | tr '\n' ' ')"
  for row in "$@"; do
    [[ $known == *" $row "* ]] || { say "there is no row $row; --list names the rows"; exit 2; }
  done
  programs=$(build)
  while read -r row package target minutes arguments; do
    line=$(awk -v p="$package" -v t="$target" '$1 == p && $2 == t { print $3, $4 }' <<<"$programs")
    [ -n "$line" ] || { say "cargo built no $package $target"; exit 1; }
    jobs+=("$row $minutes $arguments $line")
  done < <(chosen)
  image=$PWD/.cache/vm/demo-image.tar
  mkdir -p .cache/vm
  [ -e "$image" ] || scripts/demo-image.py --profile small --large-mib 8 "$image" >/dev/null
  said=$(mktemp "${TMPDIR:-/tmp}/vellum-vm-tests.XXXXXX")
  trap 'rm -f "$said"' EXIT
  scripts/vm.sh "$kernel" scripts/vm-tests.sh --inside "${jobs[@]}" | tee "$said" || code=$?
  if [ -n "${VELLUM_UNTESTED:-}" ]; then
    tr -d '\r' <"$said" | sed -n "s/^untested: UNTESTED /UNTESTED on Linux $kernel: /p" >>"$VELLUM_UNTESTED"
  fi
  return "$code"
}

# ---- there ---------------------------------------------------------------------
# Runs one row; its output goes to the log.
perform() { # ROW MINUTES ARGUMENTS DIRECTORY PROGRAM
  local limit=(timeout -k 10 "$2m") arguments=()
  case $1 in
  demo) VELLUM=$5 "${limit[@]}" demo/run.sh .cache/vm/demo-image.tar ;;
  demo-engine) VELLUM_ENGINE=vellum VELLUM=$5 "${limit[@]}" demo/run.sh .cache/vm/demo-image.tar ;;
  *)
    [ "$3" = - ] || IFS=, read -ra arguments <<<"$3"
    (cd "$4" && "${limit[@]}" "$5" --test-threads=2 "${arguments[@]}")
    ;;
  esac
}

# The same, but gives up on a row whose processes can't be killed: a kernel bug must not hide the
# rows that follow.
wait_for() { # LOG ROW MINUTES ARGUMENTS DIRECTORY PROGRAM
  local process until=$((SECONDS + $3 * 60 + 60))
  perform "${@:2}" >"$1" 2>&1 &
  process=$!
  while kill -0 "$process" 2>/dev/null; do
    [ "$SECONDS" -lt "$until" ] || return 125
    sleep 0.5
  done
  wait "$process"
}

inside() {
  local job row code begin passed failed all_passed=0 all_failed=0 untested log=/tmp/vm-tests.log
  export VELLUM_UNTESTED=/tmp/vm-tests.untested RUST_BACKTRACE=0
  # The sizes of the slow tier are for real machines.
  unset VELLUM_SLOW
  : >/tmp/all.untested
  printf 'Linux %s\n' "$(uname -r)"
  for job in "$@"; do
    row=${job%% *} code=0 begin=$SECONDS
    : >"$VELLUM_UNTESTED"
    # shellcheck disable=SC2086 # its fields
    wait_for "$log" $job || code=$?
    read -r passed failed < <(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$log")
    # The demo, or a program without Rust's test harness, counts as one test.
    grep -q '^test result:' "$log" || passed=$((code == 0))
    # A program that died or took too long counts as at least one failure.
    [ "$code" = 0 ] || [ "$failed" -gt 0 ] || failed=1
    untested=$(wc -l <"$VELLUM_UNTESTED")
    cat "$VELLUM_UNTESTED" >>/tmp/all.untested
    all_passed=$((all_passed + passed)) all_failed=$((all_failed + failed))
    printf '%-16s passed %3d, failed %d, untested %d, %d s\n' "$row" "$passed" "$failed" "$untested" $((SECONDS - begin))
    if [ "$code" != 0 ]; then
      printf '%s\n' "---- $row ended with $code$(case $code in 124) echo ": it took too long" ;; 125) echo ": it took too long and did not end" ;; esac)"
      grep -v '\.\.\. ok$' "$log" | tail -n 200
      printf '%s\n' "----"
    fi
  done
  sed 's/^/untested: /' /tmp/all.untested | sort
  printf 'Linux %s: passed %d, failed %d, untested %d, %d s\n' "$(uname -r)" "$all_passed" "$all_failed" "$(wc -l </tmp/all.untested)" $SECONDS
  [ "$all_failed" = 0 ]
}

case "${1:-}" in
--list) rows | awk '{ printf "%-16s %s %s, at most %d minutes\n", $1, $2, $3, $4 }' ;;
--inside) shift && inside "$@" ;;
6.1 | new) outside "$@" ;;
*) sed -n '2,14s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
