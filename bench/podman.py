#!/usr/bin/env python3
"""Podman on the kernel's overlay, on Vellum and on fuse-overlayfs as its mount program: start, commit, and the disk they take.

    cargo build --release -p vellum-cli
    bench/podman.py --vellum target/release/vellum [--rounds 5] [--before PROGRAM] [--fuse-overlayfs PROGRAM]

The image is the demo's: ten layers from Debian's packages. "ids" is a container with its own ids
(`--uidmap 0:100000:65536`): where the kernel can't map them, Podman copies and changes the owner of
every file first. The committed container has ended and has written one file; with a mount program,
Podman compares the whole trees through it. Contenders take turns in an order that rotates; medians,
and the kernel's time over each contender's: above 1 is faster. "disk" is the growth of the store.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import inputs  # noqa: E402
import tools  # noqa: E402

IDS = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
# Options that also work in a container inside a container.
LIMITS = ["--network", "none", "--ulimit", "nofile=1000:1000", "--ulimit", "nproc=1000:1000"]


class Podman(tools.Podman):
    """Podman with its own store, and maybe a mount program."""

    def __init__(self, home, name, program):
        self.name = name
        super().__init__(home)
        self.options = []
        if program:
            # Vellum recognises this name.
            named = os.path.join(self.home, "fuse-overlayfs")
            shutil.copy(program, named)
            self.options = ["--storage-opt", f"overlay.mount_program={named}"]

    def run(self, *arguments):
        return super().run(*self.options, *arguments)

    def surely(self, *arguments):
        """Podman's own clean-up of an ended container may be running."""
        for _ in range(30):
            try:
                return self.run(*arguments)
            except tools.Refused as refused:
                last = refused
                time.sleep(0.5)
        raise last

    def bytes(self):
        out = subprocess.run(["du", "--summarize", "--block-size=1", f"{self.home}/root"], check=True, stdout=subprocess.PIPE)
        return int(out.stdout.split()[0])


def one_life(podman, image, label, flags, note):
    """Times a container that writes one file, its commit, and another start, and leaves the store as it was."""
    before = podman.bytes()
    start = podman.run("run", "--name", "box", *LIMITS, *flags, image, "/bin/sh", "-c", "echo x > /written")
    note(f"start{label}", start.seconds)
    note(f"disk of a start{label}, MB", (podman.bytes() - before) / 1e6)
    before = podman.bytes()
    commit = podman.run("commit", "--quiet", "box", "localhost/committed:1")
    note(f"commit{label}", commit.seconds)
    note(f"disk of a commit{label}, MB", (podman.bytes() - before) / 1e6)
    podman.surely("rmi", "localhost/committed:1")
    again = podman.run("run", "--rm", *LIMITS, *flags, image, "/bin/true")
    note(f"second start{label}", again.seconds)
    podman.surely("rm", "--force", "box")


def print_table(contenders, times):
    first = contenders[0].name
    print("| what | " + " | ".join(c.name for c in contenders) + " |")
    print("|---|" + "---:|" * len(contenders))
    for what, by in times.items():
        base = statistics.median(by[first])
        cells = []
        for contender in contenders:
            if contender.name not in by:
                cells.append("refused")
                continue
            value = statistics.median(by[contender.name])
            ratio = f" ({base / value:.3f})" if contender.name != first and base > 0.01 else ""
            cells.append(f"{value:.3f}{ratio}")
        print(f"| {what} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", required=True)
    parser.add_argument("--before", help="an older vellum, to compare with")
    parser.add_argument("--fuse-overlayfs", default=shutil.which("fuse-overlayfs"))
    parser.add_argument("--image", help="a docker-archive of localhost/bench:1, instead of the demo's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", default="/var/tmp", help="directory for the stores")
    args = parser.parse_args()
    archive, tag = (args.image, "bench:1") if args.image else inputs.debian_image()
    programs = [("kernel", None), ("vellum", args.vellum)]
    if args.before:
        programs.append(("vellum before", args.before))
    if args.fuse_overlayfs:
        programs.append(("fuse-overlayfs", args.fuse_overlayfs))
    home = tempfile.mkdtemp(prefix="bp", dir=args.dir)
    os.environ["BENCH_HOME"] = home
    contenders, times, refusals = [], {}, {}
    try:
        for name, program in programs:
            contenders.append(Podman(home, name.replace(" ", "-"), program))
            contenders[-1].load(archive, tag)
        for number in range(args.rounds):
            turn = number % len(contenders)
            for podman in contenders[turn:] + contenders[:turn]:
                os.sync()

                def note(what, value, name=podman.name):
                    times.setdefault(what, {}).setdefault(name, []).append(value)

                for label, flags in [("", []), (", ids", IDS)]:
                    try:
                        one_life(podman, "localhost/" + tag, label, flags, note)
                    except tools.Refused as refused:
                        refusals[f"{podman.name}{label}"] = str(refused)
                        podman.surely("rm", "--all", "--force")
        version = subprocess.run(["podman", "--version"], check=True, stdout=subprocess.PIPE).stdout.decode().strip()
        print(f"{version}; {args.rounds} rounds; seconds, and the kernel's over each\n")
        print_table(contenders, times)
        for who, why in refusals.items():
            print(f"\n{who} refuses: {why}")
    finally:
        for podman in contenders:
            podman.close()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
