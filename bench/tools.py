"""The contenders, each with its own store below one directory on one file system.

Every tool implements the same few verbs (load, remove_image, create_mounted, unmount_remove,
changed, diff, commit, pull, push, create, copy); a verb that a tool lacks returns None, and its cell in the
table says so. Times are wall clock of the whole command, as a user at the prompt has them.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import json


class Refused(Exception):
    """The tool can't do this; the text is the tool's own."""


class Timed:
    """The cost of one command: seconds, and the largest resident set of it and its children."""

    def __init__(self, seconds, peak_kib, output):
        self.seconds, self.peak_kib, self.output = seconds, peak_kib, output


def execute(argv, cwd=None):
    """Runs a command to its end. Raises Refused with the end of its stderr if it fails."""
    with open(os.path.join(os.environ["BENCH_HOME"], "stderr"), "w+b") as errors:
        read, write = os.pipe()
        start = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=write, stderr=errors, cwd=cwd)
        os.close(write)
        output = b""
        while chunk := os.read(read, 1 << 16):
            output += chunk
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        os.close(read)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            raise Refused(text.splitlines()[-1] if text else f"status {process.returncode}")
    return Timed(seconds, usage.ru_maxrss, output.decode(errors="replace").strip())


def unmount_below(directory):
    """Unmounts what is mounted below `directory`, last mounted first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = [line.split()[4] for line in file]
    for point in reversed([p for p in points if (p + "/").startswith(directory + "/")]):
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False)


@contextlib.contextmanager
def registry(disk):
    """Starts an empty registry on the loopback that keeps its data below `disk`. Yields its host."""
    home = tempfile.mkdtemp(prefix="bcr", dir=disk)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = f"{home}/registry.yml"
    with open(config, "w", encoding="utf-8") as file:
        file.write(
            f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {home}/registry\n"
            f"http:\n  addr: 127.0.0.1:{port}\n"
        )
    process = subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(home)


class Tool:
    """Common to all: a home directory, and cells that say `-` unless overridden."""

    name = "?"
    needs = ()

    def __init__(self, home):
        self.home = os.path.join(home, self.name.split()[0])
        os.makedirs(self.home, exist_ok=True)

    @classmethod
    def missing(cls):
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return [program for program in cls.needs if not shutil.which(program, path=path)]

    def close(self):
        unmount_below(self.home)
        shutil.rmtree(self.home, ignore_errors=True)

    def load(self, archive, tag):
        return None

    def remove_image(self, tag):
        return None

    def create_mounted(self, tag):
        """Creates a container of `tag` and mounts its tree. Returns (Timed, key)."""
        return None

    def unmount_remove(self, key):
        return None

    def changed(self, tag, change):
        """Creates a container of `tag` and runs `change(tree)` in it (untimed). Returns its key."""
        return None

    def diff(self, key):
        return None

    def commit(self, key, tag):
        return None

    def pull(self, image):
        """Pulls `image` from a registry without TLS; the image keeps that name."""
        return None

    def push(self, tag, image):
        """Pushes `tag` to a registry without TLS, as `image`."""
        return None

    def create(self, tag):
        """Creates a container of `tag` without starting it (untimed). Returns its key."""
        return None

    def copy(self, source, target):
        """Copies as `docker cp` does: one of the two is `KEY:PATH`."""
        return None

    def remove(self, key):
        """Removes a container that `create` made."""
        return self.run("rm", "--force", key)


class Vellum(Tool):
    name = "vellum"

    def __init__(self, home, program):
        super().__init__(home)
        self.program = program
        self.count = 0

    def run(self, *arguments):
        return execute(
            [self.program, "--root", f"{self.home}/root", "--run-dir", f"{self.home}/run", "--quiet", *arguments]
        )

    def close(self):
        try:
            self.run("umount", "--all")
        except Refused:
            pass
        super().close()

    def load(self, archive, tag):
        return self.run("load", archive)

    def remove_image(self, tag):
        return self.run("rmi", tag)

    def create_mounted(self, tag):
        self.count += 1
        key = f"bench-{self.count}"
        return self.run("create", "--mount", "--name", key, tag), key

    def unmount_remove(self, key):
        return self.run("rm", "--force", key)

    def changed(self, tag, change):
        timed, key = self.create_mounted(tag)
        change(timed.output)
        return key

    def diff(self, key):
        return self.run("diff", key)

    def commit(self, key, tag):
        return self.run("commit", key, tag)

    def pull(self, image):
        return self.run("pull", image)

    def push(self, tag, image):
        return self.run("push", tag, image)

    def create(self, tag):
        self.count += 1
        key = f"bench-{self.count}"
        self.run("create", "--name", key, tag)
        return key

    def copy(self, source, target):
        return self.run("cp", source, target)


class Podman(Tool):
    name = "podman"
    needs = ("podman", "runc")

    def __init__(self, home):
        super().__init__(home)
        self.policy = os.path.join(home, "policy.json")
        with open(self.policy, "w", encoding="ascii") as file:
            file.write('{"default":[{"type":"insecureAcceptAnything"}]}')

    def run(self, *arguments):
        return execute(
            ["podman", "--root", f"{self.home}/root", "--runroot", f"{self.home}/run", "--tmpdir", f"{self.home}/tmp"]
            + ["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]
            + ["--runtime", "runc", *arguments]
        )

    def load(self, archive, tag):
        return self.run("load", "--quiet", "--signature-policy", self.policy, "--input", archive)

    def remove_image(self, tag):
        return self.run("rmi", "--force", tag if "/" in tag else "localhost/" + tag)

    def create_mounted(self, tag):
        first = self.run("create", "--network", "none", "localhost/" + tag)
        key = first.output.splitlines()[-1]
        second = self.run("mount", key)
        return Timed(first.seconds + second.seconds, 0, second.output), key

    def unmount_remove(self, key):
        first = self.run("umount", key)
        second = self.run("rm", "--force", key)
        return Timed(first.seconds + second.seconds, 0, "")

    def changed(self, tag, change):
        timed, key = self.create_mounted(tag)
        change(timed.output)
        return key

    def diff(self, key):
        return self.run("diff", key)

    def commit(self, key, tag):
        return self.run("commit", "--quiet", key, "localhost/" + tag)

    def pull(self, image):
        return self.run("pull", "--quiet", "--tls-verify=false", "--signature-policy", self.policy, image)

    def push(self, tag, image):
        command = ("push", "--quiet", "--tls-verify=false", "--signature-policy", self.policy)
        return self.run(*command, "localhost/" + tag, "docker://" + image)

    def create(self, tag):
        return self.run("create", "--network", "none", "localhost/" + tag).output.splitlines()[-1]

    def copy(self, source, target):
        return self.run("cp", source, target)


class Dockerd(Tool):
    name = "dockerd"
    needs = ("dockerd", "docker")

    def __init__(self, home):
        super().__init__(home)
        config = f"{self.home}/daemon.json"
        with open(config, "w", encoding="ascii") as file:
            file.write("{}")
        self.socket = f"unix://{self.home}/sock"
        self.log = open(f"{self.home}/log", "wb")
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        self.daemon = subprocess.Popen(
            [shutil.which("dockerd", path=path), "--data-root", f"{self.home}/data"]
            + ["--exec-root", f"{self.home}/exec", "--pidfile", f"{self.home}/pid", "--host", self.socket]
            + ["--config-file", config, "--storage-driver", "overlay2", "--iptables=false", "--ip6tables=false"]
            + ["--bridge=none", "--ip-forward=false", "--ip-masq=false"],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        for _ in range(300):
            try:
                self.run("version")
                return
            except Refused:
                time.sleep(0.1)
        self.close()
        raise SystemExit("bench: dockerd did not come up")

    def run(self, *arguments):
        return execute(["docker", "--host", self.socket, *arguments])

    def close(self):
        self.daemon.send_signal(signal.SIGTERM)
        try:
            self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        self.log.close()
        super().close()

    def peak_kib(self):
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

    def load(self, archive, tag):
        with open(f"/proc/{self.daemon.pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        timed = self.run("load", "--quiet", "--input", archive)
        timed.peak_kib = max(timed.peak_kib, self.peak_kib())
        return timed

    def remove_image(self, tag):
        return self.run("rmi", "--force", tag)

    def create_mounted(self, tag):
        """`docker create` alone: dockerd mounts (and unmounts) once for its init layer, and
        leaves the mount itself to `start`, which also runs a process."""
        timed = self.run("create", "--network", "none", tag)
        return timed, timed.output

    def unmount_remove(self, key):
        return self.run("rm", "--force", key)

    def changed(self, tag, change):
        _, key = self.create_mounted(tag)
        data = json.loads(self.run("inspect", "--format", "{{json .GraphDriver.Data}}", key).output)
        # Where dockerd itself would mount it, with dockerd's own directories.
        tree = f"{self.home}/tree"
        os.makedirs(tree, exist_ok=True)
        options = f"lowerdir={data['LowerDir']},upperdir={data['UpperDir']},workdir={data['WorkDir']}"
        options += ",redirect_dir=off,metacopy=off,index=off"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tree], check=True)
        try:
            change(tree)
        finally:
            subprocess.run(["umount", tree], check=True)
        return key

    def diff(self, key):
        return self.run("diff", key)

    def commit(self, key, tag):
        return self.run("commit", key, tag)

    def pull(self, image):
        return self.run("pull", "--quiet", image)

    def push(self, tag, image):
        self.run("tag", tag, image)
        timed = self.run("push", image)
        self.run("rmi", image)
        return timed

    def create(self, tag):
        return self.create_mounted(tag)[1]

    def copy(self, source, target):
        return self.run("cp", source, target)


class Skopeo(Tool):
    name = "skopeo"
    needs = ("skopeo",)

    def __init__(self, home):
        super().__init__(home)
        self.policy = os.path.join(home, "policy.json")
        with open(self.policy, "w", encoding="ascii") as file:
            file.write('{"default":[{"type":"insecureAcceptAnything"}]}')

    def store(self, tag):
        return f"containers-storage:[overlay@{self.home}/root+{self.home}/run]{tag}"

    def run(self, *arguments):
        return execute(["skopeo", "--policy", self.policy, *arguments])

    def load(self, archive, tag):
        return self.run("copy", "--quiet", f"docker-archive:{archive}", self.store(tag))

    def remove_image(self, tag):
        return self.run("delete", self.store(tag))

    def pull(self, image):
        return self.run("copy", "--quiet", "--src-tls-verify=false", "docker://" + image, self.store(image))

    def push(self, tag, image):
        return self.run("copy", "--quiet", "--dest-tls-verify=false", self.store(tag), "docker://" + image)


class Umoci(Tool):
    """`umoci unpack` of an OCI layout with gzip layers, which skopeo wrote beforehand (untimed):
    umoci reads nothing else."""

    name = "umoci"
    needs = ("umoci", "skopeo")

    def __init__(self, home):
        super().__init__(home)
        self.skopeo = Skopeo(home)
        self.layouts = {}

    def load(self, archive, tag):
        name = tag.split(":")[0]
        if archive not in self.layouts:
            self.layouts[archive] = f"{self.home}/{name}-layout"
            self.skopeo.run("copy", "--quiet", f"docker-archive:{archive}", f"oci:{self.layouts[archive]}:latest")
            os.sync()
        return execute(["umoci", "unpack", "--image", f"{self.layouts[archive]}:latest", f"{self.home}/{name}"])

    def remove_image(self, tag):
        return execute(["rm", "-rf", f"{self.home}/{tag.split(':')[0]}"])


class Tar(Tool):
    """Plain tar: each layer into its own directory, one after the other, with nothing hashed, recorded or
    synced. A lower bound, not a competitor."""

    name = "tar"
    needs = ("tar",)

    def load(self, archive, tag):
        name = tag.split(":")[0]
        with tarfile.open(archive) as outer:
            layers = json.load(outer.extractfile("manifest.json"))[0]["Layers"]
        lines = []
        for number, layer in enumerate(layers):
            target = f"{self.home}/{name}/{number}"
            lines.append(f"mkdir -p '{target}' && tar -xOf '{archive}' --occurrence=1 '{layer}' | tar -x -C '{target}' --xattrs --xattrs-include='*' -p")
        return execute(["sh", "-ec", "\n".join(lines)])

    def remove_image(self, tag):
        return execute(["rm", "-rf", f"{self.home}/{tag.split(':')[0]}"])
