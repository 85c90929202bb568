#!/bin/bash
# Boots systemd in a container whose root is a throw-away overlay of this machine's, runs SCENARIO
# as root inside, and prints its output.
#
#   live_systemd.sh VELLUM CONTRIB SCENARIO EXCHANGE
#
# EXCHANGE, a directory, is /exchange inside; it gets vellum and contrib next to its other content.
set -eu
vellum=$1 contrib=$2 scenario=$3 exchange=$4
place=$exchange/machine
mkdir "$place"
mount -t tmpfs machine "$place"
end() {
  # What systemd-nspawn creates in each hierarchy and leaves behind.
  for group in /sys/fs/cgroup/*/{payload,supervisor}; do
    test ! -d "$group" || find "$group" -depth -type d -exec rmdir {} + 2> /dev/null || true
  done
  umount -R "$place/root" 2> /dev/null || true
  umount -R "$place"
}
trap end EXIT
mkdir "$place"/{root,upper,work}
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
rm -rf "$place"/root/etc/{vellum,containerd,docker} "$place"/root/usr/local/bin/vellum
cp "$vellum" "$exchange/vellum"
cp -r "$contrib" "$exchange/contrib"
cp "$scenario" "$exchange/scenario.sh"
cat > "$place/root/etc/systemd/system/scenario.service" << 'UNIT'
[Unit]
After=basic.target
[Service]
Type=oneshot
ExecStart=/bin/bash /exchange/scenario.sh
StandardOutput=append:/exchange/said
StandardError=append:/exchange/said
ExecStopPost=/bin/systemctl --no-block poweroff
UNIT
printf '[Unit]\nRequires=basic.target scenario.service\n' > "$place/root/etc/systemd/system/scenario.target"
# runc needs keys and BPF; the machine's own state is neither visible nor writable.
timeout 300 systemd-nspawn --quiet --directory="$place/root" --register=no --keep-unit --boot --private-network \
  --capability=all --system-call-filter='@keyring bpf' --bind=/dev/fuse --bind="$exchange:/exchange" \
  --tmpfs=/var/lib/containerd --tmpfs=/var/lib/vellum --tmpfs=/var/lib/docker \
  systemd.unit=scenario.target < /dev/null > "$exchange/console" 2>&1 || true
cat "$exchange/said"
