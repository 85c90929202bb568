#!/usr/bin/env python3
"""Compares ways to mount a union of directories: a bare directory, the kernel's overlay, Vellum's engine, fuse-overlayfs.

    bench/union.py [ROW...] [--only NAME,NAME] [--io-uring] [--rounds N] [--disk DIR] [--output FILE] [--vellum PROGRAM]
                   [--before PROGRAM] [--fuse-overlayfs PROGRAM] [--passthrough-hp PROGRAM]
    bench/union.py --list

Needs root. Without --disk all files are on an ext4 in memory (a loop device on /dev/shm); with it, on that directory's file system.
In each round every contender gets a fresh upper on the same lower layer, and all of them run each row before
the next begins, in an order that rotates. A figure is the median of the rounds; a ratio is the median of the rounds' ratios
of the kernel's overlay, all features on, to the contender: above 1, the contender is faster. A second table says how many times
longer fuse-overlayfs took than each of Vellum's mounts. After the tables come the requests that each row cost Vellum's mounts, by type.

`vellum` reads requests from the device, `vellum-ring` takes them over io_uring. It runs where the host offers that, or with
--io-uring, which enables the host's setting during the run. `vellum-checked` has open=checked and runs only if
--only names it.

fuse-overlayfs 2.0 is `cargo install fuse-overlayfs`; it is searched in PATH unless given. `passthrough_hp` is libfuse's example
of a fast server, without a union in it: it mounts one directory and shows the cost of FUSE itself. It runs if given, once as it is
(`hp-passthrough`: the kernel reads and writes by itself where it can) and once with --nopassthrough (`hp`), which is what `vellum` is
to be compared with.
"""

import argparse
import atexit
import mmap
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = 4096
BIG = 1 << 30
WALK_FILES = 100_000
TREE_FILES = 20_000
# What each process unpacks in rows with several processes.
PART_FILES = 2_500
OPS = 2_000
APPENDS = 500
# Rows with several processes: this many at a time.
PROCESSES = (2, 4, 8)
OFFERED = "/sys/module/fuse/parameters/enable_uring"


def say(text):
    print(f"union: {text}", file=sys.stderr, flush=True)


def run(*command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **more)


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Contender:
    """One way to mount `lower`, with its own upper."""

    def __init__(self, name, mount):
        self.name, self.mount_by = name, mount
        self.log = None
        # A contender that shows one directory has a copy of the lower layer, used in all rounds:
        # rows destroy only what is under the round's number.
        self.has_copy, self.copy = False, None

    def mount(self, place, lower, number):
        here = os.path.join(place, f"{self.name}-{number}")
        self.upper, self.work = os.path.join(here, "upper"), os.path.join(here, "work")
        self.at = os.path.join(here, "merged")
        for directory in (self.upper, self.work, self.at):
            os.makedirs(directory)
        self.log = os.path.join(here, "log")
        self.mount_by(self, lower)

    def unmount(self):
        run("umount", self.at)
        with open(os.devnull) as _:
            # The daemon may still have the upper open.
            run("flock", self.upper, "true")
        shutil.rmtree(os.path.dirname(self.at))

    def pid(self):
        """The daemon that serves the mount, or None."""
        for process in os.listdir("/proc"):
            if process.isdigit():
                try:
                    with open(f"/proc/{process}/cmdline", "rb") as file:
                        words = file.read().split(b"\0")
                except OSError:
                    continue
                if self.at.encode() in words and words[0] != b"timeout":
                    return int(process)
        return None

    def counts(self):
        """Requests so far by type; only Vellum reports them."""
        pid = self.pid()
        if not self.name.startswith("vellum") or pid is None:
            return {}
        size = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        os.kill(pid, signal.SIGUSR1)
        for _ in range(200):
            if os.path.exists(self.log) and os.path.getsize(self.log) > size:
                break
            time.sleep(0.005)
        with open(self.log) as file:
            file.seek(size)
            found = re.findall(r"(\w+)=(\d+)", file.read())
        return {name: int(count) for name, count in found if int(count)}

    def memory(self):
        pid = self.pid()
        if pid is None:
            return None
        with open(f"/proc/{pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024


def contenders(vellum, before, fuse_overlayfs, passthrough_hp, only):
    def bare(self, lower):
        run("mount", "--bind", self.copy, self.at)

    def hp(*more):
        def mount(self, lower):
            run(passthrough_hp, *more, self.copy, self.at)

        return mount

    def kernel(self, lower):
        options = f"lowerdir={lower},upperdir={self.upper},workdir={self.work},index=on,redirect_dir=on,metacopy=on,xino=on"
        run("mount", "-t", "overlay", "overlay", "-o", options, self.at)

    def ours(more, vellum=vellum):
        def mount(self, lower):
            options = f"lowerdir={lower},upperdir={self.upper},workdir={self.work}{more}"
            run(vellum, "overlay", "-o", options, self.at, env={**os.environ, "VELLUM_LOG_FILE": self.log})

        return mount

    def theirs(self, lower):
        run(fuse_overlayfs, "-o", f"lowerdir={lower},upperdir={self.upper},workdir={self.work}", self.at)

    found = [Contender("bare", bare), Contender("kernel", kernel), Contender("vellum", ours(",io_uring=off"))]
    if offers_io_uring():
        found.append(Contender("vellum-ring", ours("")))
    elif "vellum-ring" in only:
        sys.exit("union: the host does not offer FUSE over io_uring; --io-uring enables it for this run")
    found.append(Contender("vellum-passthrough", ours(",passthrough")))
    if before:
        found.append(Contender("vellum-before", ours(",io_uring=off", before)))
    if "vellum-checked" in only:
        found.append(Contender("vellum-checked", ours(",io_uring=off,open=checked")))
    if fuse_overlayfs:
        found.append(Contender("fuse-overlayfs", theirs))
    else:
        say("no fuse-overlayfs in PATH: skipped")
    if passthrough_hp:
        found += [Contender("hp", hp("--nopassthrough")), Contender("hp-passthrough", hp())]
    for contender in found:
        contender.has_copy = contender.name in ("bare", "hp", "hp-passthrough")
    unknown = set(only) - {contender.name for contender in found}
    if unknown:
        sys.exit(f"union: no such contender: {', '.join(sorted(unknown))}")
    return [contender for contender in found if not only or contender.name in only]


def offers_io_uring():
    try:
        with open(OFFERED) as file:
            return file.read().strip() == "Y"
    except OSError:
        return False


def offer_io_uring(value):
    with open(OFFERED, "w") as file:
        file.write(value)


# The measurements. Each takes the merged directory, the contender and the round, and returns how
# many operations it timed, or (unit, value) where the figure is not a time.


def walk(at, *_):
    run("find", f"{at}/walk", "-newermt", "2100-01-01")
    return WALK_FILES


def names(at, *_):
    run("find", f"{at}/walk")
    return WALK_FILES


def read_small(at, *_):
    for i in range(OPS):
        fd = os.open(f"{at}/small/{i}", os.O_RDONLY)
        os.read(fd, 2 * SMALL)
        os.close(fd)
    return OPS


def read_big(at, *_):
    with open(f"{at}/big", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return 1


def read_random(at, *_):
    chance = random.Random(1)
    fd = os.open(f"{at}/big", os.O_RDONLY)
    for _ in range(20_000):
        os.pread(fd, SMALL, chance.randrange(BIG // SMALL) * SMALL)
    os.close(fd)
    return 20_000


def read_random_cold(at, *_):
    chance = random.Random(2)
    fd = os.open(f"{at}/big", os.O_RDONLY)
    for _ in range(2_000):
        os.pread(fd, SMALL, chance.randrange(BIG // SMALL) * SMALL)
    os.close(fd)
    return 2_000


def read_mapped(at, *_):
    with open(f"{at}/big", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        total = 0
        for offset in range(0, BIG, SMALL):
            total += memory[offset]
    return 1


def create(at, _contender, number, prefix="c"):
    where = f"{at}/made-{prefix}-{number}"
    os.mkdir(where)
    content = b"x" * SMALL
    for i in range(OPS):
        fd = os.open(f"{where}/{i}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644)
        os.write(fd, content)
        os.close(fd)
    return OPS


def write(at, _contender, number):
    where = f"{at}/made-c-{number}"
    content = b"y" * SMALL
    fds = [os.open(f"{where}/{i}", os.O_WRONLY) for i in range(OPS // 4)]
    for _ in range(4):
        for fd in fds:
            os.pwrite(fd, content, 0)
    for fd in fds:
        os.close(fd)
    return OPS // 4 * 4


def chmod(at, _contender, number):
    where = f"{at}/made-c-{number}"
    for i in range(OPS):
        os.chmod(f"{where}/{i}", 0o600)
    return OPS


def rename(at, _contender, number):
    where = f"{at}/made-c-{number}"
    for i in range(OPS):
        os.rename(f"{where}/{i}", f"{where}/r{i}")
    return OPS


def unlink(at, _contender, number):
    where = f"{at}/made-c-{number}"
    for i in range(OPS):
        os.unlink(f"{where}/r{i}")
    os.rmdir(where)
    return OPS


def mkdir_rmdir(at, *_):
    for i in range(OPS):
        os.mkdir(f"{at}/d{i}")
    for i in range(OPS):
        os.rmdir(f"{at}/d{i}")
    return 2 * OPS


def chmod_lower(at, _contender, number):
    for i in range(OPS):
        os.chmod(f"{at}/chmod/{i}", 0o600 + number % 8)
    return OPS


def append_lower(at, *_):
    for i in range(APPENDS):
        fd = os.open(f"{at}/append/{i}", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"y")
        os.close(fd)
    return APPENDS


def first_write(at, *_):
    fd = os.open(f"{at}/big", os.O_WRONLY)
    os.pwrite(fd, b"x", BIG // 2)
    os.close(fd)
    return 1


def untar(at, _contender, number):
    where = f"{at}/untar-{number}"
    os.mkdir(where)
    run("tar", "-C", where, "-xf", untar.archive)
    return 1


def remove_tree(at, _contender, number):
    run("rm", "-rf", f"{at}/tree-{number}")
    return 1


def git_status(at, *_):
    # Several at once would compete for the lock of git's index.
    run("git", "--no-optional-locks", "-c", "safe.directory=*", "-C", f"{at}/repository", "status", "--porcelain")
    return 1


def build(at, _contender, number):
    objects = f"{at}/objects-{number}"
    os.mkdir(objects)
    sources = sorted(f for f in os.listdir(f"{at}/sources") if f.endswith(".c"))
    commands = "\n".join(f"gcc -O0 -c {at}/sources/{s} -o {objects}/{s}.o" for s in sources)
    run("xargs", "-P2", "-I{}", "sh", "-c", "{}", input=commands.encode())
    return 1


def parallel(action, processes):
    """The same in several processes at once, each with its own names where it changes any."""

    def one(who, at, contender, number):
        if action is create:
            create(at, contender, number, prefix=f"p{processes}-{who}")
        elif action is rename_unlink:
            where = f"{at}/made-p{processes}-{who}-{number}"
            for i in range(OPS):
                os.rename(f"{where}/{i}", f"{where}/r{i}")
            for i in range(OPS):
                os.unlink(f"{where}/r{i}")
        elif action is mkdir_rmdir:
            for i in range(OPS):
                os.mkdir(f"{at}/d{processes}-{who}-{i}")
            for i in range(OPS):
                os.rmdir(f"{at}/d{processes}-{who}-{i}")
        elif action is append_lower:
            for i in range(who, APPENDS, processes):
                fd = os.open(f"{at}/append-{processes}/{i}", os.O_WRONLY | os.O_APPEND)
                os.write(fd, b"y")
                os.close(fd)
        elif action is chmod_lower:
            for i in range(who, OPS, processes):
                os.chmod(f"{at}/chmod-{processes}/{i}", 0o600 + number % 8)
        elif action is walk_shares:
            run("find", *(f"{at}/walk/{i}" for i in range(who, WALK_FILES // 1000, processes)), "-newermt", "2100-01-01")
        elif action is read_small_shares:
            for i in range(who, OPS, processes):
                fd = os.open(f"{at}/small/{i}", os.O_RDONLY)
                os.read(fd, 2 * SMALL)
                os.close(fd)
        elif action is read_big:
            # Each starts at a different place.
            fd = os.open(f"{at}/big", os.O_RDONLY)
            for step in range(BIG >> 20):
                os.pread(fd, 1 << 20, ((step + who * (BIG >> 20) // processes) << 20) % BIG)
            os.close(fd)
        elif action is untar:
            where = f"{at}/untar-p{processes}-{who}-{number}"
            os.mkdir(where)
            run("tar", "-C", where, "-xf", untar.part)
        elif action is remove_tree:
            run("rm", "-rf", f"{at}/part-{processes}-{who}-{number}")
        else:
            action(at, contender, number)

    each = {walk: WALK_FILES, read_small: OPS, read_random: 20_000, create: OPS, rename_unlink: 2 * OPS, mkdir_rmdir: 2 * OPS}
    together = {append_lower: APPENDS, chmod_lower: OPS, walk_shares: WALK_FILES, read_small_shares: OPS}

    def measured(at, contender, number):
        workers = [multiprocessing.Process(target=one, args=(who, at, contender, number)) for who in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            if worker.exitcode:
                raise RuntimeError("a process failed")
        return together.get(action) or processes * each.get(action, 1)

    return measured


def rename_unlink(*_):
    raise NotImplementedError("only by several processes")


def walk_shares(*_):
    raise NotImplementedError("only by several processes")


def read_small_shares(*_):
    raise NotImplementedError("only by several processes")


# Row: (key, title, measurement, cold?)
ROWS = [
    ("walk", "walk + stat of 100,000 files, cold", walk, True),
    ("walk", "walk + stat of 100,000 files, warm", walk, False),
    ("walk", "names of 100,000 files, warm", names, False),
    ("small", "open+read+close, 4 KiB, cold", read_small, True),
    ("small", "open+read+close, 4 KiB, warm", read_small, False),
    ("big", "1 GiB sequential read, cold", read_big, True),
    ("big", "4 KiB random reads of 1 GiB, cold", read_random_cold, True),
    ("big", "1 GiB sequential read, warm", read_big, False),
    ("big", "4 KiB random reads of 1 GiB, warm", read_random, False),
    ("big", "1 GiB mapped read, warm", read_mapped, False),
    ("names", "create + 4 KiB", create, False),
    ("names", "4 KiB write", write, False),
    ("names", "chmod", chmod, False),
    ("names", "rename", rename, False),
    ("names", "unlink", unlink, False),
    ("names", "mkdir, rmdir", mkdir_rmdir, False),
    ("copy-up", "chmod of a lower file", chmod_lower, False),
    ("copy-up", "append to a lower file", append_lower, False),
    ("trees", "untar of 20,000 files", untar, False),
    ("trees", "rm -rf of 20,000 lower files", remove_tree, False),
    ("work", "git status, warm", git_status, False),
    ("work", "build of a C library, 2 processes", build, False),
    ("first-write", "one byte of a 1 GiB lower file", first_write, False),
]
for _processes in PROCESSES:
    for _key, _title, _action in [
        ("parallel-cold", "walk + stat of 100,000 files, cold", walk_shares),
        ("parallel-cold", "open+read+close, 4 KiB, cold", read_small_shares),
        ("parallel-read", "walk + stat, warm", walk),
        ("parallel-read", "open+read+close, warm", read_small),
        ("parallel-names", "create + 4 KiB", create),
        ("parallel-names", "rename, unlink", rename_unlink),
        ("parallel-names", "mkdir, rmdir", mkdir_rmdir),
        ("parallel-copy-up", "chmod of a lower file", chmod_lower),
        ("parallel-copy-up", "append to a lower file", append_lower),
        ("parallel-big", "1 GiB sequential read, warm", read_big),
        ("parallel-big", "4 KiB random reads of 1 GiB, warm", read_random),
        ("parallel-big", "1 GiB mapped read, warm", read_mapped),
        ("parallel-trees", "untar of 2,500 files each", untar),
        ("parallel-trees", "rm -rf of 2,500 lower files each", remove_tree),
        ("parallel-work", "git status, warm", git_status),
    ]:
        ROWS.append((_key, f"{_title}, {_processes} processes", parallel(_action, _processes), _key == "parallel-cold"))
# Done once, untimed, before a warm row.
WARM = {walk, names, read_small, read_big, read_random, read_mapped, git_status}


# One process warms what several processes then read at once.
WARMED_BY = {
    title: action
    for title, action in [
        ("walk", walk),
        ("open", read_small),
        ("1 GiB sequential", read_big),
        ("4 KiB random", read_random),
        ("1 GiB mapped", read_mapped),
        ("git", git_status),
    ]
}


def warm_by(action):
    if action in WARM:
        return action
    for key, title, other, _ in ROWS:
        if other is action and key in ("parallel-read", "parallel-big", "parallel-work"):
            return next(warm for start, warm in WARMED_BY.items() if title.startswith(start))
    return None


def c_sources():
    """C files that compile one by one: those of zstd, from cargo's registry."""
    home = os.path.expanduser("~/.cargo/registry/src")
    for path, _, files in os.walk(home):
        if re.search(r"zstd-sys-[^/]*/zstd/lib/compress$", path) and len(files) > 10:
            return os.path.dirname(path)
    return None


def make_lower(lower, rounds, keys):
    def files(where, count, content, per_directory=1000):
        for i in range(count):
            name = f"{where}/{i // per_directory}" if per_directory else where
            if i % (per_directory or count) == 0:
                os.makedirs(name, exist_ok=True)
            with open(f"{name}/{i}", "wb", buffering=0) as file:
                file.write(content)

    os.makedirs(lower)
    content = os.urandom(SMALL)
    if keys & {"walk", "parallel-cold", "parallel-read"}:
        files(f"{lower}/walk", WALK_FILES, b"")
    if keys & {"small", "parallel-cold", "parallel-read"}:
        files(f"{lower}/small", OPS, content, None)
    if "copy-up" in keys:
        files(f"{lower}/chmod", OPS, content, None)
        files(f"{lower}/append", APPENDS, content, None)
    if "parallel-copy-up" in keys:
        for processes in PROCESSES:
            files(f"{lower}/chmod-{processes}", OPS, content, None)
            files(f"{lower}/append-{processes}", APPENDS, content, None)
    if "parallel-trees" in keys:
        untar.part = os.path.join(os.path.dirname(lower), "part.tar")
        files(f"{lower}/part", PART_FILES, content[:512], 100)
        run("tar", "-C", f"{lower}/part", "-cf", untar.part, ".")
        for number in range(rounds):
            for processes in PROCESSES:
                for who in range(processes):
                    files(f"{lower}/part-{processes}-{who}-{number}", PART_FILES, content[:512], 100)
    if "trees" in keys:
        for number in range(rounds):
            files(f"{lower}/tree-{number}", TREE_FILES, content[:512], 100)
        untar.archive = os.path.join(os.path.dirname(lower), "tree.tar")
        run("tar", "-C", f"{lower}/tree-0", "-cf", untar.archive, ".")
    if keys & {"big", "parallel-big", "first-write", "cache"}:
        with open(f"{lower}/big", "wb") as file:
            for _ in range(BIG >> 20):
                file.write(os.urandom(1 << 20))
    if keys & {"work", "parallel-work"}:
        run("git", "clone", "-q", "--no-hardlinks", ROOT, f"{lower}/repository")
    if "work" in keys:
        sources = c_sources()
        os.makedirs(f"{lower}/sources")
        if sources:
            for part in ("common", "compress", "decompress"):
                shutil.copytree(f"{sources}/{part}", f"{lower}/{part}")
                for file in os.listdir(f"{sources}/{part}"):
                    if file.endswith(".c"):
                        with open(f"{lower}/sources/{part}-{file}", "w") as out:
                            out.write(f'#include "../{part}/{file}"\n')
            shutil.copy(f"{sources}/zstd.h", lower)
            shutil.copy(f"{sources}/zstd_errors.h", lower)
        else:
            say("no C sources in cargo's registry: the build row compiles nothing")


def measure(rows, everybody, place, lower, rounds):
    times, counts, memory, grown = {}, {}, {}, {}
    for number in range(rounds):
        for contender in everybody:
            contender.mount(place, lower, number)
        for index, (_, title, action, cold) in enumerate(rows):
            shift = (number + index) % len(everybody)
            for contender in everybody[shift:] + everybody[:shift]:
                if warm_by(action) and not cold:
                    warm_by(action)(contender.at, contender, number)
                if cold:
                    drop_caches()
                else:
                    os.sync()
                before = contender.counts()
                used = disk(contender.upper) if action is first_write else 0
                begun = time.perf_counter()
                operations = action(contender.at, contender, number)
                seconds = time.perf_counter() - begun
                times.setdefault(title, {}).setdefault(contender.name, []).append(seconds / operations)
                if before or contender.name == "vellum":
                    after = contender.counts()
                    spent = {k: v - before.get(k, 0) for k, v in after.items() if v != before.get(k, 0)}
                    counts.setdefault(title, {})[contender.name] = (spent, operations)
                if action is first_write:
                    grown[contender.name] = disk(contender.upper) - used
                say(f"round {number}: {title}: {contender.name}: {shown(seconds / operations)}")
        for contender in everybody:
            memory.setdefault(contender.name, []).append(contender.memory())
            contender.unmount()
    return times, counts, memory, grown


def disk(upper):
    out = subprocess.run(["du", "-sk", upper], check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(out.split()[0]) * 1024


def shown(seconds):
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.1f} us"


def page_cache(everybody, place, lower):
    """How much the page cache grows while ten mounts read the same 100 MiB."""

    def cached():
        with open("/proc/meminfo") as file:
            return int(re.search(r"^Cached:\s+(\d+)", file.read(), re.M).group(1)) / 1024

    grown = {}
    for contender in everybody:
        if contender.has_copy:
            continue
        mounts = []
        for number in range(10):
            one = Contender(contender.name, contender.mount_by)
            one.mount(place, lower, f"cache-{number}")
            mounts.append(one)
        drop_caches()
        before = cached()
        for one in mounts:
            with open(f"{one.at}/big", "rb", buffering=0) as file:
                for _ in range(100):
                    file.read(1 << 20)
        grown[contender.name] = cached() - before
        for one in mounts:
            one.unmount()
    return grown


def against(times, rows, everybody, out):
    """How many times longer fuse-overlayfs took than each of ours."""
    ours = [c.name for c in everybody if c.name.startswith("vellum")]
    if "fuse-overlayfs" not in [c.name for c in everybody] or not ours:
        return
    out.write("\nHow many times longer fuse-overlayfs took than\n\n| what | " + " | ".join(ours) + " |\n|---|" + "---:|" * len(ours) + "\n")
    for _, title, _, _ in rows:
        theirs = times[title]["fuse-overlayfs"]
        cells = [f"{statistics.median(b / a for a, b in zip(times[title][name], theirs)):.2f}" for name in ours]
        out.write(f"| {title} | " + " | ".join(cells) + " |\n")


def table(times, counts, memory, grown, cache, rows, everybody, out):
    who = [c.name for c in everybody]
    out.write("| what | " + " | ".join(who) + " |\n|---|" + "---:|" * len(who) + "\n")
    for _, title, _, _ in rows:
        base = times[title].get("kernel")
        cells = []
        for name in who:
            values = times[title][name]
            cell = shown(statistics.median(values))
            if base and name != "kernel":
                ratio = statistics.median(b / a for a, b in zip(values, base))
                cell += f" ({ratio:.2f})" if ratio >= 0.0995 else f" ({ratio:.3f})"
            cells.append(cell)
        out.write(f"| {title} | " + " | ".join(cells) + " |\n")
    if grown:
        cells = [f"{grown[name] / 1024:.0f} KiB" for name in who]
        out.write("| disk that byte cost | " + " | ".join(cells) + " |\n")
    cells = []
    for name in who:
        values = [v for v in memory.get(name, []) if v is not None]
        cells.append(f"{statistics.median(values):.1f} MiB" if values else "-")
    out.write("| memory of the daemon at the end | " + " | ".join(cells) + " |\n")
    if cache:
        cells = [f"{cache[name]:.0f} MiB" if name in cache else "-" for name in who]
        out.write("| page cache for ten mounts reading 100 MiB | " + " | ".join(cells) + " |\n")
    against(times, rows, everybody, out)
    for name in who:
        if not any(name in counts.get(title, {}) for title in counts):
            continue
        out.write(f"\nRequests of {name}, per operation (for the whole row where it is one operation):\n\n")
        for _, title, _, _ in rows:
            if name in counts.get(title, {}):
                spent, operations = counts[title][name]
                words = [
                    f"{kind} {spent[kind] / operations:.3g}"
                    for kind in sorted(spent, key=spent.get, reverse=True)
                    if spent[kind] * 200 >= operations
                ]
                out.write(f"* {title}: {', '.join(words) or 'none'}\n")


def main():
    keys = list(dict.fromkeys(row[0] for row in ROWS)) + ["cache"]
    parallel_keys = [key for key in keys if key.startswith("parallel-")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=" ".join(keys) + "; default: all that are not parallel")
    parser.add_argument("--only", default="", help="names of contenders, separated by commas")
    parser.add_argument("--io-uring", action="store_true", help="enable FUSE over io_uring on the host during the run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", help="measure below this directory instead of in memory")
    parser.add_argument("--gib", type=int, default=7, help="size of the ext4 in memory; plus 5 with --passthrough-hp")
    parser.add_argument("--output")
    parser.add_argument("--vellum", default=os.path.join(ROOT, "target/release/vellum"))
    parser.add_argument("--before", help="another build of Vellum to compare with: the contender vellum-before")
    parser.add_argument("--fuse-overlayfs", default=shutil.which("fuse-overlayfs"))
    parser.add_argument("--passthrough-hp", help="libfuse's example, built: the contenders hp and hp-passthrough")
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args()
    if chosen.list:
        for key, title, _, _ in ROWS:
            print(f"{key:17} {title}")
        return
    unknown = set(chosen.rows) - set(keys)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {' '.join(keys)}")
    wanted = set(chosen.rows or keys) - (set() if chosen.rows else set(parallel_keys))
    if chosen.io_uring and not offers_io_uring():
        offer_io_uring("Y")
        atexit.register(offer_io_uring, "N")
    rows = [row for row in ROWS if row[0] in wanted]
    everybody = contenders(chosen.vellum, chosen.before, chosen.fuse_overlayfs, chosen.passthrough_hp, [name for name in chosen.only.split(",") if name])
    place = tempfile.mkdtemp(prefix="vellum-union-", dir=chosen.disk)
    image = None
    try:
        if not chosen.disk:
            image = f"/dev/shm/{os.path.basename(place)}.img"
            with open(image, "wb") as file:
                file.truncate((chosen.gib + (5 if chosen.passthrough_hp else 0)) << 30)
            run("mkfs.ext4", "-q", "-F", "-N", "1000000", image)
            run("mount", "-o", "loop", image, place)
        lower = os.path.join(place, "lower")
        say("creating the lower layer")
        make_lower(lower, chosen.rounds, wanted)
        for contender in everybody:
            if contender.has_copy:
                contender.copy = os.path.join(place, f"copy-{contender.name}")
                run("cp", "-a", lower, contender.copy)
        os.sync()
        results = measure(rows, everybody, place, lower, chosen.rounds)
        cache = page_cache(everybody, place, lower) if "cache" in wanted else {}
        out = open(chosen.output, "w") if chosen.output else sys.stdout
        with open("/proc/cpuinfo") as file:
            model = re.search(r"model name\s*: (.*)", file.read())
        where = f"below {chosen.disk}" if chosen.disk else "ext4 in memory"
        out.write(f"* {model.group(1) if model else platform.machine()}, {os.cpu_count()} cores; Linux {platform.release()}; {where}; ")
        out.write(f"{chosen.rounds} rounds; load before: {os.getloadavg()[2]:.1f}\n")
        out.write("* Medians; in brackets the time of the kernel's overlay, with index, redirect_dir, metacopy and xino on, over the column's.\n\n")
        table(*results, cache, rows, everybody, out)
    finally:
        with open("/proc/self/mounts") as file:
            mine = [line.split()[1] for line in file if line.split()[1].startswith(place + "/")]
        for at in reversed(mine):
            subprocess.run(["umount", "-l", at])
        if image:
            time.sleep(0.5)
            subprocess.run(["umount", "-l", place])
            os.unlink(image)
            os.rmdir(place)
        else:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
