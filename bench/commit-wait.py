#!/usr/bin/env python3
"""How long a layer's commit waits for the disk, alone and while another process fills the page cache.

    bench/commit-wait.py --vellum target/release/vellum --dir /var/tmp --rounds 100

Each round imports a directory with one new 4 MiB file as an image: unpack, sync, record. The second half runs while another process keeps
writing to the same file system, because a sync of the file system must include its data.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

WRITER = """
import os, sys
chunk = os.urandom(1 << 20)
while True:
    with open(sys.argv[1], "wb") as out:
        for _ in range(256):
            out.write(chunk)
"""


def rounds(vellum, root, count, name):
    """Returns the seconds of each import, sorted."""
    times = []
    tree = os.path.join(root, "tree")
    os.makedirs(tree, exist_ok=True)
    for n in range(count):
        with open(os.path.join(tree, "file"), "wb") as out:
            out.write(os.urandom(4 << 20))
            os.fsync(out.fileno())
        started = time.perf_counter()
        subprocess.run(
            [vellum, "--root", root + "/store", "--run-dir", root + "/run", "-q", "import", tree, f"{name}:{n}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - started)
    return sorted(times)


def row(what, times):
    p99 = times[-(-len(times) * 99 // 100) - 1]
    print(f"| {what} | {statistics.median(times) * 1000:.1f} | {p99 * 1000:.1f} | {times[-1] * 1000:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", required=True)
    parser.add_argument("--dir", default="/var/tmp", help="directory for the store")
    parser.add_argument("--rounds", type=int, default=100)
    args = parser.parse_args()
    root = tempfile.mkdtemp(prefix="vellum-wait-", dir=args.dir)
    try:
        print("| import of a 4 MiB layer | median ms | p99 ms | longest ms |\n|---|---:|---:|---:|")
        row("alone", rounds(args.vellum, root, args.rounds, "alone"))
        writer = subprocess.Popen([sys.executable, "-c", WRITER, os.path.join(root, "noise")])
        try:
            time.sleep(1)
            row("next to a writer of 1 MiB pieces without pause", rounds(args.vellum, root, args.rounds, "beside"))
        finally:
            writer.kill()
            writer.wait()
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
