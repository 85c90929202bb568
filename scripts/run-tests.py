#!/usr/bin/env python3
"""Runs all test programs of the workspace, several at a time, then the examples in its documents.

    scripts/run-tests.py [--jobs N]

`cargo test` runs one program after the other, and each ends with its longest test alone, which often
waits for a daemon. Here another program runs meanwhile: two by default, each with cargo's own number
of threads. What a program prints appears when it has ended. All run, also after a failure; then the
exit status is 1, and the last lines name the programs that failed.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The programs that take longest on two cores start first: none of them is to run alone at the end.
LONGEST = ["faults", "containers", "store_kinds", "snapshotter_suite", "kills", "differential"]

# These run before all others, alone. btrfs takes a clone of a mounted disk for another file system,
# and a mount namespace that another program makes keeps the last disk mounted.
ALONE = ["power_cut_names"]


def programs():
    """Builds all test programs, and returns a name, a file and a directory to run it in for each."""
    build = subprocess.run(
        ["cargo", "test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=False,
    )
    if build.returncode != 0:
        sys.exit(build.returncode)
    found = []
    for line in build.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["profile"]["test"] and message["executable"]:
            package = os.path.dirname(message["manifest_path"])
            name = f"{os.path.basename(package)}/{message['target']['name']}"
            found.append((name, message["executable"], package))
    return found


def short(program):
    """Returns the name of a program without its package."""
    return program[0].rsplit("/", 1)[1]


def place(program):
    """Returns the sort key of a program: the longest first, then by name."""
    name = short(program)
    return (LONGEST.index(name) if name in LONGEST else len(LONGEST), program[0])


def run(program):
    """Runs one program as cargo does, and returns its status, its output and its seconds."""
    name, file, package = program
    print(f"started {name}", flush=True)
    begin = time.monotonic()
    environment = dict(os.environ, CARGO_MANIFEST_DIR=package)
    done = subprocess.run(
        [file],
        cwd=package,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )
    return done.returncode, done.stdout, time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="programs at a time (default: 2)")
    jobs = parser.parse_args().jobs
    failed = []
    found = programs()
    alone = [program for program in found if short(program) in ALONE]
    others = sorted((program for program in found if short(program) not in ALONE), key=place)
    for some, at_once in [(alone, 1), (others, jobs)]:
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            waiting = {pool.submit(run, program): program[0] for program in some}
            for done in concurrent.futures.as_completed(waiting):
                name = waiting[done]
                status, output, seconds = done.result()
                print(f"\n-- {name}, {seconds:.0f} s", flush=True)
                sys.stdout.buffer.write(output)
                sys.stdout.buffer.flush()
                if status != 0:
                    failed.append(name)
    documents = subprocess.run(["cargo", "test", "--workspace", "--locked", "--doc"], cwd=ROOT, check=False)
    if documents.returncode != 0:
        failed.append("examples in documents")
    for name in failed:
        print(f"failed: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
