#!/usr/bin/env python3
"""Counts the requests that the kernel sends to Vellum's engine for some operations.

    bench/request-counts.py [--vellum PROGRAM] [--disk DIR] [--options OPTION,...] [--json]     counts on this kernel
    bench/request-counts.py --table FILE...       one table from the output of several runs with --json

Needs root. These are counts, not times, so other work on the machine does not change them, nor does emulation:
`scripts/vm.sh new bench/request-counts.py`. Each row runs 100 times and its requests are divided by that, or once if it says
so. FORGET is left out, since nothing waits for it. Requests come from the device.
"""

import argparse
import json
import mmap
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time

import union

TIMES = 100
NAMES = 10_000
PAGE = b"x" * 4096
UNCOUNTED = ("Forget", "BatchForget", "errors", "notified")


def each(do):
    def row(at):
        for i in range(TIMES):
            do(at, i)
        return TIMES

    return row


def once(do):
    def row(at):
        do(at)
        return 1

    return row


def read(path):
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 8192)
    os.close(fd)


def write(path, flags):
    fd = os.open(path, flags, 0o644)
    os.write(fd, PAGE)
    os.close(fd)


def read_mapped(path):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        return sum(memory[offset] for offset in range(0, len(memory), 4096))


def xattr(path):
    return os.getxattr(path, "user.note")


# (name, whether the kernel's caches are dropped before, action). A row sees the results of the rows
# before it.
ROWS = [
    ("open, read and close a file of 4 KiB, cold", True, each(lambda at, i: read(f"{at}/small/{i}"))),
    ("the same, warm", False, each(lambda at, i: read(f"{at}/small/{i}"))),
    ("stat, cold", True, each(lambda at, i: os.lstat(f"{at}/small/{i}"))),
    ("stat, warm", False, each(lambda at, i: os.lstat(f"{at}/small/{i}"))),
    ("stat of a name that is not there, warm", False, each(lambda at, i: os.path.lexists(f"{at}/small/none"))),
    ("getxattr, warm", False, each(lambda at, i: xattr(f"{at}/small/{i}"))),
    ("map and read a file of 1 MiB, cold (once)", True, once(lambda at: read_mapped(f"{at}/mapped"))),
    ("list 10,000 names, cold (once)", True, once(lambda at: os.listdir(f"{at}/many"))),
    ("list 10,000 names, warm (once)", False, once(lambda at: os.listdir(f"{at}/many"))),
    ("mkdir", False, each(lambda at, i: os.mkdir(f"{at}/directory-{i}"))),
    ("rmdir", False, each(lambda at, i: os.rmdir(f"{at}/directory-{i}"))),
    ("create a file and write 4 KiB", False, each(lambda at, i: write(f"{at}/new/{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))),
    ("write 4 KiB to it again", False, each(lambda at, i: write(f"{at}/new/{i}", os.O_WRONLY))),
    ("link", False, each(lambda at, i: os.link(f"{at}/new/{i}", f"{at}/new/link-{i}"))),
    ("symlink", False, each(lambda at, i: os.symlink("x", f"{at}/new/symlink-{i}"))),
    ("chmod of it", False, each(lambda at, i: os.chmod(f"{at}/new/{i}", 0o600))),
    ("rename", False, each(lambda at, i: os.rename(f"{at}/new/{i}", f"{at}/new/renamed-{i}"))),
    ("rename over another", False, each(lambda at, i: os.rename(f"{at}/new/renamed-{i}", f"{at}/new/symlink-{i}"))),
    ("unlink", False, each(lambda at, i: os.unlink(f"{at}/new/symlink-{i}"))),
    ("chmod of a lower file", False, each(lambda at, i: os.chmod(f"{at}/small/{i}", 0o600))),
    ("append to a lower file", False, each(lambda at, i: write(f"{at}/append/{i}", os.O_WRONLY | os.O_APPEND))),
]


def make_lower(lower):
    for name in ("small", "append", "many", "new"):
        os.makedirs(f"{lower}/{name}")
    for name in ("small", "append"):
        for i in range(TIMES):
            write(f"{lower}/{name}/{i}", os.O_CREAT | os.O_WRONLY)
            os.setxattr(f"{lower}/{name}/{i}", "user.note", b"noted")
    for i in range(NAMES):
        os.close(os.open(f"{lower}/many/{i}", os.O_CREAT | os.O_WRONLY))
    with open(f"{lower}/mapped", "wb") as file:
        file.write(PAGE * 256)


class Counted(union.Contender):
    def counts(self):
        """Like the parent's, but waits for the end of the line, however long that takes."""
        size = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        os.kill(self.pid(), signal.SIGUSR1)
        text = ""
        while not re.search(r"errors=\d+\n", text):
            time.sleep(0.02)
            if os.path.exists(self.log):
                with open(self.log) as file:
                    file.seek(size)
                    text = file.read()
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", text)}


def count(vellum, options, disk):
    def mount(self, lower):
        words = f"lowerdir={lower},upperdir={self.upper},workdir={self.work},io_uring=off{options}"
        union.run(vellum, "overlay", "-o", words, self.at, env={**os.environ, "VELLUM_LOG_FILE": self.log})

    place = tempfile.mkdtemp(prefix="vellum-requests-", dir=disk)
    contender = Counted("vellum", mount)
    found = {}
    try:
        make_lower(f"{place}/lower")
        contender.mount(place, f"{place}/lower", 0)
        try:
            for what, cold, do in ROWS:
                if cold:
                    union.drop_caches()
                before = contender.counts()
                times = do(contender.at)
                after = contender.counts()
                spent = {name: after[name] - before.get(name, 0) for name in after if name not in UNCOUNTED}
                found[what] = {name: number / times for name, number in sorted(spent.items()) if number}
        finally:
            contender.unmount()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {"kernel": platform.release(), "rows": found}


def number(value):
    return f"{value:.1f}".removesuffix(".0")


def cell(requests):
    shown = {name: number(value) for name, value in requests.items() if value >= 0.05}
    kinds = ", ".join(name if value == "1" else f"{value} {name}" for name, value in shown.items())
    total = number(sum(value for name, value in requests.items() if name in shown))
    return total if total == "0" else f"{total}: {kinds}"


def table(runs, out):
    out.write("| what | " + " | ".join(run["kernel"] for run in runs) + " |\n|---|" + "---|" * len(runs) + "\n")
    for what, _, _ in ROWS:
        out.write(f"| {what} | " + " | ".join(cell(run["rows"].get(what, {})) for run in runs) + " |\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", default=os.path.join(union.ROOT, "target/release/vellum"))
    parser.add_argument("--disk", help="working directory, on a file system that supports uppers (default: the system's temporary directory)")
    parser.add_argument("--options", default="", help="more mount options, separated by commas")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    parser.add_argument("--table", nargs="+", metavar="FILE", help="print one table of such files, a column for each")
    chosen = parser.parse_args()
    if chosen.table:
        runs = []
        for path in chosen.table:
            with open(path) as file:
                # The guest's console may print other lines.
                runs.append(json.loads(next(line for line in file if line.startswith("{"))))
        table(runs, sys.stdout)
        return
    run = count(chosen.vellum, chosen.options and f",{chosen.options}", chosen.disk)
    if chosen.json:
        print(json.dumps(run))
    else:
        table([run], sys.stdout)


if __name__ == "__main__":
    main()
