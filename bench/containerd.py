#!/usr/bin/env python3
"""containerd on its built-in overlayfs and on Vellum: import, pull, start, remove.

    bench/containerd.py --vellum target/release/vellum              containerd 2 (from scripts/forky-root.sh) and the machine's 1.6
    bench/containerd.py --vellum ... --only 2 --rounds 5 import pull

Contenders take turns in an order that rotates; the disk is synced before each, and nothing else runs. The import is the
demo image (ten layers, 560 MB of tar, gzip), already in the page cache. Medians; ratios are overlayfs's time over the other's: below 1
is slower and bold. "then sync" is the time of a sync after overlayfs has answered; Vellum has synced by then. "containerd's part" is an
import without unpacking: containerd copies, checks and syncs the blobs, and no snapshotter is involved.

Each import and pull has its own daemons on its own ext4, in a file below --disk: for minutes after many files were removed, ext4 takes half
a millisecond to create one (it skips each inode that was freed recently), so the second contender would be slowed down by the
first one's leftovers. Starts share their daemons.

    overlayfs     containerd's own snapshotter and differ
    vellum        Vellum's snapshotter, containerd's differ
    vellum+diff   both Vellum's (containerd 2 only: 1.6 has no proxy differ)
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import inputs
import tools

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.path.join(ROOT, ".cache", "bench")
IMAGE = "docker.io/library/bench:full"
SMALL = "docker.io/library/vellum-demo-small:latest"
ROWS = ("import", "pull", "start", "start-10", "start-100")


def say(text):
    print(f"containerd.py: {text}", file=sys.stderr, flush=True)


def real_image():
    """The demo image as an OCI archive with gzip layers, created once."""
    path = os.path.join(CACHE, "demo-full.oci.tar")
    if not os.path.exists(path):
        archive, _ = inputs.debian_image()
        os.makedirs(CACHE, exist_ok=True)
        say("compressing the demo image, once")
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--insecure-policy", f"docker-archive:{archive}", f"oci-archive:{path}.tmp:{IMAGE}"],
            check=True,
        )
        os.rename(path + ".tmp", path)
    return path


def small_image():
    path = os.path.join(CACHE, "demo-small.tar")
    if not os.path.exists(path):
        os.makedirs(CACHE, exist_ok=True)
        script = os.path.join(ROOT, "scripts", "demo-image.py")
        subprocess.run([script, "--profile", "small", path], stdout=subprocess.DEVNULL, check=True)
    return path


class Machine:
    """Where a containerd runs: on this machine, or in the root of Debian's next release."""

    def __init__(self, home, forky):
        self.home, self.holder = home, None
        self.inside = home
        if forky:
            # A process that keeps the mount namespace; everything else enters it.
            script = os.path.join(ROOT, "scripts", "forky-root.sh")
            self.holder = subprocess.Popen(
                [script, "run", "sh", "-c", "echo ready; exec sleep 100000"],
                env=dict(os.environ, EXCHANGE=home),
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            if self.holder.stdout.readline() != b"ready\n":
                raise SystemExit("the root of the newer containerd did not come up")
            self.target = self.sleeper()
            self.inside = "/exchange"

    def sleeper(self):
        """The pid of the innermost process: its namespaces and root are the ones to enter."""
        pid = self.holder.pid
        while True:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                children = file.read().split()
            if not children:
                return pid
            pid = int(children[0])

    def argv(self, *command):
        if self.holder:
            return ["nsenter", "--target", str(self.target), "--mount", "--root", "--pid", *command]
        return list(command)

    def close(self):
        if self.holder:
            # When the first process of the pid namespace ends, all others end too.
            os.kill(self.target, signal.SIGKILL)
            self.holder.wait()


def contenders(forky):
    """The snapshotter of each; containerd 1.6 has no proxy differ."""
    both = {"overlayfs": "overlayfs", "vellum": "vellum"}
    return both | {"vellum+diff": "vellum-plus"} if forky else both


class Pair:
    """A containerd and Vellum's server, with their files."""

    def __init__(self, vellum, forky, disk):
        self.home = tempfile.mkdtemp(prefix="bc", dir=disk)
        self.image = self.home + ".ext4"
        with open(self.image, "wb") as file:
            file.truncate(8 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "1000000", self.image], check=True)
        subprocess.run(["mount", "-o", "loop", self.image, self.home], check=True)
        self.machine = Machine(self.home, forky)
        inside = self.machine.inside
        self.run_dir = f"{inside}/r"
        os.makedirs(f"{self.home}/r")
        shutil.copy2(vellum, f"{self.home}/vellum")
        for path in (real_image(), small_image()):
            shutil.copy(path, self.home)
        with open(f"{self.home}/config.toml", "w", encoding="utf-8") as file:
            file.write(self.config(forky))
        with open(f"{self.home}/vellum.toml", "w", encoding="utf-8"):
            pass
        self.daemons = []
        self.start(
            "vellum", f"{inside}/vellum", "--root", f"{inside}/v", "--run-dir", f"{inside}/r/v", "--config", f"{inside}/vellum.toml",
            "serve", "containerd", "--socket", f"{inside}/r/vs", "--containerd", f"{inside}/r/sock",
        )
        self.start("containerd", "containerd", "--config", f"{inside}/config.toml")
        deadline = time.monotonic() + 60
        while self.ctr("version", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise SystemExit(f"containerd did not come up: see {self.home}/containerd.log")
            time.sleep(0.1)

    def config(self, forky):
        inside = self.machine.inside
        text = f"""version = {3 if forky else 2}
root = "{inside}/c"
state = "{inside}/r/c"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{inside}/r/sock"
"""
        proxies = [("vellum", "snapshot")]
        if forky:
            proxies += [("vellum-plus", "snapshot"), ("vellum-diff", "diff")]
        for name, kind in proxies:
            text += f'[proxy_plugins.{name}]\n  type = "{kind}"\n  address = "{inside}/r/vs"\n'
        if forky:
            for name, differ in (("overlayfs", "walking"), ("vellum", "walking"), ("vellum-plus", "vellum-diff")):
                text += (
                    '[[plugins."io.containerd.transfer.v1.local".unpack_config]]\n'
                    f'  platform = "linux/amd64"\n  snapshotter = "{name}"\n  differ = "{differ}"\n'
                )
        return text

    def start(self, name, *command):
        with open(f"{self.home}/{name}.log", "ab") as log:
            process = subprocess.Popen(
                self.machine.argv(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.daemons.append((name, process))

    def ctr(self, *arguments, check=True, **options):
        argv = self.machine.argv("ctr", "--address", f"{self.machine.inside}/r/sock", *arguments)
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=check, **options
        )

    def memory(self):
        """Peak resident MiB of the daemons by name."""
        peaks = {}
        for name, process in self.daemons:
            pid = process.pid
            # nsenter --pid forks.
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                children = file.read().split()
            if self.machine.holder and children:
                pid = int(children[0])
            with open(f"/proc/{pid}/status") as file:
                facts = dict(line.split(":", 1) for line in file if ":" in line)
            peaks[name] = tuple(int(facts[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
        return peaks

    def close(self):
        for name, process in reversed(self.daemons):
            pid = process.pid
            try:
                with open(f"/proc/{pid}/task/{pid}/children") as file:
                    children = file.read().split()
                target = int(children[0]) if self.machine.holder and children else pid
                os.kill(target, signal.SIGTERM)
                process.wait(timeout=30)
            except (OSError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()
        self.machine.close()
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            points = [line.split()[4] for line in file]
        for point in reversed([p for p in points if p == self.home or p.startswith(self.home + "/")]):
            subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False)
        os.rmdir(self.home)
        os.remove(self.image)


def timed(action):
    os.sync()
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


class Rows:
    """Times by row and contender."""

    def __init__(self):
        self.times = {}

    def add(self, row, contender, seconds):
        self.times.setdefault(row, {}).setdefault(contender, []).append(seconds)

    def show(self, title, contenders):
        print(f"\n### {title}\n")
        others = [name for name in contenders if name != "overlayfs"]
        print("| seconds | " + " | ".join(contenders) + " | " + " | ".join(f"overlayfs / {name}" for name in others) + " |")
        print("|---|" + "---:|" * (len(contenders) + len(others)))
        for row, times in self.times.items():
            cells = [f"{statistics.median(times[name]):.3f}" if name in times else "-" for name in contenders]
            for name in others:
                if name not in times or "overlayfs" not in times:
                    cells.append("-")
                    continue
                ratio = statistics.median(theirs / mine for mine, theirs in zip(times[name], times["overlayfs"]))
                cells.append(f"**{ratio:.2f}**" if ratio < 0.995 else f"{ratio:.2f}")
            print(f"| {row} | " + " | ".join(cells) + " |")


@contextlib.contextmanager
def registry(disk):
    """Starts a registry with the image in it. Yields its host."""
    with tools.registry(disk) as host:
        subprocess.run(
            ["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", f"oci-archive:{real_image()}", f"docker://{host}/bench:full"],
            check=True,
        )
        yield host


def turns(contenders, number):
    names = list(contenders)
    at = number % len(names)
    return names[at:] + names[:at]


def starts(pair, snapshotter, count, tag):
    """Runs `count` containers at once, each to its end. Returns the seconds of each."""
    times = [0.0] * count
    failed = []

    def one(number):
        begun = time.perf_counter()
        done = pair.ctr("run", "--rm", "--snapshotter", snapshotter, SMALL, f"{tag}-{number}", "/bin/true", check=False)
        times[number] = time.perf_counter() - begun
        if done.returncode != 0:
            failed.append(done.stderr.decode(errors="replace").strip())

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(f"{len(failed)} of {count} containers did not start: {failed[0]}")
    return times


class Bench:
    """The rows of one containerd."""

    def __init__(self, args, forky):
        self.args, self.forky = args, forky
        self.rounds = args.rounds if forky else min(args.rounds, 2)
        self.contenders = contenders(forky)
        self.rows, self.peaks, self.title = Rows(), {}, None

    @contextlib.contextmanager
    def daemons(self):
        """A pair on an empty file system; its memory use is recorded."""
        pair = Pair(self.args.vellum, self.forky, self.args.disk)
        try:
            if not self.title:
                version = subprocess.run(pair.machine.argv("containerd", "--version"), stdout=subprocess.PIPE, check=True)
                self.title = version.stdout.decode().strip().replace("github.com/containerd/", "")
            yield pair
            for name, (now, peak) in pair.memory().items():
                self.peaks[name] = max(self.peaks.get(name, (0, 0)), (peak, now))
        finally:
            pair.close()

    def each_turn(self):
        """Yields a contender's name, the daemons and the arguments that choose it, in turns."""
        for number in range(self.rounds):
            for name in turns(self.contenders, number):
                with self.daemons() as pair:
                    yield name, pair, ("--snapshotter", self.contenders[name])

    def imports(self):
        for name, pair, how in self.each_turn():
            archive = f"{pair.machine.inside}/demo-full.oci.tar"
            self.rows.add("import", name, timed(lambda: pair.ctr("image", "import", *how, archive)))
            self.rows.add("  then sync", name, timed_sync(pair.home))
            self.rows.add("remove (image rm --sync)", name, timed(lambda: pair.ctr("image", "rm", "--sync", IMAGE)))
            self.rows.add("containerd's part of the import", name, timed(lambda: pair.ctr("image", "import", "--no-unpack", archive)))

    def pulls(self):
        with registry(self.args.disk) as host:
            for name, pair, how in self.each_turn():
                image = f"{host}/bench:full"
                self.rows.add("pull", name, timed(lambda: pair.ctr("image", "pull", "--plain-http", *how, image)))
                self.rows.add("  then sync ", name, timed_sync(pair.home))

    def starts(self, counts):
        # The differ is not involved.
        two = {name: self.contenders[name] for name in ("overlayfs", "vellum")}
        with self.daemons() as pair:
            for snapshotter in two.values():
                pair.ctr("image", "import", "--snapshotter", snapshotter, f"{pair.machine.inside}/demo-small.tar")
                starts(pair, snapshotter, 1, "warm-up")
            for count in counts:
                for number in range({1: 10, 10: max(self.rounds, 3), 100: 1}.get(count, 1)):
                    for name in turns(two, number):
                        os.sync()
                        times = starts(pair, two[name], count, f"s{count}-{number}")
                        label = "start, median of each container" if count > 1 else "start and end of one container"
                        self.rows.add(f"{label} ({count} at once)" if count > 1 else label, name, statistics.median(times))
                        if count > 1:
                            self.rows.add(f"  until all {count} had ended", name, max(times))

    def run(self, rows):
        if "import" in rows:
            self.imports()
        if "pull" in rows:
            self.pulls()
        if counts := [int(row.partition("-")[2] or 1) for row in rows if row.startswith("start")]:
            self.starts(counts)
        self.rows.show(self.title, list(self.contenders))
        for name, (peak, now) in self.peaks.items():
            print(f"\n{name}: {peak:.0f} MiB resident at most, {now:.0f} MiB then at the end")
        return self.rows.times


def timed_sync(home):
    begun = time.perf_counter()
    subprocess.run(["sync", "--file-system", home], check=True)
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vellum", default=os.path.join(ROOT, "target", "release", "vellum"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("1.6", "2"), help="one containerd instead of both")
    parser.add_argument("--disk", default="/var/tmp", metavar="DIR", help="directory for the file systems (default: /var/tmp; /dev/shm avoids the disk)")
    parser.add_argument("--json", help="write all times to this file")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all, if none is named")
    args = parser.parse_args()
    rows = args.rows or list(ROWS)
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        raise SystemExit("containerd.py: needs root")
    everything = {}
    for version, forky in (("2", True), ("1.6", False)):
        if args.only not in (None, version):
            continue
        # The old version only shows that it gets no slower.
        some = rows if forky else [row for row in rows if row in ("import", "start")]
        try:
            everything[version] = Bench(args, forky).run(some)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{error}\n{(error.stderr or b'').decode(errors='replace')}") from None
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
