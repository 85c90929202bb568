"""Every way to have a file open twice and change it, in a union in passthrough mode and in a plain directory.

usage: passthrough_matrix.py UNION LOWER UPPER PLAIN ORIGIN

UNION is mounted; LOWER, UPPER and PLAIN hold the same files, created by `passthrough_matrix.py make DIRECTORY`: each cell has
its own. What programs see must be the same in both, with one exception, described in docs/semantics/mounts.md: a descriptor that
the kernel reads from a lower layer keeps that file's bytes. Prints each difference, and at the end how many cells there were.
"""

import errno
import hashlib
import itertools
import mmap
import os
import sys

SMALL, LARGE = 11355, 69632
FIRST = {"ro": os.O_RDONLY, "rw": os.O_RDWR, "append": os.O_RDWR | os.O_APPEND}
SECOND = {
    "ro": os.O_RDONLY,
    "rw": os.O_RDWR,
    "trunc": os.O_WRONLY | os.O_TRUNC,
    "direct": os.O_RDWR | os.O_DIRECT,
}
BEFORE = ("nothing", "read", "mmap")
CHANGES = ("chmod", "chown", "truncate", "write", "seek_end", "unlink", "link", "rename", "setxattr")
WAYS = ("name", "fd")
CELLS = list(
    itertools.product((SMALL, LARGE), FIRST, SECOND, (False, True), BEFORE, CHANGES, WAYS)
)


def content(size):
    return bytes(i * 7 % 251 for i in range(251)) * (size // 251) + b"x" * (size % 251)


def file_name(number):
    return "%d/f%d" % (number // 500, number)


def make(directory):
    bodies = {size: content(size) for size in (SMALL, LARGE)}
    for number, cell in enumerate(CELLS):
        path = os.path.join(directory, file_name(number))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(bodies[cell[0]])


def attempt(call, *arguments):
    """Returns the result of a call, or the name of its error."""
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]


def digest(data):
    return data if isinstance(data, str) else (len(data), hashlib.md5(data).hexdigest())


def attributes(stat):
    return stat if isinstance(stat, str) else (
        oct(stat.st_mode),
        stat.st_uid,
        stat.st_gid,
        stat.st_size,
        stat.st_nlink,
    )


def read_named(path):
    with open(path, "rb") as file:
        return file.read()


def change(kind, way, path, fd):
    target = fd if way == "fd" else path
    other = path + ".new"
    if kind == "chmod":
        return attempt(os.chmod, target, 0o640)
    if kind == "chown":
        return attempt(os.chown, target, 1234, 4321)
    if kind == "truncate":
        return attempt(os.truncate, target, 8255)
    if kind == "write":
        if way == "fd":
            return attempt(os.write, fd, b"changed")
        with open(path, "r+b") as file:
            return file.write(b"changed")
    if kind == "seek_end":
        if way == "fd":
            return attempt(os.lseek, fd, 0, os.SEEK_END)
        with open(path, "rb") as file:
            return file.seek(0, os.SEEK_END)
    if kind == "unlink":
        return attempt(os.unlink, path)
    if kind == "link":
        if way == "fd":
            return attempt(os.link, "/proc/self/fd/%d" % fd, other)
        return attempt(os.link, path, other)
    if kind == "rename":
        # Over an existing name.
        open(other, "wb").close()
        return attempt(os.rename, path, other)
    if kind == "setxattr":
        return attempt(os.setxattr, target, "user.changed", b"yes")
    raise ValueError(kind)


def observe(cell, path, kept):
    """Opens the file twice, changes it, and returns everything visible; bytes that an old descriptor may keep go to `kept`."""
    size, first, second, stat, before, kind, way = cell
    seen = {}
    fd = os.open(path, FIRST[first])
    mapping = None
    if stat:
        seen["stat before"] = attributes(os.stat(path))
    if before == "read":
        seen["read before"] = digest(os.pread(fd, 1 << 20, 0))
    elif before == "mmap":
        access = mmap.PROT_READ if first == "ro" else mmap.PROT_READ | mmap.PROT_WRITE
        mapping = mmap.mmap(fd, size, mmap.MAP_SHARED, access)
        seen["mapped before"] = digest(mapping[:])
    other = os.open(path, SECOND[second])
    seen["change"] = change(kind, way, path, fd)
    names = [path, path + ".new"]
    for name in names:
        seen["stat " + name[-3:]] = attributes(attempt(os.stat, name))
        seen["content " + name[-3:]] = digest(attempt(read_named, name))
        seen["xattr " + name[-3:]] = attempt(os.getxattr, name, "user.changed")
    for label, each in (("first", fd), ("second", other)):
        seen[label + " stat"] = attributes(os.fstat(each))
        seen[label + " end"] = os.lseek(each, 0, os.SEEK_END)
        seen[label + " xattr"] = attempt(os.getxattr, each, "user.changed")
    kept["first read"] = digest(os.pread(fd, 1 << 20, 0))
    if second in ("ro", "rw"):
        kept["second read"] = digest(os.pread(other, 1 << 20, 0))
    now = os.fstat(fd).st_size
    if mapping is not None and now > 4096:
        kept["mapped"] = digest(mapping[: now - 4096])
        if first != "ro":
            mapping[100:107] = b"by map!"
            mapping.flush()
            if second in ("ro", "rw"):
                seen["second sees the mapping"] = attempt(os.pread, other, 7, 100)
    # Each descriptor that writes puts a record at the end, and the other one finds it there.
    if first != "ro":
        os.lseek(fd, 0, os.SEEK_END)
        seen["first wrote"] = attempt(os.write, fd, b"FIRST")
    if second in ("rw", "trunc"):
        os.lseek(other, 0, os.SEEK_END)
        seen["second wrote"] = attempt(os.write, other, b"SECOND")
    seen["first end at last"] = os.lseek(fd, 0, os.SEEK_END)
    seen["second end at last"] = os.lseek(other, 0, os.SEEK_END)
    seen["first stat at last"] = attributes(os.fstat(fd))
    # Through the first descriptor, visible by name at once.
    seen["fchmod"] = attempt(os.fchmod, fd, 0o600)
    for name in names:
        seen["at last " + name[-3:]] = attributes(attempt(os.stat, name))
    if mapping is not None:
        mapping.close()
    os.close(fd)
    os.close(other)
    for name in names:
        seen["content at last " + name[-3:]] = digest(attempt(read_named, name))
    return seen


def main():
    union, lower, upper, plain, origin = sys.argv[1:]
    bad = 0
    for number, cell in enumerate(CELLS):
        size, first, second = cell[:3]
        name = file_name(number)
        if origin == "created":
            for place in (union, plain):
                path = os.path.join(place, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(content(size))
        kept, expected_kept = {}, {}
        seen = observe(cell, os.path.join(union, name), kept)
        expected = observe(cell, os.path.join(plain, name), expected_kept)
        if origin == "lower" and size == LARGE and first == "ro":
            # The kernel reads the lower file.
            old = content(size)
            expected_kept["first read"] = digest(old)
            if second == "ro":
                expected_kept["second read"] = digest(old)
            if "mapped" in expected_kept:
                end = expected["first stat"][3] - 4096
                expected_kept["mapped"] = digest(old[:end])
        seen.update(kept)
        expected.update(expected_kept)
        if origin == "lower" and read_named(os.path.join(lower, name)) != content(size):
            seen["lower layer"] = "written to"
        for what in sorted(set(seen) | set(expected)):
            if seen.get(what) != expected.get(what):
                bad += 1
                if bad < 40:
                    print(cell, what, "is", seen.get(what), "and should be", expected.get(what))
    print("cells=%d differences=%d" % (len(CELLS), bad))


if sys.argv[1] == "make":
    make(sys.argv[2])
else:
    main()
