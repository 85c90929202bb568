"""Every operation with every attribute: which stale values a mount shows after it, and what it changed.

    matrix.py prepare DIR          creates a directory for each cell
    matrix.py try DIR              does each operation once for each way of reading, in the prepared directories
    matrix.py list                 names the operations

`try` prints a line for each stale answer (`stale OPERATION ASKED NODE: FIELD said X, is Y`), one for each operation that could not be
tried (`untried ...`), one for each operation's changes (`changed OPERATION NODE: ...`), and at the end `cells N`. The truth is read with AT_STATX_FORCE_SYNC, for
which a mount asks its server.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)
SIZE = 70_000
USER = 1000
# Name, bit of statx, and its location in struct statx: (offset, format).
FIELDS = {
    "mode": (0x2 | 0x1, (28, "H")),
    "nlink": (0x4, (16, "I")),
    "uid": (0x8, (20, "I")),
    "gid": (0x10, (24, "I")),
    "atime": (0x20, (64, "qI")),
    "mtime": (0x40, (112, "qI")),
    "ctime": (0x80, (96, "qI")),
    "size": (0x200, (40, "Q")),
    "blocks": (0x400, (48, "Q")),
}
BASIC = 0x7FF
FORCE_SYNC = 0x2000
EMPTY_PATH, NO_FOLLOW = 0x1000, 0x100


def statx(fd, path, mask, flags=0):
    """The fields of one statx(2), all of them, whatever was requested."""
    buffer = ctypes.create_string_buffer(256)
    if path is None:
        path, flags = b"", flags | EMPTY_PATH
    done = libc.statx(fd, ctypes.c_char_p(os.fsencode(path)), flags | NO_FOLLOW, mask, buffer)
    if done:
        raise OSError(ctypes.get_errno(), path)
    return {name: struct.unpack_from(how, buffer.raw, at) for name, (_, (at, how)) in FIELDS.items()}


# How attributes are read: one field or all, by name or by descriptor.
ASKED = [(field, by) for by in ("name", "descriptor") for field in (*FIELDS, "all")]
WAYS = os.environ.get("WAYS", "each")
if WAYS == "each field once":
    ASKED = [(field, by) for field, by in ASKED if field == "all" or by == "descriptor"]
elif WAYS == "all fields":
    ASKED = [("all", "name"), ("all", "descriptor")]
elif WAYS == "changes":
    ASKED = [("all", "descriptor")]
# The nodes examined in each cell, below the cell's directory.
NODES = [".", "d", "d/f", "d/g", "d/l", "d/sub", "d/full", "h", "h/f", "e"]


class Cell:
    """A directory, with its open files."""

    def __init__(self, at):
        self.at = at
        self.fds = {}

    def path(self, name):
        return os.path.join(self.at, name)

    def open(self, name, flags=os.O_RDWR, mode=0o644):
        return os.open(self.path(name), flags, mode)


OPERATIONS = {}


def operation(mode=0o644, linked=False, user=False):
    """Declares an operation: the mode of its file, whether it has a second name, whether an unprivileged user does it."""

    def declare(function):
        OPERATIONS[function.__name__] = (function, mode, linked, user)
        return function

    return declare


def variants(function, **more):
    """The operation by root on a plain file, on one with setuid, on a linked one, and by a user on one with setuid."""
    for name, how in {
        "": {},
        "_suid": {"mode": 0o6777},
        "_linked": {"linked": True},
        "_by_user": {"mode": 0o6777, "user": True},
        "_by_user_locked": {"mode": 0o2767, "user": True},
        "_by_user_linked": {"mode": 0o4777, "user": True, "linked": True},
    }.items():
        OPERATIONS[function.__name__ + name] = (function, how.get("mode", 0o644), how.get("linked", False), how.get("user", False))
    return function


# Bytes.


@variants
def write(cell):
    os.pwrite(cell.open("d/f"), b"new", 100)


@variants
def append(cell):
    os.write(cell.open("d/f", os.O_WRONLY | os.O_APPEND), b"n" * 9000)


def aligned(byte):
    buffer = mmap.mmap(-1, 8192)
    buffer.write(byte * 8192)
    return buffer


@variants
def write_direct(cell):
    os.pwrite(cell.open("d/f", os.O_RDWR | os.O_DIRECT), aligned(b"d"), 4096)


@variants
def write_far_behind(cell):
    os.pwrite(cell.open("d/f"), b"new", 1 << 20)


@variants
def store(cell):
    with mmap.mmap(cell.open("d/f"), SIZE) as mapped:
        mapped[5000:5003] = b"new"
        mapped.flush()


@operation()
def store_without_msync(cell):
    with mmap.mmap(cell.open("d/f"), SIZE) as mapped:
        mapped[5000:5003] = b"new"


@variants
def truncate(cell):
    os.truncate(cell.path("d/f"), 100)


@variants
def truncate_descriptor(cell):
    os.ftruncate(cell.open("d/f"), 100)


@variants
def truncate_open(cell):
    cell.open("d/f", os.O_WRONLY | os.O_TRUNC)


@variants
def truncate_to_the_same(cell):
    os.ftruncate(cell.open("d/f"), SIZE)


@variants
def extend(cell):
    os.truncate(cell.path("d/f"), SIZE * 3)


def allocate(cell, mode, offset, length):
    fd = cell.open("d/f")
    if libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


@variants
def allocate_inside(cell):
    allocate(cell, 0, 0, 65536)


@variants
def allocate_behind(cell):
    allocate(cell, 0, SIZE, 65536)


@variants
def allocate_keeping_the_size(cell):
    allocate(cell, 1, 1 << 20, 65536)


@variants
def punch(cell):
    allocate(cell, 3, 4096, 32768)


@variants
def zero(cell):
    allocate(cell, 0x10, 4096, 32768)


@variants
def copy_range(cell):
    os.copy_file_range(cell.open("d/g", os.O_RDONLY), cell.open("d/f"), 30000, 0, 1000)


@operation(mode=0o6777, user=True)
def copy_range_of_nothing(cell):
    os.copy_file_range(cell.open("d/g", os.O_RDONLY), cell.open("d/f"), 30000, SIZE * 2, 0)


@operation(mode=0o6777, user=True)
def send(cell):
    os.sendfile(cell.open("d/f"), cell.open("d/g", os.O_RDONLY), 0, 30000)


@operation()
def clone(cell):
    if libc.ioctl(cell.open("d/f"), ctypes.c_ulong(0x40049409), cell.open("d/g", os.O_RDONLY)):
        raise OSError(ctypes.get_errno(), "clone")


@operation()
def read(cell):
    os.pread(cell.open("d/g", os.O_RDONLY), 4096, 0)


@operation()
def read_direct(cell):
    os.preadv(cell.open("d/f", os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)], 0)


@operation()
def load(cell):
    with mmap.mmap(cell.open("d/f", os.O_RDONLY), SIZE, prot=mmap.PROT_READ) as mapped:
        mapped[6000]


@operation()
def read_the_link(cell):
    os.readlink(cell.path("d/l"))


@operation()
def list_names(cell):
    os.listdir(cell.path("d"))


@operation()
def sync(cell):
    fd = cell.open("d/f")
    os.pwrite(fd, b"new", 0)
    os.fsync(fd)


@operation()
def seek_a_hole(cell):
    os.lseek(cell.open("d/f", os.O_RDONLY), 0, os.SEEK_HOLE)


# Attributes.


@operation(mode=0o6777, linked=True)
def change_mode(cell):
    os.chmod(cell.path("d/f"), 0o640)


@operation()
def change_mode_of_a_directory(cell):
    os.chmod(cell.path("d"), 0o3775)


@operation(mode=0o6777, linked=True)
def change_owner(cell):
    os.chown(cell.path("d/f"), 3, 4)


@operation(mode=0o2767)
def change_owner_of_a_locked_file(cell):
    os.chown(cell.path("d/f"), 3, 4)


@operation(mode=0o6777)
def change_nothing_of_the_owner(cell):
    os.chown(cell.path("d/f"), -1, -1)


@operation()
def change_owner_of_a_link(cell):
    os.lchown(cell.path("d/l"), 3, 4)


@operation()
def change_owner_of_a_directory(cell):
    os.chown(cell.path("d/sub"), 3, 4)


@operation(linked=True)
def change_times(cell):
    os.utime(cell.path("h/f"), ns=(10**18, 10**18 + 5))


@operation()
def change_times_by_descriptor(cell):
    os.utime(cell.open("d/f"), ns=(10**18, 10**18 + 5))


@operation(linked=True)
def touch(cell):
    os.utime(cell.path("d/f"))


@operation(linked=True)
def set_xattr(cell):
    os.setxattr(cell.path("d/f"), "user.x", b"1")


@operation()
def set_xattr_of_a_directory(cell):
    os.setxattr(cell.path("d"), "user.x", b"1")


@operation()
def remove_xattr(cell):
    os.removexattr(cell.path("d/f"), "user.there")


def acl(group):
    entries = [(1, 6, -1), (2, 7, 5), (4, group, -1), (16, 7, -1), (32, 0, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


@operation(linked=True)
def set_acl(cell):
    os.setxattr(cell.path("d/f"), "system.posix_acl_access", acl(4))


@operation(mode=0o2755)
def set_acl_of_a_setgid_file(cell):
    os.setxattr(cell.path("d/f"), "system.posix_acl_access", acl(4))


@operation()
def set_acl_that_is_a_mode(cell):
    entries = [(1, 6, -1), (4, 2, -1), (32, 1, -1)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(cell.path("d/f"), "system.posix_acl_access", value)


@operation()
def remove_acl(cell):
    os.setxattr(cell.path("d/f"), "system.posix_acl_access", acl(4))
    os.removexattr(cell.path("d/f"), "system.posix_acl_access")


@operation()
def set_default_acl(cell):
    os.setxattr(cell.path("d"), "system.posix_acl_default", acl(4))


GET_FLAGS, SET_FLAGS, GET_FSX, SET_FSX = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820
NO_ATIME, NO_DUMP = 0x80, 0x40


def change_flags(fd, change):
    flags = struct.unpack("I", fcntl.ioctl(fd, GET_FLAGS, b"\0" * 4))[0]
    fcntl.ioctl(fd, SET_FLAGS, struct.pack("Q", change(flags)))


@operation(linked=True)
def set_flags(cell):
    change_flags(cell.open("d/f", os.O_RDONLY), lambda flags: flags | NO_DUMP)


@operation()
def set_the_same_flags(cell):
    change_flags(cell.open("d/f", os.O_RDONLY), lambda flags: flags)


@operation()
def set_flags_of_a_directory(cell):
    change_flags(cell.open("d", os.O_RDONLY), lambda flags: flags | NO_DUMP)


@operation()
def set_extended_flags(cell):
    fd = cell.open("d/f", os.O_RDONLY)
    now = bytearray(fcntl.ioctl(fd, GET_FSX, b"\0" * 28))
    now[0] |= 0x80
    now[4:8] = b"\0" * 4
    fcntl.ioctl(fd, SET_FSX, bytes(now))


# Names.


@operation()
def make_file(cell):
    cell.open("d/new", os.O_CREAT | os.O_WRONLY)


@operation()
def make_file_and_write(cell):
    os.write(cell.open("d/new", os.O_CREAT | os.O_WRONLY), b"x")


@operation()
def make_dir(cell):
    os.mkdir(cell.path("d/sub/new"))


@operation()
def make_pipe(cell):
    os.mkfifo(cell.path("d/new"))


@operation()
def make_link(cell):
    os.symlink("x", cell.path("d/new"))


@operation()
def make_nameless(cell):
    cell.open("d", os.O_TMPFILE | os.O_RDWR)


@operation()
def name_the_nameless(cell):
    fd = cell.open("d", os.O_TMPFILE | os.O_RDWR)
    # Python's function does not follow links.
    if libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(cell.path("e/new")), 0x400):
        raise OSError(ctypes.get_errno(), "linkat")


@operation()
def link(cell):
    os.link(cell.path("d/f"), cell.path("e/new"))


@operation(linked=True)
def link_again(cell):
    os.link(cell.path("h/f"), cell.path("e/new"))


@operation()
def link_a_link(cell):
    os.link(cell.path("d/l"), cell.path("e/new"), follow_symlinks=False)


@operation()
def unlink(cell):
    os.unlink(cell.path("d/f"))


@operation(linked=True)
def unlink_one_of_two(cell):
    os.unlink(cell.path("d/f"))


@operation(linked=True)
def unlink_both(cell):
    os.unlink(cell.path("d/f"))
    os.unlink(cell.path("h/f"))


@operation()
def remove_dir(cell):
    os.rmdir(cell.path("d/sub"))


@operation()
def remove_what_is_full(cell):
    try:
        os.rmdir(cell.path("d/full"))
    except OSError as error:
        assert error.errno == errno.ENOTEMPTY


@operation()
def rename(cell):
    os.rename(cell.path("d/f"), cell.path("d/new"))


@operation()
def rename_across(cell):
    os.rename(cell.path("d/f"), cell.path("e/new"))


@operation()
def rename_over(cell):
    os.rename(cell.path("d/f"), cell.path("d/g"))


@operation(linked=True)
def rename_over_one_of_two(cell):
    os.rename(cell.path("d/g"), cell.path("h/f"))


@operation(linked=True)
def rename_one_of_two(cell):
    os.rename(cell.path("d/f"), cell.path("e/new"))


@operation(linked=True)
def rename_to_the_same_file(cell):
    os.rename(cell.path("d/f"), cell.path("h/f"))


@operation()
def rename_dir(cell):
    os.rename(cell.path("d/sub"), cell.path("d/new"))


@operation()
def rename_dir_across(cell):
    os.rename(cell.path("d/full"), cell.path("e/new"))


@operation()
def rename_dir_over_empty(cell):
    os.rename(cell.path("d/full"), cell.path("d/sub"))


@operation()
def rename_a_link(cell):
    os.rename(cell.path("d/l"), cell.path("e/new"))


def rename2(cell, old, new, flags):
    if libc.renameat2(-100, os.fsencode(cell.path(old)), -100, os.fsencode(cell.path(new)), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


@operation()
def exchange(cell):
    rename2(cell, "d/f", "d/g", 2)


@operation(linked=True)
def exchange_across(cell):
    rename2(cell, "d/full", "h/f", 2)


@operation()
def rename_onto_nothing(cell):
    rename2(cell, "d/f", "e/new", 1)


# Running.


def prepare_cell(at, mode, linked):
    for directory in ("d/sub", "d/full", "h", "e"):
        os.makedirs(os.path.join(at, directory))
    for directory in ("", "d", "h", "e"):
        os.chmod(os.path.join(at, directory), 0o755)
    for name in ("d/f", "d/g", "d/full/x"):
        with open(os.path.join(at, name), "wb") as file:
            file.write(name.encode()[-1:] * SIZE)
    os.setxattr(os.path.join(at, "d/f"), "user.there", b"1")
    os.symlink("f", os.path.join(at, "d/l"))
    if linked:
        os.link(os.path.join(at, "d/f"), os.path.join(at, "h/f"))
    os.chmod(os.path.join(at, "d/f"), mode)


def place(base, name, asked):
    return os.path.join(base, f"{name}.{asked[0]}.{asked[1]}")


def chosen():
    names = os.environ.get("OPERATIONS")
    return names.split(",") if names else list(OPERATIONS)


def prepare(base):
    os.makedirs(base, exist_ok=True)
    for name in chosen():
        _, mode, linked, _ = OPERATIONS[name]
        for asked in ASKED:
            prepare_cell(place(base, name, asked), mode, linked)


def run(function, cell, user):
    """Does the operation in a child, so that none of its files stay open. Returns its errno, or 0."""
    child = os.fork()
    if child == 0:
        status = 0
        try:
            if user:
                os.setgroups([])
                os.setresgid(USER, USER, USER)
                os.setresuid(USER, USER, USER)
            function(cell)
        except OSError as error:
            status = error.errno
        except BaseException as error:
            print(error, file=sys.stderr)
            status = 255
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def try_all(base):
    cells = 0
    for name in chosen():
        function, _, _, user = OPERATIONS[name]
        for asked in ASKED:
            cell = Cell(place(base, name, asked))
            there = [node for node in NODES if os.path.lexists(cell.path(node))]
            fds = {node: os.open(cell.path(node), os.O_PATH | os.O_NOFOLLOW) for node in there}
            # Everything is cached now.
            before = {node: statx(fds[node], None, BASIC) for node in there}
            by_name = {node: statx(-100, cell.path(node), BASIC) for node in there}
            assert before == by_name, name
            status = run(function, cell, user)
            if status:
                if asked == ASKED[0]:
                    print(f"untried {name}: {os.strerror(status)}")
                for fd in fds.values():
                    os.close(fd)
                if status in (errno.EOPNOTSUPP, errno.ENOTTY):
                    break
            field, by = asked
            mask = BASIC if field == "all" else FIELDS[field][0]
            if status:
                continue
            for node in there:
                path = None
                if by == "name":
                    if not os.path.lexists(cell.path(node)):
                        continue
                    path = cell.path(node)
                at = fds[node] if path is None else -100
                said = statx(at, path, mask)
                true = statx(at, path, BASIC, FORCE_SYNC)
                cells += 1
                for which in FIELDS if field == "all" else [field]:
                    if said[which] != true[which]:
                        print(f"stale {name} {field} by {by} {node}: {which} said {said[which]}, is {true[which]}")
            if asked == ("all", "descriptor"):
                report(name, fds, before)
            for fd in fds.values():
                os.close(fd)
    print(f"cells {cells}")


def report(name, fds, before):
    """Prints which times changed, and the values of the rest, except access times and what depends on where bytes lie."""
    for node, fd in fds.items():
        now = statx(fd, None, BASIC)
        times = [field for field in ("mtime", "ctime") if now[field] != before[node][field]]
        said = [f"mode {now['mode'][0]:o}", f"uid {now['uid'][0]}", f"gid {now['gid'][0]}", f"nlink {now['nlink'][0]}"]
        if now["mode"][0] & 0o170000 == 0o100000:
            said.append(f"size {now['size'][0]}")
        print(f"changed {name} {node}: {' '.join(times) or 'no times'}; {', '.join(said)}")


if __name__ == "__main__":
    os.umask(0o022)
    match sys.argv[1]:
        case "prepare":
            prepare(sys.argv[2])
        case "try":
            try_all(sys.argv[2])
        case "list":
            print(*OPERATIONS, sep="\n")
