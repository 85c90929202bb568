#!/usr/bin/env python3
"""How long an unrelated stat waits while a large lower file is copied up whole.

    bench/copy-up-delay.py --vellum target/release/vellum --dir /dev/shm [--size-mib 1024] [--fuse-overlayfs PATH]

A file system in a file under --dir holds the layers. In a union without block copies, one byte is written to the large file, while
another process looks up names that were never looked up before, 1000 per second, so that each stat is a request. The same is measured without a copy, and
during a cp(1) of the file on the same file system, outside the union, which shows the effect of machine and disk on any process. Needs root.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time


def union(command, root, options, work):
    os.makedirs(work, exist_ok=True)
    for name in ("upper", "work", "merged"):
        os.makedirs(os.path.join(work, name))
    merged = os.path.join(work, "merged")
    layers = f"lowerdir={root}/lower,upperdir={work}/upper,workdir={work}/work"
    server = subprocess.Popen([*command, "-f", "-o", layers + options, merged], stdout=subprocess.DEVNULL)
    for _ in range(1000):
        if os.path.ismount(merged):
            return server, merged
        time.sleep(0.01)
    server.terminate()
    sys.exit(f"{command[0]} does not mount")


def stats(merged, names, running, least):
    times = []
    for name in names:
        if not running() and len(times) >= least:
            break
        begun = time.perf_counter()
        os.stat(f"{merged}/many/{name}")
        times.append(time.perf_counter() - begun)
        time.sleep(0.001)
    return times


def row(what, copying, times):
    times.sort()
    p99 = times[max(0, -(-len(times) * 99 // 100) - 1)]
    took = f"{copying:.2f}" if copying else "-"
    print(
        f"| {what} | {took} | {len(times)} | {statistics.median(times) * 1e3:.2f} | {p99 * 1e3:.2f} | {times[-1] * 1e3:.2f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", required=True)
    parser.add_argument("--fuse-overlayfs")
    parser.add_argument("--dir", default="/dev/shm")
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    root = tempfile.mkdtemp(prefix="vellum-delay-", dir=args.dir)
    fs = os.path.join(root, "fs")
    os.mkdir(fs)
    image = os.path.join(root, "image")
    with open(image, "wb") as out:
        out.truncate((args.size_mib * 3 + 512) << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "200000", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, fs], check=True)
        os.makedirs(f"{fs}/lower/many")
        for i in range(20000):
            os.mknod(f"{fs}/lower/many/{i}")
        chunk = os.urandom(1 << 20)
        with open(f"{fs}/lower/big", "wb") as out:
            for _ in range(args.size_mib):
                out.write(chunk)
        os.sync()
        print("| union | copy, s | stats | median, ms | p99, ms | longest, ms |\n|---|---:|---:|---:|---:|---:|")
        unions = [("vellum, copied whole", [args.vellum, "overlay"], ",blocks=off", "big")]
        unions.append(("vellum, no copy", [args.vellum, "overlay"], ",blocks=off", None))
        unions.append(("vellum, during a cp", [args.vellum, "overlay"], ",blocks=off", "cp"))
        unions.append(("vellum, block by block", [args.vellum, "overlay"], "", "big"))
        if args.fuse_overlayfs:
            unions.append(("fuse-overlayfs", [args.fuse_overlayfs], "", "big"))
        for number in range(args.rounds):
            for what, command, options, big in unions:
                work = f"{fs}/u"
                server, merged = union(command, fs, options, work)
                took = [None]

                def copy():
                    begun = time.perf_counter()
                    if big == "cp":
                        subprocess.run(["cp", "--reflink=never", f"{fs}/lower/big", f"{work}/copy"], check=True)
                        took[0] = time.perf_counter() - begun
                        return
                    with open(f"{merged}/{big}", "r+b") as file:
                        file.write(b"x")
                    took[0] = time.perf_counter() - begun

                thread = threading.Thread(target=copy)
                try:
                    if big:
                        thread.start()
                    names = range(number * 5000, number * 5000 + 5000)
                    times = stats(merged, names, thread.is_alive, 500)
                    if big:
                        thread.join()
                finally:
                    subprocess.run(["umount", merged], check=False)
                    server.wait()
                row(what, took[0], times)
                shutil.rmtree(work)
    finally:
        subprocess.run(["umount", fs], check=False)
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
