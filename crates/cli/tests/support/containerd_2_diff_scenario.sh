# After containerd_2.sh: the changes of running containers, on the kernel's overlay and on Vellum's
# engine, with and without their own ids, by Vellum's differ and by containerd's.
image=docker.io/library/vellum-demo-small:latest
top=$dir
map="--uidmap 0:100000:6000000 --gidmap 0:7000000:6000000"
changes='echo "version 9" > /app/version; rm -r /odd/links; mkdir /made; ln /app/version /made/again; chmod 750 /odd/empty-directory; chown 7:8 /odd/empty'

begin() { # NAME VELLUM-FLAGS SERVER-FLAGS
  dir=$top/$1
  run=/run/$1
  vellum_flags=$2
  server_flags=$3
  mkdir -p "$dir" "$run"
  write_config
  if test -n "$3"; then
    # The differ's section, which comes later, has its own address.
    sed -i '0,\|^  address = "'"$run"'/vs"|s||&\n  capabilities = ["remap-ids"]|' "$dir/config.toml"
  fi
  if test "$1" = walked; then sed -i 's/"vellum-diff", "walking"/"walking"/' "$dir/config.toml"; fi
  start_vellum
  start_containerd
  c image import --snapshotter vellum /exchange/small.tar > /dev/null
}

changed() { # NAME RUN-FLAGS: what the changes of a container are
  c run --detach --snapshotter vellum $2 $image "$box-$1" /bin/sh -c 'echo begun > /begun; while :; do sleep 1; done'
  inside() { c task exec --exec-id "x$(date +%N)" "$box-$1" /bin/sh -ec "$2"; }
  wait_for inside "$1" 'grep -qx begun /begun'
  inside "$1" "$changes"
  c snapshots --snapshotter vellum diff --keep "$box-$1" > "$dir/$1.tar.gz"
  # The container keeps running undisturbed.
  inside "$1" 'grep -qx "version 9" /made/again; echo on > /on'
  tar --numeric-owner -tvzf "$dir/$1.tar.gz" | awk '{ print $1, $2, $6, $7, $8, $9 }' | sed 's/ *$//; s/^\([^ ]*\) \([^ ]*\) \(.*\.wh\..*\)$/whiteout \3/' | sort > "$top/$1.list"
  c task kill --signal SIGKILL "$box-$1"
  wait_for sh -c "! ctr --address '$run/sock' task ls | grep -q RUNNING"
  c task rm "$box-$1" > /dev/null 2>&1 || true
  wait_for c container rm "$box-$1"
}

end() { # DIFFS
  test "$(grep -c 'done call="Diff"' "$dir/vellum.log")" = "$1"
  if grep 'left to the next differ' "$dir/vellum.log"; then exit 1; fi
  remove_everything default
  kill $containerd_pid
  wait $containerd_pid || true
  kill $vellum_pid
  wait $vellum_pid
}

PATH=/exchange:$PATH
begin kernel "" --remap-ids
changed kernel ""
changed mapped-by-the-kernel "$map --remap-labels"
end 2
begin engine "--engine vellum" --remap-ids
changed engine ""
changed mapped-by-the-engine "$map --remap-labels"
end 2
begin walked "--engine vellum" ""
changed walked ""
end 0
sed 's/^/ok: /' "$top/kernel.list"
for other in mapped-by-the-kernel engine mapped-by-the-engine walked; do
  diff "$top/kernel.list" "$top/$other.list" >&2
  echo "ok: the same: $other"
done
echo "ok: ended"
