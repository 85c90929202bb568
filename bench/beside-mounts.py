#!/usr/bin/env python3
"""How long create, mount, ps and umount take while many other deep overlays are mounted, in a temporary mount namespace.

    cargo build --release -p vellum-cli
    bench/beside-mounts.py --vellum target/release/vellum --overlays 300 --layers 500

The kernel prints every overlay's layers into /proc/self/mountinfo; the last row is the time to read that.
"""

import argparse
import ctypes
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# The same numbers on every architecture; libc has no wrappers everywhere.
MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 429, 430, 431, 432
SET_STRING, CREATE = 1, 6


def call(*args):
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.syscall(*[ctypes.c_char_p(a) if isinstance(a, bytes) else ctypes.c_long(a) for a in args])
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(args))
    return done


def overlay(lowers, target):
    """Mounts lower directories read-only at `target`, each as a separate option."""
    context = call(FSOPEN, b"overlay", 0)
    for lower in lowers:
        call(FSCONFIG, context, SET_STRING, b"lowerdir+", os.fsencode(lower), 0)
    call(FSCONFIG, context, CREATE, 0, 0, 0)
    mount = call(FSMOUNT, context, 0, 0)
    call(MOVE_MOUNT, mount, b"", -100, os.fsencode(target), 4)
    os.close(mount)
    os.close(context)


def rounds(vellum, root, count):
    """Returns the milliseconds of each step, a list per step."""
    base = [vellum, "--root", root + "/v", "--run-dir", root + "/r"]
    steps = (["create", "--name", "box", "--from", root + "/tree"], ["mount", "box"], ["ps"], ["umount", "box"], ["rm", "box"])
    times = {step[0]: [] for step in steps}
    times["reading mountinfo"] = []
    for _ in range(count):
        for step in steps:
            started = time.perf_counter()
            subprocess.run(base + step, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            times[step[0]].append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        with open("/proc/self/mountinfo", "rb") as file:
            file.read()
        times["reading mountinfo"].append((time.perf_counter() - started) * 1000)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", required=True, action="append", help="several: they run in turn")
    parser.add_argument("--dir", default="/var/tmp", help="directory for the stores and layers")
    parser.add_argument("--overlays", type=int, default=300)
    parser.add_argument("--layers", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if os.environ.get("BESIDE_MOUNTS") != "1":
        os.environ["BESIDE_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])
    root = tempfile.mkdtemp(prefix="bm", dir=args.dir)
    crowd = os.path.join(root, "crowd")
    try:
        os.makedirs(crowd)
        subprocess.run(["mount", "-t", "tmpfs", "crowd", crowd], check=True)
        lowers = [f"{crowd}/overlay2/{i:064x}/diff" for i in range(args.layers)]
        for lower in lowers:
            os.makedirs(lower)
        os.makedirs(root + "/tree")
        print("| while mounted | program | step | median ms | most |\n|---|---|---|---:|---:|")
        for overlays in (0, args.overlays):
            for i in range(overlays):
                target = f"{crowd}/merged-{i}"
                os.mkdir(target)
                overlay(lowers, target)
            for vellum in args.vellum:
                for step, times in rounds(os.path.abspath(vellum), root, args.rounds).items():
                    print(f"| {overlays} overlays of {args.layers} layers | {vellum} | {step} | {statistics.median(times):.1f} | {max(times):.1f} |", flush=True)
                shutil.rmtree(root + "/v")
    finally:
        # The mounts end with the namespace; the directory must not be removed through one.
        subprocess.run(["umount", "-l", crowd], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(root)


main()
