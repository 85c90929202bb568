write_config
start_vellum
start_containerd
image=docker.io/library/vellum-demo-small:latest
hello() { # NAMESPACE IMAGE ID
  c -n "$1" run --rm --snapshotter vellum "$2" "$3"
}

c image import --snapshotter vellum /exchange/small.tar > /dev/null
echo "ok: import: $(hello default $image one)"
test "$(grep -c 'call="Apply"' "$dir/vellum.log")" = 10
echo "ok: ten layers went through the differ"

# Vellum's differ unpacks the same as containerd's own.
c image import --snapshotter overlayfs /exchange/small.tar > /dev/null
top=$(c snapshots --snapshotter vellum ls | awk 'NR > 1 { keys[$1]; parents[$2] } END { for (key in keys) if (!(key in parents)) print key }')
shown vellum "$top" "$dir/ours"
shown overlayfs "$top" "$dir/theirs"
diff "$dir/theirs" "$dir/ours"
echo "ok: the trees are the same"

# Two namespaces, a registry, and the server killed amid a pull.
for delay in 0.05 0.2 0.5; do
  c -n other image pull --plain-http --snapshotter vellum "$REGISTRY/demo:small" > /dev/null 2>&1 &
  pull=$!
  sleep $delay
  crash $vellum_pid
  wait $pull || true
  start_vellum
done
pulled() { c -n other image pull --plain-http --snapshotter vellum "$REGISTRY/demo:small"; }
wait_for pulled
echo "ok: pull: $(hello other "$REGISTRY/demo:small" two)"

# A container that outlives both.
c run --detach --snapshotter vellum $image "$box" /bin/sh -c 'echo begun > /begun; while :; do sleep 1; done'
inside() { c task exec --exec-id "x$(date +%N)" "$box" /bin/sh -c "$1"; }
wait_for inside 'grep -qx begun /begun'
crash $vellum_pid
inside 'echo "version 9" > /app/version; rm -r /odd/links; mkdir /made'
crash $containerd_pid
start_vellum
start_containerd
inside 'grep -qx "version 9" /app/version'
echo "ok: the container went on: $(hello default $image three)"

# Diff and commit: O(changes), in the namespace of the caller.
c snapshots --snapshotter vellum diff --keep "$box" > "$dir/diff.tar.gz"
tar -tzf "$dir/diff.tar.gz" | sort | tr '\n' ' ' | sed 's/^/ok: diff: /'
echo
c snapshots --snapshotter vellum diff --media-type application/vnd.oci.image.layer.v1.tar+zstd "$box" > "$dir/diff.tar.zst"
echo "ok: zstd: $(head -c 4 "$dir/diff.tar.zst" | od -An -tx1)"
test "$(grep -c 'call="Diff"' "$dir/vellum.log")" = 2
c task kill --signal SIGKILL "$box"
wait_for sh -c "! ctr --address '$run/sock' task ls | grep -q RUNNING"
c task rm "$box" > /dev/null 2>&1 || true
wait_for c container rm "$box"

remove_everything default other
echo "ok: nothing is left"
kill $containerd_pid
wait $containerd_pid || true
kill $vellum_pid
wait $vellum_pid
echo "ok: ended"
