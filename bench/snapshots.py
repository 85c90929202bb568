#!/usr/bin/env python3
"""The snapshotter's calls alone: how long each takes with 10,000 snapshots in one store, and the server's memory.

    cargo build --release -p vellum-cli -p vellum-snapshotter --examples
    bench/snapshots.py --vellum target/release/vellum --count 10000

The client is crates/snapshotter/examples/calls.rs; this starts the server, reads its memory, and runs the client alone, next to a process that
fills the page cache of the same disk, and next to one that loads images into the same store.

With --removals N only Remove is timed, during which containerd's garbage collection holds its lock: alone, next to the same two, next to `vellum check --deep`, and on a
full disk (a separate small file system).
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import verbs  # noqa: E402

WRITER = """
import os, sys
chunk = os.urandom(1 << 20)
while True:
    with open(sys.argv[1], "wb") as out:
        for _ in range(256):
            out.write(chunk)
"""


def memory_mib(pid):
    """Returns the resident memory now and at its peak, in MiB."""
    found = {}
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            name, _, rest = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(rest.split()[0]) / 1024
    return found["VmRSS"], found["VmHWM"]


@contextlib.contextmanager
def loading(vellum, root):
    """Another process loads images into the same store, one after the other, and removes them."""
    base = [vellum, "--root", root + "/v", "--run-dir", root + "/r", "-q"]
    done = threading.Event()

    def load():
        n = 0
        while not done.is_set():
            n += 1
            archive = f"{root}/{n % 2}.tar"
            verbs.archive(archive, [verbs.layer(300, 4000, f"{n}-{i}") for i in range(3)], f"load:{n}")
            for command in (["load", "-i", archive], ["rmi", f"load:{n}"], ["gc"]):
                subprocess.run(base + command, check=True, stdout=subprocess.DEVNULL)

    worker = threading.Thread(target=load)
    worker.start()
    try:
        yield
    finally:
        done.set()
        worker.join()


def repeat(work):
    """Repeats `work` in another thread."""
    done = threading.Event()

    def run():
        while not done.is_set():
            work()

    worker = threading.Thread(target=run)
    worker.start()

    def end():
        done.set()
        worker.join()

    return end


@contextlib.contextmanager
def checking(vellum, root):
    """Another process rebuilds every layer's tar and compares it."""
    base = [vellum, "--root", root + "/v", "--run-dir", root + "/r", "-q"]
    archive = f"{root}/checked.tar"
    verbs.archive(archive, [verbs.layer(2000, 20000, f"checked-{i}") for i in range(2)], "checked:1")
    subprocess.run(base + ["load", "-i", archive], check=True, stdout=subprocess.DEVNULL)
    end = repeat(lambda: subprocess.run(base + ["check", "--deep"], check=True, stdout=subprocess.DEVNULL))
    try:
        yield
    finally:
        end()
        subprocess.run(base + ["rmi", "checked:1"], check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def writing(_vellum, root):
    """Another process fills the page cache of the same disk."""
    noise = os.path.join(root, "noise")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, noise])
    try:
        time.sleep(1)
        yield
    finally:
        writer.kill()
        writer.wait()
        os.unlink(noise)


@contextlib.contextmanager
def filled(_vellum, root):
    """The disk is completely full."""
    path = os.path.join(root, "filler")
    with open(path, "wb") as filler:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while os.write(filler.fileno(), b"x" * size):
                    pass
        with contextlib.suppress(OSError):
            os.fsync(filler.fileno())
    try:
        yield
    finally:
        os.unlink(path)


@contextlib.contextmanager
def alone(_vellum, _root):
    """Nothing else."""
    yield


@contextlib.contextmanager
def serving(vellum, root):
    """A server on a store in `root`; its socket."""
    socket = os.path.join(root, "s")
    server = subprocess.Popen(
        [vellum, "--root", root + "/v", "--run-dir", root + "/r", "serve", "containerd", "--socket", socket],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not os.path.exists(socket):
            time.sleep(0.01)
        yield socket
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def small_disk(directory):
    """A file system of 512 MiB."""
    root = tempfile.mkdtemp(prefix="vs", dir=directory)
    image, at = root + "/image", root + "/at"
    os.mkdir(at)
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
        shutil.rmtree(root)


def removals(args, client, root, troubles):
    """Times Remove under each load, with the requested number of layers."""
    with serving(args.vellum, root) as socket:
        for name, trouble in troubles:
            count = str(args.removals)
            subprocess.run([client, socket, "many", count], check=True, stdout=subprocess.DEVNULL)
            with trouble(args.vellum, root):
                subprocess.run([client, socket, "removals", count, name], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", required=True)
    parser.add_argument("--client", help="the example; by default the one next to vellum")
    parser.add_argument("--dir", default="/var/tmp", help="directory for the store")
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--removals", type=int, metavar="N", help="time the removal of N layers, and nothing else")
    args = parser.parse_args()
    client = args.client or os.path.join(os.path.dirname(os.path.abspath(args.vellum)), "examples", "calls")
    root = tempfile.mkdtemp(prefix="vs", dir=args.dir)
    if args.removals:
        print("| call | median ms | p99 ms | longest ms |\n|---|---:|---:|---:|", flush=True)
        everywhere = [
            ("alone", alone),
            ("next to a writer", writing),
            ("during loads", loading),
            ("during check --deep", checking),
        ]
        try:
            removals(args, client, root, everywhere)
        finally:
            shutil.rmtree(root)
        with small_disk(args.dir) as disk:
            removals(args, client, disk, [("on a full disk", filled)])
        return
    socket = os.path.join(root, "s")
    server = subprocess.Popen(
        [args.vellum, "--root", root + "/v", "--run-dir", root + "/r", "serve", "containerd", "--socket", socket],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not os.path.exists(socket):
            time.sleep(0.01)
        print("| call | median ms | p99 ms | longest ms |\n|---|---:|---:|---:|", flush=True)
        subprocess.run([client, socket, "calls", str(args.rounds), "alone"], check=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, os.path.join(root, "noise")])
        try:
            time.sleep(1)
            subprocess.run([client, socket, "calls", str(args.rounds), "next to a writer"], check=True)
        finally:
            writer.kill()
            writer.wait()
        os.unlink(os.path.join(root, "noise"))
        with loading(args.vellum, root):
            subprocess.run([client, socket, "calls", str(args.rounds), "during loads"], check=True)
        subprocess.run([client, socket, "many", str(args.count)], check=True)
        now, most = memory_mib(server.pid)
        print(f"\nserver memory with {args.count} snapshots: {now:.1f} MiB, at most {most:.1f} MiB", flush=True)
        started = time.perf_counter()
        subprocess.run([args.vellum, "--root", root + "/v", "--run-dir", root + "/r", "gc", "--quiet"], check=True)
        print(f"vellum gc with nothing to remove: {time.perf_counter() - started:.2f} s", flush=True)
        subprocess.run([client, socket, "empty", str(args.count)], check=True)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
