#!/usr/bin/env bash
# Runs a command on another kernel in an emulated machine: the oldest Debian kernel that Vellum
# supports (6.1), or the newest (from forky).
#
#   scripts/vm.sh KERNEL COMMAND [ARGUMENT]...      KERNEL: 6.1 or new
#
# The guest sees this machine's files as they are at the start; changes in the guest are lost at the
# end. Its /tmp is a separate ext4 file system with project quotas. The command starts as root in
# the current directory; its output is printed here, and its exit code is passed on.
#
# VM_MINUTES: time limit (60). VM_MEMORY: 3G. VM_DISK: a file to use as the disk of /tmp; it is
# kept. The guest runs at a tenth of native speed: build here, run there. On this machine only
# .cache/vm changes.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
cache=${VM_CACHE:-$here/.cache/vm}
say() { printf 'vm: %s\n' "$*" >&2; }
usage() { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
[ $# -ge 2 ] || usage
kernel=$1
shift

# What the initramfs needs before the machine's own files are mounted.
first="virtio_pci virtio_blk 9p 9pnet_virtio overlay quota_v2 ext4"
# Modules that tests may need. Those that a kernel has built in, or lacks, are skipped.
later="fuse loop erofs xfs btrfs dm_log_writes dm_flakey"

packages() { # the kernel packages that the metapackage depends on
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances linux-image-amd64 |
    grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u
}

fetch() { # into the current directory
  case $kernel in
  6.1) # shellcheck disable=SC2046 # one word each
    apt-get -o APT::Sandbox::User=root download -qq $(packages) ;;
  new)
    # shellcheck disable=SC2016
    EXCHANGE=$PWD "$here/scripts/forky-root.sh" run sh -c "$(declare -f packages)"'
      cd /exchange && apt-get update -qq && apt-get -o APT::Sandbox::User=root download -qq $(packages)' ;;
  *) usage ;;
  esac
}

make_kernel() {
  local dir=$cache/$kernel release image file
  [ ! -e "$dir/complete" ] || return 0
  say "fetching the kernel: a minute, once"
  rm -rf "$dir"
  mkdir -p "$dir/packages" "$dir/root"
  (cd "$dir/packages" && fetch >&2)
  for file in "$dir"/packages/*.deb; do dpkg-deb -x "$file" "$dir/root"; done
  [ -e "$dir/root/usr/lib/modules" ] || { mkdir -p "$dir/root/usr/lib" && mv "$dir/root/lib/modules" "$dir/root/usr/lib/modules"; }
  release=$(basename "$dir"/root/usr/lib/modules/*)
  image=$(find "$dir/root" -name 'vmlinuz*' -type f | head -n 1)
  cp "$image" "$dir/vmlinuz"
  mv "$dir/root/usr/lib/modules/$release" "$dir/modules"
  # depmod and modprobe expect lib/modules/RELEASE.
  mkdir -p "$dir/lib/modules"
  ln -s ../../modules "$dir/lib/modules/$release"
  depmod -b "$dir" "$release" 2>/dev/null
  rm -rf "$dir/packages" "$dir/root"
  echo "$release" >"$dir/complete"
}

make_initramfs() { # rebuilt after a change of this script
  local dir=$cache/$kernel release tree=$cache/$kernel/initramfs module path order=()
  [ ! "$dir/initramfs.gz" -nt "$0" ] || return 0
  release=$(cat "$dir/complete")
  mkdir -p "$tree/bin" "$tree/modules"
  cp "$(command -v busybox)" "$tree/bin/busybox"
  for module in $first; do
    while read -r word path _; do
      [ "$word" = insmod ] || continue
      case " ${order[*]-} " in *" $(basename "$path") "*) continue ;; esac
      order+=("$(basename "$path")")
      case $path in
      *.xz) xz -dc "$path" >"$tree/modules/$(basename "$path")" ;;
      *.zst) zstd -qdc "$path" >"$tree/modules/$(basename "$path")" ;;
      *) cp "$path" "$tree/modules/" ;;
      esac
    done < <(modprobe -S "$release" -d "$dir" --show-depends "$module" 2>/dev/null)
  done
  printf '%s\n' "${order[@]}" >"$tree/modules/order"
  cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /proc /sys /dev /host /over /root
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
while read -r module; do $B insmod /modules/$module; done < /modules/order
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose host /host
$B mount -t tmpfs -o mode=755 over /over
$B mkdir /over/upper /over/work
$B mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work over /root
for dir in proc sys dev; do $B mount --move /$dir /root/$dir; done
$B mount -t tmpfs -o mode=755 run /root/run
$B mount -t ext4 -o prjquota /root/dev/vda /root/tmp 2> /dev/null || $B mount -t ext4 /root/dev/vda /root/tmp
script=$($B sed "s/.*vellum_script=\([^ ]*\).*/\1/" /root/proc/cmdline)
$B cp /host$script /root/run/script
$B cp $B /root/run/busybox
$B cat > /root/run/init << END
/bin/sh /run/script
echo \$? > /dev/ttyS1
/run/busybox sync
/run/busybox umount /tmp
/run/busybox poweroff -f
END
# Not chroot: in a root that is not its mount namespace's, no process may create a user namespace.
exec $B switch_root /root /run/busybox sh /run/init
INIT
  chmod 755 "$tree/init"
  (cd "$tree" && find . | cpio --quiet -o -H newc | gzip -1) >"$dir/initramfs.gz"
  rm -rf "$tree"
}

for program in qemu-system-x86_64 cpio busybox depmod xz mkfs.ext4; do
  command -v "$program" >/dev/null || { say "needs $program: scripts/setup.sh slow"; exit 1; }
done
[ "$(id -u)" = 0 ] || { say "needs root"; exit 1; }
mkdir -p "$cache"
(flock 9 && make_kernel && make_initramfs) 9>"$cache/lock"
dir=$cache/$kernel release=$(cat "$cache/$kernel/complete")

work=$(mktemp -d "${TMPDIR:-/tmp}/vellum-vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
disk=${VM_DISK:-$work/disk}
if [ ! -e "$disk" ]; then
  truncate -s 12G "$disk"
  mkfs.ext4 -q -O quota,project,verity -E quotatype=prjquota "$disk"
fi

{
  printf 'export PATH=%q HOME=/root LC_ALL=C.UTF-8 TERM=dumb\n' "$PATH:/usr/sbin:/sbin"
  echo "ln -s /proc/self/fd /dev/fd; ln -s fd/0 /dev/stdin; ln -s fd/1 /dev/stdout; ln -s fd/2 /dev/stderr"
  echo "mkdir -p /run/lock /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t cgroup2 cgroup2 /sys/fs/cgroup"
  echo "mkdir -p /lib/modules/$release; mount --bind '$dir/modules' /lib/modules/$release"
  echo "for module in $later; do modprobe -q \$module || :; done"
  echo 'stty -F /dev/ttyS0 -onlcr 2> /dev/null; chmod 1777 /tmp; ip link set lo up'
  for name in ${!VELLUM_*} RUST_BACKTRACE; do [ -z "${!name:-}" ] || printf 'export %s=%q\n' "$name" "${!name}"; done
  printf 'cd %q || exit 1\n' "$PWD"
  printf '%q ' "$@"
  echo
} >"$work/script"

code=0
timeout --foreground "${VM_MINUTES:-60}m" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "${VM_MEMORY:-3G}" -nodefaults -no-reboot -display none \
  -kernel "$dir/vmlinuz" -initrd "$dir/initramfs.gz" -append "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on vellum_script=$work/script" \
  -serial stdio -serial "file:$work/code" \
  -drive "file=$disk,if=virtio,format=raw,cache=unsafe" \
  -virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap" </dev/null || code=$?
[ "$code" = 0 ] || { say "the guest did not shut down by itself: $code"; exit 1; }
code=$(tr -dc 0-9 <"$work/code")
exit "${code:-1}"
