#!/usr/bin/env python3
"""How long the store's verbs take as whole commands, alone and during a load, for one program or several in turn.

    cargo build --release -p vellum-cli
    bench/verbs.py --vellum OLD/vellum --vellum target/release/vellum --rounds 30

Each program has its own store. All programs run a step before the next step begins, in an order that
rotates, so that other load on the machine affects all of them. A ratio is the median of the rounds' ratios of the
first program to the other: above 1, the other is faster. `prepare`, `commit` and `remove` of containerd's snapshotter are bench/snapshots.py's.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time



def layer(files, size, seed):
    """A tar with `files` files of `size` bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(files):
            info = tarfile.TarInfo(f"d/{seed}-{i}")
            info.size = size
            tar.addfile(info, io.BytesIO(os.urandom(size)))
    return out.getvalue()


def archive(path, layers, name):
    """A docker-archive of these layers."""
    import hashlib

    diff_ids = ["sha256:" + hashlib.sha256(one).hexdigest() for one in layers]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()
    names = [f"{i}/layer.tar" for i in range(len(layers))]
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": names}]).encode()
    with tarfile.open(path, "w") as tar:
        for entry, data in [*zip(names, layers), ("config.json", config), ("manifest.json", manifest)]:
            info = tarfile.TarInfo(entry)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


class Program:
    """A program with a store."""

    def __init__(self, path, root, label):
        self.path, self.root, self.label = os.path.abspath(path), root, label
        self.times = {}

    def run(self, *arguments):
        command = [self.path, "--root", self.root + "/v", "--run-dir", self.root + "/r", "-q", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def take(self, step, *arguments):
        started = time.perf_counter()
        self.run(*arguments)
        self.times.setdefault(step, []).append((time.perf_counter() - started) * 1000)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", required=True, action="append", help="several: they run in turn")
    parser.add_argument("--dir", default="/var/tmp", help="directory for the stores; its file system is measured")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    top = tempfile.mkdtemp(prefix="vb", dir=args.dir)
    try:
        programs = [Program(path, f"{top}/{i}", path) for i, path in enumerate(args.vellum)]
        archive(f"{top}/small.tar", [layer(50, 2000, "a"), layer(10, 500, "b")], "small:1")
        for program in programs:
            os.makedirs(program.root)
            program.run("load", "-i", f"{top}/small.tar")
            for i in range(20):
                program.run("create", "--name", f"idle{i}", "small:1")
        for n in range(args.rounds):
            turn = programs[n % len(programs) :] + programs[: n % len(programs)]
            image, large = f"{top}/one.tar", f"{top}/large.tar"
            archive(image, [layer(200, 4000, f"r{n}")], f"round:{n}")
            archive(large, [layer(3000, 8000, f"l{n}")], f"large:{n}")
            steps = (
                ("load", "load", "-i", image),
                ("create", "create", "--name", "box", f"round:{n}"),
                ("tag", "tag", f"round:{n}", "other:1"),
                ("rename", "rename", "box", "crate"),
                ("commit", "commit", "crate", "made:1"),
                ("rm", "rm", "crate"),
                ("rmi", "rmi", f"round:{n}", "other:1", "made:1"),
                ("gc", "gc"),
                ("ls", "ls"),
                ("images", "images"),
                ("inspect", "inspect", "idle0"),
            )
            for step, *arguments in steps:
                os.sync()
                for program in turn:
                    program.take(step, *arguments)
            # During a load of the same program: readers and short writers.
            for program in turn:
                os.sync()
                load = subprocess.Popen(
                    [program.path, "--root", program.root + "/v", "--run-dir", program.root + "/r", "-q", "load", "-i", large],
                    stdout=subprocess.DEVNULL,
                )
                while load.poll() is None:
                    program.take("ls during a load", "ls")
                    program.take("inspect during a load", "inspect", "idle0")
                    program.take("create during a load", "create", "--name", "beside", "small:1")
                    program.take("rm during a load", "rm", "beside")
                if load.returncode:
                    sys.exit(f"a load failed: {load.returncode}")
                program.run("rmi", f"large:{n}")
                program.run("gc")
            print(f"verbs: round {n + 1} of {args.rounds}", file=sys.stderr, flush=True)
        first = programs[0]
        print("| step | " + " | ".join(f"{p.label}: median ms (p90)" for p in programs) + " | ratio |")
        print("|---|" + "---:|" * (len(programs) + 1))
        for step, base in first.times.items():
            cells, ratios = [], []
            for program in programs:
                taken = program.times[step]
                p90 = sorted(taken)[int(len(taken) * 0.9)]
                cells.append(f"{statistics.median(taken):.1f} ({p90:.1f})")
                if program is not first:
                    pairs = [a / b for a, b in zip(base, taken)]
                    ratios.append(f"{statistics.median(pairs):.2f}")
            print(f"| {step} | " + " | ".join(cells) + " | " + (", ".join(ratios) or "1") + " |")
    finally:
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
