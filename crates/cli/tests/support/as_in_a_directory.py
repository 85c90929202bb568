"""Draws a tree and changes to it, and makes the changes in a union and in a plain directory: both must be left alike.

    as_in_a_directory.py make SEED LOWER BARE UID GID   as root: makes the lower layer, and the directory with the same in it
    as_in_a_directory.py change SEED COUNT BARE UNION   as the user: prints how many changes were made, or the first
                                                        differences, with exit code 1

A file that belongs to another user, or whose ACL has an id that the user's namespace lacks, can't be
copied with all it has. Changes to such a file may be refused in the union, and the comparison ends
there.
"""

import errno
import os
import random
import stat
import struct
import subprocess
import sys

NAMES = ["a", "b", "c", "d", "e"]
MODES = [0, 0o100, 0o200, 0o300, 0o400, 0o500, 0o555, 0o600, 0o644, 0o700, 0o755, 0o777, 0o2755, 0o1777, 0o4755]
FOREIGN = [0, 1, 4321, 1_234_000_007]


def acl(entries):
    """An ACL as the kernel reads it: version 2, then tag, permissions and id of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def access_acl(draw, other):
    none = 0xFFFFFFFF
    return acl([(1, 7, none), (2, draw.choice([4, 6, 7]), other), (4, 5, none), (0x10, draw.choice([5, 7]), none), (0x20, draw.choice([0, 5]), none)])


def capability():
    """cap_net_raw+ep, version 2."""
    return struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def make(seed, lower, bare, uid, gid):
    draw = random.Random(seed)
    foreign = seed % 3 == 0
    late = []

    def own(path, link=False):
        mine = not foreign or draw.random() < 0.8
        ids = (uid, gid) if mine else (draw.choice(FOREIGN), draw.choice(FOREIGN))
        os.lchown(path, *ids)
        if link:
            return
        mode = draw.choice(MODES)
        if not mine:
            # A file that others may write needs a copy with an owner that the user can't set.
            mode = draw.choice([0o755, 0o700, 0o644, 0o555, 0o777])
        if not stat.S_ISDIR(os.lstat(path).st_mode) and draw.random() < 0.1:
            os.setxattr(path, "security.capability", capability())
        if draw.random() < 0.15 and not stat.S_ISFIFO(os.lstat(path).st_mode):
            os.setxattr(path, "user.mine", draw.choice([b"", b"value"]))
        if draw.random() < 0.1:
            os.setxattr(path, "system.posix_acl_access", access_acl(draw, draw.choice(FOREIGN + [uid])))
        if stat.S_ISDIR(os.lstat(path).st_mode) and draw.random() < 0.1:
            os.setxattr(path, "system.posix_acl_default", access_acl(draw, draw.choice(FOREIGN + [uid])))
        late.append((path, mode))

    def fill(at, depth):
        for name in NAMES:
            path = os.path.join(at, name)
            kind = draw.choice(["file", "file", "dir", "dir", "link", "fifo", "hard", "none"])
            if kind == "dir" and depth < 3:
                os.mkdir(path)
                fill(path, depth + 1)
                own(path)
            elif kind == "file":
                with open(path, "wb") as file:
                    file.write(draw.randbytes(draw.choice([0, 1, 5000])))
                own(path)
            elif kind == "link":
                os.symlink(draw.choice(NAMES + ["nowhere"]), path)
                own(path, link=True)
            elif kind == "fifo":
                os.mkfifo(path)
                own(path)
            elif kind == "hard":
                others = [n for n in os.listdir(at) if stat.S_ISREG(os.lstat(os.path.join(at, n)).st_mode)]
                if others:
                    os.link(os.path.join(at, draw.choice(sorted(others))), path)

    fill(lower, 0)
    for path, mode in reversed(late):
        os.chmod(path, mode)
    os.chown(lower, uid, gid)
    subprocess.run(["cp", "-a", lower + "/.", bare], check=True)


def paths(root):
    """Every path that can be reached in a directory, relative, sorted."""
    found = []
    for at, dirs, files in os.walk(root):
        found += [os.path.relpath(os.path.join(at, name), root) for name in dirs + files]
    return sorted(found)


def draw_change(draw, known):
    """A change as a name for messages and a function of the root."""
    def place():
        if known and draw.random() < 0.75:
            return draw.choice(known)
        depth = draw.choice([1, 1, 2, 3])
        return "/".join(draw.choice(NAMES) for _ in range(depth))

    path, other = place(), place()
    mode, flags = draw.choice(MODES), draw.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC])
    data = draw.randbytes(draw.choice([1, 100]))
    then = draw.choice([1, 1_000_000_000])
    foreign = draw.choice(FOREIGN)
    value = access_acl(draw, draw.choice(FOREIGN + [os.getuid()]))

    def opened(root):
        # Don't wait for a fifo.
        fd = os.open(os.path.join(root, path), flags | os.O_NONBLOCK)
        try:
            if flags & os.O_ACCMODE == os.O_RDONLY:
                return os.read(fd, 6000) if stat.S_ISREG(os.fstat(fd).st_mode) else None
            return [os.write(fd, data)]
        finally:
            os.close(fd)

    def created(root):
        fd = os.open(os.path.join(root, path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        try:
            return [os.write(fd, data)]
        finally:
            os.close(fd)

    def full(root):
        return os.path.join(root, path)

    changes = [
        ("open %o" % flags, opened, 4),
        ("create %o" % mode, created, 2),
        ("mkdir %o" % mode, lambda root: os.mkdir(full(root), mode), 2),
        ("chmod %o" % mode, lambda root: os.chmod(full(root), mode), 6),
        ("utime", lambda root: os.utime(full(root), (then, then), follow_symlinks=False), 3),
        ("chown to oneself", lambda root: os.lchown(full(root), os.getuid(), -1), 1),
        ("chown %d" % foreign, lambda root: os.lchown(full(root), foreign, -1), 1),
        ("unlink", lambda root: os.unlink(full(root)), 2),
        ("rmdir", lambda root: os.rmdir(full(root)), 2),
        ("rename to " + other, lambda root: os.rename(full(root), os.path.join(root, other)), 4),
        ("link to " + other, lambda root: os.link(full(root), os.path.join(root, other), follow_symlinks=False), 2),
        ("symlink", lambda root: os.symlink(other, full(root)), 1),
        ("list", lambda root: sorted(os.listdir(full(root))), 3),
        ("truncate", lambda root: os.truncate(full(root), len(data)), 2),
        ("setxattr", lambda root: os.setxattr(full(root), "user.mine", data, follow_symlinks=False), 2),
        ("getxattr", lambda root: os.getxattr(full(root), "user.mine", follow_symlinks=False), 1),
        ("removexattr", lambda root: os.removexattr(full(root), "user.mine", follow_symlinks=False), 1),
        ("set an ACL", lambda root: os.setxattr(full(root), "system.posix_acl_access", value), 1),
        ("set a default ACL", lambda root: os.setxattr(full(root), "system.posix_acl_default", value), 1),
        ("remove the ACL", lambda root: os.removexattr(full(root), "system.posix_acl_access"), 1),
        ("set a capability", lambda root: os.setxattr(full(root), "security.capability", capability()), 1),
        ("access", lambda root: [os.access(full(root), how) for how in (os.R_OK, os.W_OK, os.X_OK)], 1),
    ]
    (name, change, _), = draw.choices(changes, [weight for _, _, weight in changes])
    return "%s %s" % (name, path), change, (path, other)


def named(value):
    """An ACL's value without entries for ids that this namespace has no number for, which a union leaves out."""
    if not value.startswith(struct.pack("<I", 2)):
        return value
    entries = [value[at:at + 8] for at in range(4, len(value), 8)]
    return [entry for entry in entries if entry[0] not in (2, 8) or entry[4:] != b"\xff" * 4]


def is_strange(found):
    """Whether it belongs to another user: in a namespace, to an id that is not mapped."""
    if os.getuid() == 0:
        return 65534 in (found.st_uid, found.st_gid)
    return (found.st_uid, found.st_gid) != (os.getuid(), os.getgid())


def up_from(path, root):
    """A path and the directories above it, up to the root."""
    while len(path) > len(root):
        yield path
        path = os.path.dirname(path)


def strange(root, path):
    """Whether a file, or a directory on the way to it, has an owner or an ACL that the user could give to no copy."""
    root = os.path.realpath(root)
    whole = os.path.join(root, path)
    # The link's target counts, too.
    for at in [path for whole in (whole, os.path.realpath(whole)) for path in up_from(whole, root)]:
        try:
            found = os.lstat(at)
            attrs = [os.getxattr(at, attr, follow_symlinks=False) for attr in os.listxattr(at, follow_symlinks=False) if "acl" in attr]
        except OSError:
            continue
        if is_strange(found) or any(len(named(value)) < len(value) // 8 for value in attrs):
            return True
    return False


def outcome(change, root):
    try:
        return change(root)
    except OSError as error:
        return error.errno


def told(value):
    return errno.errorcode.get(value, value) if type(value) is int else value


def picture(root):
    """What a user sees of a tree, as far as it can be reached."""
    seen = {}

    def look(path, name):
        try:
            found = os.lstat(path)
        except OSError as error:
            seen[name] = error.errno
            return
        facts = [oct(found.st_mode), found.st_uid, found.st_gid]
        if not stat.S_ISDIR(found.st_mode):
            facts += [found.st_size, found.st_nlink]
        # Writing to a fifo updates its time; a FUSE server doesn't learn of that.
        if found.st_mtime < 1_500_000_000 and not stat.S_ISFIFO(found.st_mode):
            facts.append(found.st_mtime)
        try:
            # A user can't set capabilities, so the copy of a file loses them.
            names = sorted(set(os.listxattr(path, follow_symlinks=False)) - {"security.capability"})
        except OSError as error:
            names = [error.errno]
        facts.append(names)
        for attr in names:
            try:
                facts.append(named(os.getxattr(path, attr, follow_symlinks=False)))
            except (OSError, TypeError) as error:
                facts.append(getattr(error, "errno", None))
        # A namespace that includes id 65534 lets its root try to read files of unmapped owners.
        closed = os.getuid() == 0 and is_strange(found)
        if stat.S_ISREG(found.st_mode) and not closed:
            try:
                with open(path, "rb") as file:
                    facts.append(hash(file.read()))
            except OSError as error:
                facts.append(error.errno)
        if stat.S_ISLNK(found.st_mode):
            facts.append(os.readlink(path))
        if stat.S_ISDIR(found.st_mode) and not closed:
            try:
                names = sorted(os.listdir(path))
                facts.append(names)
            except OSError as error:
                facts.append(error.errno)
                names = NAMES
            for inner in names:
                look(os.path.join(path, inner), name + "/" + inner)
        seen[name] = facts

    look(root, "")
    return seen


def compare(bare, union):
    one, two = picture(bare), picture(union)
    return ["%s: %s in a directory, %s in the union" % (name or "/", one.get(name), two.get(name)) for name in sorted(set(one) | set(two)) if one.get(name) != two.get(name)]


def change(seed, count, bare, union):
    draw = random.Random(seed + 1_000_000)
    done = []
    wrong = compare(bare, union)
    if wrong:
        return done, ["before any change: " + line for line in wrong]
    for _ in range(count):
        name, act, named_in = draw_change(draw, paths(bare))
        forgiven = any(strange(bare, path) for path in named_in)
        plain, ours = outcome(act, bare), outcome(act, union)
        done.append("%s: %s" % (name, told(plain)))
        if plain != ours:
            if forgiven:
                # The two differ from here on.
                return done[:-1], []
            return done, ["%s: %s in a directory, %s in the union" % (name, told(plain), told(ours))]
        if len(done) % 10 == 0:
            wrong = compare(bare, union)
            if wrong:
                return done, wrong
    return done, compare(bare, union)


def main():
    what, seed = sys.argv[1], int(sys.argv[2])
    os.umask(0o022)
    if what == "make":
        make(seed, sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
        return 0
    done, wrong = change(seed, int(sys.argv[3]), sys.argv[4], sys.argv[5])
    if wrong:
        print("seed %d, after:\n  %s" % (seed, "\n  ".join(done[-12:])))
        print("\n".join(wrong[:6]))
        return 1
    print(len(done))
    return 0


sys.exit(main())
