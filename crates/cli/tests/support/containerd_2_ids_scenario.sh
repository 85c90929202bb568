# After containerd_2.sh: containers with their own ids, mapped by containerd's copies, by the kernel
# and by Vellum's engine, with every driver.
image=docker.io/library/vellum-demo-small:latest
top=$dir
# In one write, because late output can get lost when the process ends.
show='echo $(stat -c "%n %u:%g" / /app/version /odd/far-owner
  echo fresh > /fresh; echo more >> /app/version; mkdir /made; chown 1000:7 /made; stat -c "%n %u:%g" /fresh /app/version /made; cat /proc/self/uid_map)'
# As many ids as the image's unusual owners need.
map="--uidmap 0:100000:6000000 --gidmap 0:7000000:6000000"

mapped() { # NAME LABELS VELLUM-FLAGS SERVER-FLAGS
  dir=$top/$1
  run=/run/$1
  vellum_flags=$3
  server_flags=$4
  mkdir -p "$dir" "$run"
  write_config
  if test -n "$4"; then
    # The differ's section, which comes later, has its own address.
    sed -i '0,\|^  address = "'"$run"'/vs"|s||&\n  capabilities = ["remap-ids"]|' "$dir/config.toml"
  fi
  start_vellum
  start_containerd
  c image import --snapshotter vellum /exchange/small.tar > /dev/null
  c run --rm --snapshotter vellum $map $2 $image "$box-$1" /bin/sh -ec "$show" > "$dir/said" 2> "$dir/errors" || cat "$dir/errors" > "$dir/said"
  echo "ok: $1: $(cat "$dir/said")"
  remove_everything default
  kill $containerd_pid
  wait $containerd_pid || true
  kill $vellum_pid
  wait $vellum_pid
}

PATH=/exchange:$PATH
mapped copied "" "" ""
mapped copied-and-told --remap-labels "" ""
mapped kernel --remap-labels "" --remap-ids
mapped engine --remap-labels "--engine vellum" --remap-ids
mapped copied-engine --remap-labels "--engine vellum" ""
mapped overlay --remap-labels "--storage-driver overlay" --remap-ids
mapped native --remap-labels "--storage-driver native" --remap-ids
echo "ok: ended"
