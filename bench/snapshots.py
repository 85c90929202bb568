#!/usr/bin/env python3
"""The snapshotter's calls alone: what each takes, with 10,000 snapshots in one store, and what the server needs.

    cargo build --release -p vellum-cli -p vellum-snapshotter --examples
    bench/snapshots.py --vellum target/release/vellum --count 10000

The client is crates/snapshotter/examples/calls.rs; this starts the server, reads its memory, and runs the client alone, beside a process that
fills the page cache of the same disk, and beside one that loads images into the same store.
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
    """Returns what is resident now and what was at most, in MiB."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", required=True)
    parser.add_argument("--client", help="the example; found beside vellum if left out")
    parser.add_argument("--dir", default="/var/tmp", help="where the store is made")
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    client = args.client or os.path.join(os.path.dirname(os.path.abspath(args.vellum)), "examples", "calls")
    root = tempfile.mkdtemp(prefix="vs", dir=args.dir)
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
            subprocess.run([client, socket, "calls", str(args.rounds), "beside a writer"], check=True)
        finally:
            writer.kill()
            writer.wait()
        os.unlink(os.path.join(root, "noise"))
        with loading(args.vellum, root):
            subprocess.run([client, socket, "calls", str(args.rounds), "beside loads"], check=True)
        subprocess.run([client, socket, "many", str(args.count)], check=True)
        now, most = memory_mib(server.pid)
        print(f"\nserver memory with {args.count} snapshots: {now:.1f} MiB, at most {most:.1f} MiB", flush=True)
        started = time.perf_counter()
        subprocess.run([args.vellum, "--root", root + "/v", "--run-dir", root + "/r", "gc", "--quiet"], check=True)
        print(f"vellum gc with nothing to take: {time.perf_counter() - started:.2f} s", flush=True)
        subprocess.run([client, socket, "empty", str(args.count)], check=True)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
