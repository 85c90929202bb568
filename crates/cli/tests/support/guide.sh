# Runs the commands of a guide on a machine of their own: this machine's root file system, with
# everything that is written going to memory. No service runs there, no network can be reached, and
# nothing is left afterwards.
#
#   unshare --mount --net --pid --fork --kill-child --propagation private \
#     sh guide.sh DIR USER VELLUM CONTRIB SERVICE...
#
# DIR has `guide` (the commands), `image.tar` and `systemctl`, and an empty directory `machine`.
# USER runs the commands: `root` or `plain`. The services are started before. Ends with 77 where no
# such machine can be made.
set -eu
dir=$1 user=$2 vellum=$3 contrib=$4
shift 4

mount -t tmpfs -o mode=0755 tmpfs "$dir/machine"
cd "$dir/machine"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root || exit 77
# Stores of containers don't belong on an overlay, and neither do the reader's directories.
for place in /var/lib/vellum /var/lib/containerd /var/lib/docker /srv/guide /home; do
  mkdir -p "root$place" ".$place"
  mount --bind ".$place" "root$place"
done
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount --rbind /sys root/sys
mount -t tmpfs -o mode=0755 tmpfs root/run
mount -t tmpfs -o mode=1777 tmpfs root/tmp
# How this machine is set up is not how the reader's is.
rm -rf root/etc/containerd root/etc/docker root/etc/vellum root/etc/systemd/system/*vellum*
rm -f root/etc/containers/storage.conf root/usr/local/bin/fuse-overlayfs root/sbin/mount.fuse.vellum
mkdir -p root/usr/local/sbin
cp "$vellum" root/usr/local/bin/vellum
cp "$dir/systemctl" root/usr/local/sbin/systemctl
chmod 755 root/usr/local/sbin/systemctl
cp -r "$contrib" "$dir/image.tar" "$dir/guide" root/srv/guide
cd root
# Not chroot: runtimes must be able to leave for a root of their own.
pivot_root . mnt
umount -l mnt
ip link set lo up || busybox ip link set lo up
export LC_ALL=C.UTF-8 HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME
cd /srv/guide
for service; do systemctl start "$service"; done
if [ "$user" = root ]; then exec bash guide; fi

# A plain user with subordinate ids.
id=61234 name=you
for line in "passwd $name:x:$id:$id::/home/you:/bin/bash" "group $name:x:$id:" \
  "subuid $name:1234000000:65536" "subgid $name:1234000000:65536"; do
  echo "${line#* }" >> "/etc/${line%% *}"
done
mkdir -p /home/you /run/user/$id
cp image.tar guide /home/you
chown -R $id:$id /home/you /run/user/$id
chmod 700 /run/user/$id
# As on most machines, where everybody can open it.
mknod -m 666 /run/fuse c 10 229
mount --bind /run/fuse /dev/fuse
# crun takes no mixture of both kinds of cgroups: as on a machine with the second kind only.
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
cd /home/you
exec setpriv --reuid $id --regid $id --clear-groups env -i HOME=/home/you XDG_RUNTIME_DIR=/run/user/$id \
  USER=$name LC_ALL=$LC_ALL PATH="$PATH" bash guide
