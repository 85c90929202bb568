# Runs a command as a plain user with subordinate ids, in a separate root file system
# (scripts/forky-root.sh run). Nothing in it is changed; the files that define the user are mounted
# over it, only in this mount namespace.
#
#   as_plain_user.sh HOME COMMAND [ARGUMENT]...
#
# HOME is the user's home, created if missing. XDG_RUNTIME_DIR is /run/user/61234. Every user can
# open /dev/fuse, as on most machines.
set -eu
home=$1 id=61234 name=vellum-plain-user
shift
etc=/run/etc-of-the-plain-user
mkdir -p "$etc" "$home" /run/user/$id
line() {
    cat "/etc/$1" > "$etc/$1" 2> /dev/null || :
    echo "$2" >> "$etc/$1"
    [ -e "/etc/$1" ] || : > "/etc/$1"
    mount --bind "$etc/$1" "/etc/$1"
}
line passwd "$name:x:$id:$id::$home:/bin/sh"
line group "$name:x:$id:"
line subuid "$name:1234000000:65536"
line subgid "$name:1234000000:65536"
if [ -e /dev/fuse ]; then
    mknod "$etc/fuse" c 10 229
    chmod 666 "$etc/fuse"
    mount --bind "$etc/fuse" /dev/fuse
fi
# crun doesn't accept a mixture of cgroups v1 and v2, so show only v2.
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
chown "$id:$id" "$home" /run/user/$id
chmod 700 /run/user/$id
cd "$home"
exec setpriv --reuid $id --regid $id --clear-groups env -i "HOME=$home" XDG_RUNTIME_DIR=/run/user/$id USER=$name LC_ALL=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
