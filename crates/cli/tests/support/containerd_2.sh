# Runs in the root of Debian's next release (scripts/forky-root.sh), with bash: a containerd 2 on
# Vellum's snapshotter and differ. /exchange has vellum, small.tar and the tests' results; $REGISTRY
# is a registry on loopback that has the same image as demo:small. The test compares the "ok: ..."
# lines; any failure ends the script.
set -eu
dir=/exchange/$1
run=/run/$1
mkdir -p "$dir" "$run"
# A container name that is unique on this machine, because its control groups have that name.
box=$1-$(cat /proc/sys/kernel/random/uuid)
vellum_pid=
containerd_pid=

start_vellum() {
  VELLUM_LOG=vellum_snapshotter=debug /exchange/vellum --root "$dir/v" --run-dir "$run/v" --config /dev/null ${vellum_flags:-} \
    serve containerd ${server_flags:-} --socket "$run/vs" --containerd "$run/sock" >> "$dir/vellum.log" 2>&1 &
  vellum_pid=$!
  wait_for test -S "$run/vs"
}

start_containerd() {
  containerd --config "$dir/config.toml" >> "$dir/containerd.log" 2>&1 &
  containerd_pid=$!
  wait_for c version
}

c() { ctr --address "$run/sock" "$@"; }

wait_for() {
  for _ in $(seq 600); do
    if "$@" > /dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "waited in vain for: $*" >&2
  tail -n 20 "$dir/vellum.log" "$dir/containerd.log" >&2
  return 1
}

crash() { # the pid: nothing of its own runs
  kill -9 "$1"
  wait "$1" || true
}

write_config() {
  cat > "$dir/config.toml" << EOF
version = 3
root = "$dir/c"
state = "$run/c"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
  address = "$run/sock"
[debug]
  level = "debug"
[proxy_plugins.vellum]
  type = "snapshot"
  address = "$run/vs"
[proxy_plugins.vellum-diff]
  type = "diff"
  address = "$run/vs"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["vellum-diff", "walking"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "vellum"
  differ = "vellum-diff"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "overlayfs"
  differ = "walking"
EOF
}

# Prints a tree as text: everything that find can report for each name. Sizes of directories depend
# on the file system and are left out.
tree() {
  (cd "$1" && find . -mindepth 1 \( -type d -printf '%P %y %m %U %G - %T@ - %l\n' -o -printf '%P %y %m %U %G %s %T@ %n %l\n' \) | sort)
}

# Writes the tree of the image's top layer, as a snapshotter shows it.
shown() { # SNAPSHOTTER TOP FILE
  mkdir -p "$run/look"
  c snapshots --snapshotter "$1" view --target "$run/look" look "$2" > "$run/mount.sh"
  # mount(8) since 2.39 uses fsconfig(2), which accepts values of at most 255 bytes; mount(2)
  # accepts a page.
  LIBMOUNT_FORCE_MOUNT2=always sh -e "$run/mount.sh"
  tree "$run/look" > "$3"
  umount "$run/look"
  # Nothing keeps it, so a collection may have removed it already.
  c snapshots --snapshotter "$1" rm look 2> /dev/null || true
}

# What a killed server can leave behind: trees whose record it was about to write.
collect_litter() { /exchange/vellum --root "$dir/v" --run-dir "$run/v" --config /dev/null gc --quiet; }

remove_everything() { # NAMESPACE...
  collect_litter
  for namespace; do
    for image in $(c -n "$namespace" image ls --quiet); do
      c -n "$namespace" image rm --sync "$image" > /dev/null
    done
    test -z "$(c -n "$namespace" snapshots --snapshotter vellum ls | sed 1d)"
  done
  wait_for sh -c "test \"\$(ls '$dir/v/overlay2')\" = l"
}
