"""The inputs of the benchmark: archives, each created once and kept in .cache/bench.

Every archive is a docker-archive with plain layers, so that no tool spends time on
decompression; the manifest comes first in the small ones and last in the big one, as `docker
save` does.
"""

import hashlib
import io
import json
import os
import subprocess
import tarfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.path.join(ROOT, ".cache", "bench")


def debian_image():
    """The demo image: ten layers, about 600 MB, from Debian packages."""
    script = os.path.join(ROOT, "scripts", "demo-image.py")
    made = subprocess.run([script, "--profile", "full"], stdout=subprocess.PIPE, check=True)
    return made.stdout.decode().strip(), "vellum-demo-full:latest"


def config_of(diff_ids):
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": "2024-01-01T00:00:00Z"} for _ in diff_ids],
        }
    ).encode()


def archive(path, tag, layers):
    """Writes a docker-archive of layer tars (bytes), under its name only when complete."""
    ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    config = config_of(ids)
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": [i[7:] + "/layer.tar" for i in ids]}]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tarfile.open(path + ".tmp", "w", format=tarfile.USTAR_FORMAT) as out:
        for file, data in [("manifest.json", json.dumps(manifest).encode()), (name, config)]:
            add(out, file, data)
        for identity, layer in zip(ids, layers):
            add(out, identity[7:] + "/layer.tar", layer)
    os.rename(path + ".tmp", path)


def add(out, name, data):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    out.addfile(info, io.BytesIO(data))


def thin_layers(count):
    """An image of `count` layers with one directory and one file each."""
    tag = f"bench-layers-{count}:latest"
    path = os.path.join(CACHE, f"layers-{count}.tar")
    if not os.path.exists(path):
        layers = []
        for number in range(count):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as out:
                info = tarfile.TarInfo(f"layer-{number:03}")
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                out.addfile(info)
                add(out, f"layer-{number:03}/file", f"layer {number}\n".encode())
            layers.append(buffer.getvalue())
        archive(path, tag, layers)
    return path, tag


def many_files(count):
    """An image of one layer with `count` empty files, a thousand in a directory."""
    tag = f"bench-files-{count}:latest"
    path = os.path.join(CACHE, f"files-{count}.tar")
    if not os.path.exists(path):
        os.makedirs(CACHE, exist_ok=True)
        blank = tarfile.TarInfo("x")
        blank.mode = 0o644
        layer = path + ".layer"
        digest = hashlib.sha256()
        with open(layer, "wb") as out:

            def put(data):
                digest.update(data)
                out.write(data)

            for directory in range((count + 999) // 1000):
                info = tarfile.TarInfo(f"tree/{directory // 100:02}/{directory:05}")
                if directory % 100 == 0:
                    above = tarfile.TarInfo(f"tree/{directory // 100:02}")
                    above.type, above.mode = tarfile.DIRTYPE, 0o755
                    put(above.tobuf(tarfile.USTAR_FORMAT))
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                put(info.tobuf(tarfile.USTAR_FORMAT))
                for file in range(min(1000, count - directory * 1000)):
                    blank.name = f"{info.name}/file-{file:03}"
                    put(blank.tobuf(tarfile.USTAR_FORMAT))
            put(b"\0" * 1024)
        one_big_layer(path, tag, layer, digest.hexdigest())
        os.unlink(layer)
    return path, tag


def huge_layer(gib):
    """An image of one layer with one file of `gib` GiB. The archive is sparse, so it needs
    no disk space here; reading it yields zeros, and the tools write them."""
    tag = f"bench-huge-{gib}:latest"
    path = os.path.join(CACHE, f"huge-{gib}.tar")
    if not os.path.exists(path):
        os.makedirs(CACHE, exist_ok=True)
        info = tarfile.TarInfo("huge.bin")
        info.size, info.mode = gib << 30, 0o644
        head = info.tobuf(tarfile.GNU_FORMAT)
        digest = hashlib.sha256(head)
        block = b"\0" * (1 << 20)
        for _ in range(gib << 10):
            digest.update(block)
        digest.update(b"\0" * 1024)
        layer = path + ".layer"
        with open(layer, "wb") as out:
            out.write(head)
            out.truncate(len(head) + info.size + 1024)
        one_big_layer(path, tag, layer, digest.hexdigest())
        os.unlink(layer)
    return path, tag


def one_big_layer(path, tag, layer, hex_digest):
    """A docker-archive with one layer tar that is too big for memory; holes stay holes."""
    config = config_of(["sha256:" + hex_digest])
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = [{"Config": name, "RepoTags": [tag], "Layers": [hex_digest + "/layer.tar"]}]
    size = os.path.getsize(layer)
    with open(path + ".tmp", "wb") as out:
        for file, data in [(name, config), ("manifest.json", json.dumps(manifest).encode())]:
            info = tarfile.TarInfo(file)
            info.size, info.mode = len(data), 0o644
            out.write(info.tobuf(tarfile.GNU_FORMAT))
            out.write(data + b"\0" * (-len(data) % 512))
        info = tarfile.TarInfo(hex_digest + "/layer.tar")
        info.size, info.mode = size, 0o644
        out.write(info.tobuf(tarfile.GNU_FORMAT))
        start = out.tell()
        with open(layer, "rb") as data:
            position = 0
            while position < size:
                try:
                    position = os.lseek(data.fileno(), position, os.SEEK_DATA)
                except OSError:  # only a hole is left
                    break
                end = os.lseek(data.fileno(), position, os.SEEK_HOLE)
                out.flush()
                while position < end:
                    length = min(end - position, 1 << 26)
                    position += os.copy_file_range(data.fileno(), out.fileno(), length, position, start + position)
        out.truncate(start + size + (-size % 512) + 1024)
    os.rename(path + ".tmp", path)


def change_a_thousand(tree):
    """Changes a thousand files below `tree`: 500 appended to, 300 new, 200 removed."""
    files = []
    for directory, _, names in sorted(os.walk(os.path.join(tree, "usr"))):
        for name in sorted(names):
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 65536:
                files.append(path)
    step = len(files) // 700
    chosen = files[:: max(step, 1)][:700]
    for path in chosen[:500]:
        with open(path, "ab") as file:
            file.write(b"\nchanged\n")
    for path in chosen[500:]:
        os.unlink(path)
    made = os.path.join(tree, "srv", "new")
    os.makedirs(made)
    for number in range(300):
        with open(os.path.join(made, f"file-{number}"), "wb") as file:
            file.write(f"new {number}\n".encode() * 50)


def change_ten(tree):
    """Ten changes in the tree of `many_files`."""
    for number in range(5):
        with open(os.path.join(tree, "tree", "00", f"{number:05}", "file-000"), "wb") as file:
            file.write(b"changed\n")
    for number in range(3):
        with open(os.path.join(tree, "tree", "01", "00100", f"new-{number}"), "wb") as file:
            file.write(b"new\n")
    for number in range(2):
        os.unlink(os.path.join(tree, "tree", "00", "00010", f"file-00{number}"))


def many_and_large(directory):
    """Creates `many`, 2,000 files of 4 KiB in 20 directories, and `large`, 256 MiB, below `directory`."""
    for number in range(2000):
        part = os.path.join(directory, "many", f"{number // 100:02}")
        os.makedirs(part, exist_ok=True)
        with open(os.path.join(part, f"file-{number:04}"), "wb") as file:
            file.write(os.urandom(4096))
    with open(os.path.join(directory, "large"), "wb") as file:
        for _ in range(256):
            file.write(os.urandom(1 << 20))
