#!/usr/bin/env python3
"""Compares Vellum with the tools in use today, and says where it loses.

    bench/bench.py [ROW...] [--rounds N] [--output FILE]      rows: load mount changes registry cp million memory
    bench/bench.py --list

Needs root (as the others do), Debian's dockerd, podman, skopeo, umoci and docker-registry, and about 15 GB on the
file system of --work. In each round every contender runs once, in an order that rotates, so that other
load on the machine affects all of them; the table has the median of the rounds and of each round's
ratio to Vellum, with their spread. Dirty pages are written back before each turn.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import inputs  # noqa: E402
import tools  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Results:
    """Seconds by row, contender and round, or text where there is no number."""

    def __init__(self):
        self.rows = {}

    def add(self, row, contender, value):
        self.rows.setdefault(row, {}).setdefault(contender, []).append(value)

    def cells(self, row):
        for contender, values in self.rows[row].items():
            numbers = [v for v in values if isinstance(v, float)]
            word = next((v for v in values if isinstance(v, str)), None)
            yield contender, numbers, word


def turns(contenders, round_number):
    """The contenders, starting with a different one each round."""
    shift = round_number % len(contenders)
    return contenders[shift:] + contenders[:shift]


def take(results, row, tool, action):
    """Runs and records one timed action. Returns its result, or None."""
    os.sync()
    try:
        done = action()
    except tools.Refused as refused:
        say(f"{row}: {tool.name}: {refused}")
        results.add(row, tool.name, f"refuses: {str(refused)[:90]}")
        return None
    if done is None:
        return None
    timed = done[0] if isinstance(done, tuple) else done
    results.add(row, tool.name, timed.seconds)
    say(f"{row}: {tool.name}: {timed.seconds:.4f} s")
    return done


def row_load(results, contenders, rounds):
    """Load of the ten-layer image, and its removal."""
    archive, tag = inputs.debian_image()
    size = os.path.getsize(archive) >> 20
    subprocess.run(["cat", archive], stdout=subprocess.DEVNULL, check=True)  # into the page cache
    for number in range(rounds):
        for tool in turns(contenders, number):
            if take(results, f"load, 10 layers, {size} MiB", tool, lambda t=tool: t.load(archive, tag)):
                take(results, "remove that image", tool, lambda t=tool: t.remove_image(tag))


def row_mount(results, contenders, rounds):
    """create + mount, unmount + remove, by number of layers."""
    for count in (1, 10, 100, 500):
        archive, tag = inputs.thin_layers(count)
        row = f"create + mount, {count} layers"
        ready = []
        mounting = [t for t in contenders if type(t).create_mounted is not tools.Tool.create_mounted]
        for tool in mounting:
            try:
                tool.load(archive, tag)
                ready.append(tool)
            except tools.Refused as refused:
                say(f"load of {count} layers: {tool.name}: {refused}")
                results.add(row, tool.name, f"refuses the image: {str(refused)[:90]}")
        for number in range(rounds * 4):
            for tool in turns(ready, number):
                done = take(results, row, tool, lambda t=tool: t.create_mounted(tag))
                if done:
                    take(results, f"unmount + remove, {count} layers", tool, lambda t=tool, k=done[1]: t.unmount_remove(k))
        for tool in ready:
            try:
                tool.remove_image(tag)
            except tools.Refused:
                pass


def row_changes(results, contenders, rounds):
    """diff and commit of a thousand changed files in the ten-layer image."""
    archive, tag = inputs.debian_image()
    work_with(results, contenders, rounds, archive, tag, inputs.change_a_thousand, "1,000 changes", commit=True)


def row_registry(results, contenders, rounds):
    """Pull of the ten-layer image from a registry on the loopback, gzip layers, and push to an empty one."""
    if not shutil.which("docker-registry"):
        return say("left out: the registry rows need docker-registry")
    archive, tag = inputs.debian_image()
    home = os.environ["BENCH_HOME"]
    able = [t for t in contenders if type(t).pull is not tools.Tool.pull]
    with tools.registry(home) as host:
        image = f"{host}/{tag}"
        filled = subprocess.run(
            ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]
            + [f"docker-archive:{archive}", f"docker://{image}"],
            check=False,
        )
        if filled.returncode:
            return say("left out: skopeo could not fill the registry")
        for number in range(rounds):
            for tool in turns(able, number):
                if take(results, "pull, 10 gzip layers", tool, lambda t=tool: t.pull(image)):
                    tool.remove_image(image)
    ready = []
    for tool in able:
        try:
            tool.load(archive, tag)
            ready.append(tool)
        except tools.Refused as refused:
            say(f"push: {tool.name}: {refused}")
    for number in range(rounds):
        for tool in turns(ready, number):
            # A name for each turn: tools remember which registry has what.
            with tools.registry(home) as host:
                take(results, "push, 10 layers to be compressed", tool, lambda t=tool, h=host: t.push(tag, f"{h}/{tag}"))
    for tool in ready:
        tool.remove_image(tag)


def row_cp(results, contenders, rounds):
    """cp into a container that is not running, and out of it: 2,000 small files, one of 256 MiB."""
    archive, tag = inputs.debian_image()
    outside = os.path.join(os.environ["BENCH_HOME"], "outside")
    inputs.many_and_large(f"{outside}/in")
    ready = []
    for tool in contenders:
        if type(tool).copy is tools.Tool.copy:
            continue
        try:
            tool.load(archive, tag)
            ready.append((tool, tool.create(tag)))
        except tools.Refused as refused:
            say(f"cp: {tool.name}: {refused}")
    for number in range(rounds):
        for what, name in (("2,000 files", "many"), ("a file of 256 MiB", "large")):
            for tool, key in turns(ready, number):
                inside = f"{key}:/srv/{name}-{number}"
                back = f"{outside}/out"
                if take(results, f"cp {what} in", tool, lambda t=tool: t.copy(f"{outside}/in/{name}", inside)):
                    take(results, f"cp {what} out", tool, lambda t=tool: t.copy(inside, back))
                subprocess.run(["rm", "-rf", back], check=True)
    for tool, key in ready:
        tool.remove(key)
        tool.remove_image(tag)
    shutil.rmtree(outside)


def row_million(results, contenders, rounds):
    """diff of ten changes in a tree of a million files."""
    say("the image of 1,000,000 files takes each contender some minutes to load")
    archive, tag = inputs.many_files(1_000_000)
    work_with(results, contenders, rounds, archive, tag, inputs.change_ten, "10 changes in 1,000,000 files", commit=False)


def work_with(results, contenders, rounds, archive, tag, change, what, commit):
    ready = []
    for tool in contenders:
        if type(tool).changed is tools.Tool.changed:
            continue
        try:
            timed = tool.load(archive, tag)
            if "1,000,000" in what:
                results.add("load, 1 layer, 1,000,000 empty files", tool.name, timed.seconds)
            ready.append((tool, tool.changed(tag, change)))
        except tools.Refused as refused:
            say(f"{what}: {tool.name}: {refused}")
            results.add(f"diff, {what}", tool.name, f"refuses: {str(refused)[:90]}")
    for number in range(rounds):
        for tool, key in turns(ready, number):
            take(results, f"diff, {what}", tool, lambda t=tool, k=key: t.diff(k))
        if commit:
            for tool, key in turns(ready, number):
                made = f"bench-commit-{number}:latest"
                if take(results, f"commit, {what}", tool, lambda t=tool, k=key, m=made: t.commit(k, m)):
                    tool.remove_image(made)
    for tool, key in ready:
        tool.unmount_remove(key)
        tool.remove_image(tag)


def row_memory(results, contenders, rounds):
    """Peak resident memory while loading: the ten-layer image, and one layer of 10 GiB."""
    images = [("the 10-layer image", inputs.debian_image()), ("one layer of 10 GiB", inputs.huge_layer(10))]
    for what, (archive, tag) in images:
        for tool in contenders:
            if tool.name in ("umoci", "tar"):
                continue
            os.sync()
            try:
                timed = tool.load(archive, tag)
                say(f"memory, {what}: {tool.name}: {timed.peak_kib >> 10} MiB, {timed.seconds:.1f} s")
                results.add(f"peak memory (MiB), {what}", tool.name, float(timed.peak_kib / 1024))
                results.add(f"load of {what}, once", tool.name, timed.seconds)
                tool.remove_image(tag)
            except tools.Refused as refused:
                results.add(f"peak memory (MiB), {what}", tool.name, f"refuses: {str(refused)[:90]}")


ROWS = {
    "load": row_load,
    "mount": row_mount,
    "changes": row_changes,
    "registry": row_registry,
    "cp": row_cp,
    "million": row_million,
    "memory": row_memory,
}


def write(output, text):
    with open(output, "w", encoding="utf-8") as file:
        file.write(text)


def number(value):
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.2f}"
    return f"{value:.4f}"


def report(results, command, rounds, kind):
    """The Markdown page: the machine, the command, the table with its lost rows."""
    lines = ["# Benchmark results", "", "Made by", "", f"    {command}", ""]
    lines += [f"* {line}" for line in machine(kind)]
    lines += [
        f"* {rounds} interleaved rounds (mounts: {rounds * 4}); seconds are medians; a ratio is the median of that contender's time"
        " over Vellum's in the same round, with the smallest and largest: above 1, Vellum was faster.",
        "* `bench/tools.py` says what is measured for each contender.",
        "",
        "| what | contender | median | ratio to Vellum | spread | |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in results.rows:
        own = [v for v in results.rows[row].get("vellum", []) if isinstance(v, float)]
        for contender, numbers, word in results.cells(row):
            if not numbers:
                lines.append(f"| {row} | {contender} | | | | {word} |")
                continue
            median = number(statistics.median(numbers))
            if contender == "vellum":
                spread = f"{number(min(numbers))} - {number(max(numbers))}"
                lines.append(f"| **{row}** | **vellum** | **{median}** | 1 | {spread} | |")
                continue
            ratios = [a / b for a, b in zip(numbers, own)]
            if not ratios:
                lines.append(f"| {row} | {contender} | {median} | | | |")
                continue
            ratio = statistics.median(ratios)
            lost = "**lost**" if ratio < 1 else ""
            lines.append(f"| {row} | {contender} | {median} | {ratio:.2f} | {min(ratios):.2f} - {max(ratios):.2f} | {lost} |")
    return "\n".join(lines) + "\n"


def ram_disk(work, gib):
    """Mounts an ext4 in memory at `work`, so that the disk, which other processes may use, is not measured (nor is
    most of the cost of syncing)."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={gib}G", "tmpfs", work], check=True)
    image, inner = f"{work}/disk", f"{work}/inner"
    os.mkdir(inner)
    with open(image, "wb") as file:
        file.truncate((gib << 30) - (64 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-N", "4000000", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, inner], check=True)
    os.environ["BENCH_HOME"] = inner


def file_system(work):
    """The type of the file system that the stores are on, according to mountinfo."""
    home = os.environ.get("BENCH_HOME", work)
    done = subprocess.run(["findmnt", "-n", "-o", "FSTYPE,SOURCE", "-T", home], stdout=subprocess.PIPE, check=False)
    words = done.stdout.decode().split() or ["?"]
    return words[0] + (" in memory" if home != work else "")


def machine(kind):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(": ", 1)[1].strip() for line in file if line.startswith("model name")), "?")
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = int(file.readline().split()[1]) >> 20
    yield f"{model}, {os.cpu_count()} cores, {memory} GiB; Linux {platform.release()}; {kind}; {time.strftime('%Y-%m-%d')}"
    versions = []
    for argv in (["dockerd", "--version"], ["podman", "--version"], ["skopeo", "--version"], ["umoci", "--version"], ["tar", "--version"]):
        try:
            out = subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()[0]
            versions.append(out.split(", build")[0])
        except (OSError, subprocess.CalledProcessError):
            versions.append(f"no {argv[0]}")
    yield "; ".join(versions)


def main():
    parser = argparse.ArgumentParser(description="Compares Vellum with dockerd, podman, skopeo, umoci and tar.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="contenders, comma separated")
    parser.add_argument("--vellum", default=os.path.join(ROOT, "target", "release", "vellum"))
    parser.add_argument("--work", default=os.path.join(inputs.CACHE, "work"), help="directory for the stores; emptied afterwards")
    parser.add_argument("--ram-disk", metavar="GIB", type=int, help="keep the stores on an ext4 file system of this size in memory instead")
    parser.add_argument("--output", help="where the table goes (bench/RESULTS.md when all rows are run, else stdout)")
    parser.add_argument("--list", action="store_true", help="describe the rows")
    arguments = parser.parse_args()
    if arguments.list:
        for name, row in ROWS.items():
            print(f"{name:8} {row.__doc__}")
        return
    unknown = set(arguments.rows) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        sys.exit("bench: needs root, as dockerd does")
    if not os.path.exists(arguments.vellum):
        sys.exit(f"bench: {arguments.vellum} does not exist: run make build")
    work = os.path.abspath(arguments.work)
    os.makedirs(work, exist_ok=True)
    os.environ["BENCH_HOME"] = work
    if arguments.ram_disk:
        ram_disk(work, arguments.ram_disk)
    # As another user would type it: paths of this machine are left out.
    words, places = sys.argv[1:], ("--vellum", "--work", "--output")
    words = [w for i, w in enumerate(words) if w not in places and (i == 0 or words[i - 1] not in places)]
    command = " ".join(["bench/bench.py", *words])
    output = arguments.output or ("" if arguments.rows else os.path.join(ROOT, "bench", "RESULTS.md"))
    contenders = []
    results = Results()
    try:
        home = os.environ["BENCH_HOME"]
        contenders.append(tools.Vellum(home, os.path.abspath(arguments.vellum)))
        for kind in (tools.Dockerd, tools.Podman, tools.Skopeo, tools.Umoci, tools.Tar):
            if arguments.only and kind.__name__.lower() not in arguments.only.split(","):
                continue
            if kind.missing():
                say(f"left out: {kind.name} needs {', '.join(kind.missing())}")
                continue
            contenders.append(kind(home))
        kind = file_system(work)
        for name in arguments.rows or ROWS:
            ROWS[name](results, contenders, arguments.rounds)
            if output:  # after every row, so that an interrupted run keeps its results
                write(output, report(results, command, arguments.rounds, kind))
    finally:
        for tool in contenders:
            tool.close()
        tools.unmount_below(work)
        shutil.rmtree(work, ignore_errors=True)
    text = report(results, command, arguments.rounds, kind)
    if output:
        say(f"wrote {output}")
    print(text)


if __name__ == "__main__":
    main()
