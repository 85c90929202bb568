# After containerd_2.sh: containerd, Vellum's server, or both, killed amid pulls by the transfer
# service, while a container runs.
write_config
start_vellum
start_containerd
image=$REGISTRY/demo:small
another=docker.io/library/another:1

# The container's image has no layer in common with the one that is pulled.
aside() { /exchange/vellum --root "$dir/w" --run-dir "$run/w" --config /dev/null --quiet "$@" > /dev/null; }
aside load /exchange/small.tar
mkdir -p "$run/tree"
aside mount --image vellum-demo-small:latest --at "$run/tree"
aside import "$run/tree" $another
aside umount "$run/tree"
aside save --output "$dir/another.tar" $another
c image import --snapshotter vellum "$dir/another.tar" > /dev/null
c run --detach --snapshotter vellum $another "$box" /bin/sh -c 'echo begun > /begun; while :; do sleep 1; done'
inside() { c task exec --exec-id "x$(date +%N)" "$box" /bin/sh -c "$1"; }
wait_for inside 'grep -qx begun /begun'

trees() { find "$dir/v/overlay2" -mindepth 1 -maxdepth 1 -not -name l | wc -l; }
known() { c snapshots --snapshotter vellum ls | sed 1d | wc -l; }
pull() { c image pull --plain-http --snapshotter vellum "$image" > /dev/null; }

# Crashes a side as soon as the pull has created this many trees, or has ended.
crash_amid_a_pull() { # TREES SIDE
  before=$(trees)
  pull 2> /dev/null &
  pulling=$!
  for _ in $(seq 1200); do
    if test "$(trees)" -ge $((before + $1)) || ! kill -0 $pulling 2> /dev/null; then break; fi
    sleep 0.05
  done
  case $2 in containerd | both) crash $containerd_pid ;; esac
  case $2 in server | both)
    crash $vellum_pid
    start_vellum
    ;;
  esac
  case $2 in containerd | both) start_containerd ;; esac
  # It may succeed or fail.
  wait $pulling || true
  wait_for inside 'grep -qx begun /begun'
}

# Once the leases of unfinished pulls are gone, the store has exactly what containerd knows; trees
# agree with records; only the container's tree is mounted.
only_known() {
  collect_litter
  # The server may have just been started.
  wait_for c snapshots --snapshotter vellum ls
  # containerd looks for snapshots that it doesn't know only after one of its own was removed. A
  # collection may have removed it already.
  c snapshots --snapshotter vellum prepare went > /dev/null
  c snapshots --snapshotter vellum rm went 2> /dev/null || true
  c leases create --id collect > /dev/null
  for lease in $(c leases ls --quiet); do
    # A lease may end by itself.
    c leases rm --sync "$lease" > /dev/null 2>&1 || true
  done
  test -z "$(c leases ls --quiet)"
  agree() { test "$(trees)" = "$(known)"; }
  wait_for agree
  /exchange/vellum --root "$dir/v" --run-dir "$run/v" --config /dev/null --quiet check
  one_mounted() { test "$(grep -c " $dir/c/\| $run/c/.* - overlay " /proc/self/mountinfo)" = 1; }
  wait_for one_mounted
}

crash_amid_a_pull 1 containerd
crash_amid_a_pull 1 server
crash_amid_a_pull 2 containerd
crash_amid_a_pull 2 both
crash_amid_a_pull 3 server
only_known
echo "ok: nothing leaked"
wait_for pull
echo "ok: pulled: $(c run --rm --snapshotter vellum "$image" "$box-hello")"
only_known
inside 'echo on > /on'
echo "ok: the container went on"

c task kill --signal SIGKILL "$box"
wait_for sh -c "! ctr --address '$run/sock' task ls | grep -q RUNNING"
c task rm "$box" > /dev/null 2>&1 || true
wait_for c container rm "$box"
remove_everything default
no_content() { test -z "$(c content ls --quiet)"; }
wait_for no_content
echo "ok: nothing is left"
kill $containerd_pid
wait $containerd_pid || true
kill $vellum_pid
wait $vellum_pid
echo "ok: ended"
