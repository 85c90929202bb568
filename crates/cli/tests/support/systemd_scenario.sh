# Runs under systemd (live_systemd.sh): Vellum's installer and units with Debian's containerd and
# Docker. The test compares the "ok: ..." lines; any failure ends the script.
set -eu
unit=vellum-containerd
for cgroup in /sys/fs/cgroup/*; do mount -o remount,rw,bind "$cgroup" 2> /dev/null || true; done

wait_for() {
  for _ in $(seq 600); do
    if "$@" > /dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "waited in vain for: $*"
  journalctl --no-pager -n 60
  return 1
}
main() { systemctl show -P MainPID "$unit.service"; }
runs() { test "$(main)" != 0 && test -d "/proc/$(main)"; }
# Calls in progress when it died may fail; later calls wait.
crash() {
  wait_for runs
  local pid
  pid=$(main)
  kill -9 "$pid"
  wait_for test ! -d "/proc/$pid"
  sleep 0.05
}
snapshots() { ctr snapshots --snapshotter vellum ls | tail -n +2 | wc -l; }
engine() { pgrep -f __serve-overlay > /dev/null; }
no_engine() { ! engine; }

mkdir -p /etc/vellum /etc/docker
systemctl start containerd
/exchange/vellum node install --activate
vellum node status > /dev/null
echo "ok: installed: $(systemctl is-active $unit.socket) $(systemctl is-enabled $unit.socket)"
systemctl stop $unit.service 2> /dev/null
ctr images import --snapshotter vellum /exchange/small.tar > /dev/null
image=$(ctr images ls -q)
echo "ok: containerd's first call started the server: $(systemctl is-active $unit.service)"
# ctr can lose the output of a short-lived container.
for _ in 1 2 3 4 5; do
  said=$(ctr run --rm --snapshotter vellum "$image" one /bin/sh -c 'echo "ok: a container ran"')
  test -z "$said" || break
done
echo "$said"

before=$(main)
systemctl reload $unit
test "$before" = "$(main)"
echo "ok: a reload keeps the process"

layers=$(snapshots)
for _ in 1 2 3 4 5 6 7 8; do
  crash
  test "$(snapshots)" = "$layers"
done
echo "ok: eight crashes in a row, and containerd noticed none"
for _ in 1 2 3; do
  systemctl restart $unit
  test "$(snapshots)" = "$layers"
done
systemctl stop $unit 2> /dev/null
test "$(snapshots)" = "$layers"
echo "ok: neither a restart nor a stop"

echo 'engine = 7' > /etc/vellum/vellum.toml
restarts() { systemctl show -P NRestarts $unit; }
if systemctl restart $unit 2> /dev/null; then exit 1; fi
before=$(restarts)
sleep 3
test "$(restarts)" -le $((before + 1))
echo 'engine = "vellum"' > /etc/vellum/vellum.toml
wait_for runs
test "$(restarts)" -gt "$before"
# containerd retries after its own delay.
wait_for ctr snapshots --snapshotter vellum ls
echo "ok: a server that can't begin tries again, and not at once"
ctr run -d --snapshotter vellum "$image" two /bin/sleep 1000
engine
says() { ctr task exec --exec-id "$1" two /bin/sh -c 'echo written > /file && cat /file'; }
crash
test "$(says a)" = written
systemctl restart $unit
test "$(says b)" = written
systemctl restart containerd
test "$(says c)" = written
systemctl stop containerd $unit.service $unit.socket
engine
systemctl start $unit.socket containerd
test "$(says d)" = written
printf 'another build' >> /exchange/vellum
/exchange/vellum node install --activate
vellum node status > /dev/null
test "$(says e)" = written
echo "ok: a container on the engine outlives the server, containerd, both, and an upgrade"
ctr task kill -s KILL two
gone() { ctr task rm two; }
wait_for gone
ctr containers rm two
wait_for no_engine
ctr images rm --sync "$image" > /dev/null
empty() { test "$(snapshots)" = 0; }
wait_for empty
echo "ok: nothing is left"
vellum node uninstall --activate
ctr version > /dev/null
echo "ok: uninstalled: $(ls /etc/containerd /etc/systemd/system /usr/local/bin | grep -c vellum || true) $(ls /etc/containerd | wc -l)"
rm /etc/vellum/vellum.toml

unit=vellum-docker
install -m 755 /exchange/vellum /usr/local/bin/vellum
install -m 644 -t /etc/systemd/system /exchange/contrib/systemd/$unit.*
systemctl daemon-reload
systemctl enable --now $unit.socket
cp /exchange/contrib/docker/daemon-plugin.json /etc/docker/daemon.json
mkdir -p /etc/systemd/system/docker.service.d
printf '[Service]\nExecStart=\nExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock --iptables=false --bridge=none\n' \
  > /etc/systemd/system/docker.service.d/net.conf
systemctl daemon-reload
systemctl start docker
echo "ok: docker's storage is $(docker info --format '{{.Driver}}'), its server $(systemctl is-active $unit.service)"
docker load -qi /exchange/small.tar > /dev/null
image=$(docker images -q)
docker run --rm "$image" /bin/sh -c 'echo "ok: a container ran"'
docker run -d --name two "$image" /bin/sleep 1000 > /dev/null
crash
docker exec two /bin/sh -c 'echo written > /file'
systemctl restart $unit
test "$(docker diff two)" = "A /file"
systemctl restart docker
docker start two > /dev/null
test "$(docker exec two cat /file)" = written
docker rm -f two > /dev/null
docker rmi "$image" > /dev/null
echo "ok: nothing that docker did failed for a crash and two restarts"

# The only complaint allowed is about a call that was interrupted when the server died.
for each in vellum-containerd vellum-docker; do
  journalctl -u $each.service --no-pager -o cat | grep -E 'WARN|ERROR|panicked' || true
done
echo "ok: the end"
