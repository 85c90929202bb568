#!/usr/bin/env python3
"""Builds a real image of ten layers from Debian packages, as a docker-archive.

    scripts/demo-image.py [--profile full|small] [--large-mib N] [--fresh] [OUTPUT]

No privilege and no container tool is needed: packages are fetched by apt into
.cache/debs, and their files are written straight into layer tars. The same packages give
the same bytes. Prints the path of the archive (.cache/images/... unless OUTPUT is given).

full   a Debian system with git, perl, python3 and gcc, about 500 MB; then layers with
       everything that layered file systems get wrong: a large file, hard links, devices,
       capabilities, ACLs, unusual names and owners, whiteouts, opaque directories, files that
       become directories and vice versa
small  the same unusual layers over the static busybox of this machine: needs no network

Packages' install scripts are not run; what an image can't do without (users, /bin/sh,
dpkg's database) is written here.
"""

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.path.join(ROOT, ".cache")
EPOCH = 1704067200  # 2024-01-01, the time of every file that is made here
MERGED = ("bin", "sbin", "lib", "lib64")  # top directories that are links into usr


def say(text):
    print(f"demo-image: {text}", file=sys.stderr)


# ---- one layer ---------------------------------------------------------------


class Entry:
    """One tar entry: a type, its attributes, and its data if it is a file."""

    def __init__(self, kind, mode=0o644, uid=0, gid=0, mtime=EPOCH, data=b"", link="", device=(0, 0), xattrs=None, mtime_ns=0):
        self.kind, self.mode, self.uid, self.gid = kind, mode, uid, gid
        self.mtime, self.mtime_ns = int(mtime), mtime_ns
        self.data, self.link, self.device = data, link, device
        self.xattrs = xattrs or {}


def pax_payload(records):
    out = b""
    for key, value in records:
        body = b" " + key.encode() + b"=" + value + b"\n"
        size = len(body) + 1
        while len(str(size)) + len(body) != size:
            size = len(str(size)) + len(body)
        out += str(size).encode() + body
    return out


def padded(data):
    return data + b"\0" * (-len(data) % 512)


def write_entry(out, name, entry):
    """Writes `entry` as ustar, with a PAX header for what ustar can't store."""
    raw = os.fsencode(name)
    info = tarfile.TarInfo()
    info.type, info.mode, info.mtime = entry.kind, entry.mode, entry.mtime
    info.devmajor, info.devminor = entry.device
    pax = []
    path = raw + b"/" if entry.kind == tarfile.DIRTYPE else raw
    if len(path) > 100:
        pax.append(("path", path))
    if len(os.fsencode(entry.link)) > 100:
        pax.append(("linkpath", os.fsencode(entry.link)))
    for key, number in (("uid", entry.uid), ("gid", entry.gid)):
        if number > 0o7777777:
            pax.append((key, str(number).encode()))
        else:
            setattr(info, key, number)
    if entry.mtime_ns:
        pax.append(("mtime", f"{entry.mtime}.{entry.mtime_ns:09d}".encode()))
    for key in sorted(entry.xattrs):
        pax.append(("SCHILY.xattr." + key, entry.xattrs[key]))
    info.name = os.fsdecode(path[:100])
    info.linkname = os.fsdecode(os.fsencode(entry.link)[:100])
    info.size = len(entry.data)
    if pax:
        payload = pax_payload(pax)
        head = tarfile.TarInfo("PaxHeaders/" + hashlib.sha1(raw).hexdigest()[:12])
        head.type, head.size = tarfile.XHDTYPE, len(payload)
        out.write(head.tobuf(tarfile.USTAR_FORMAT))
        out.write(padded(payload))
    header = info.get_info()
    header["type"] = info.type
    # Names were cut above to what ustar can hold, so this can't overflow.
    out.write(info._create_header(header, tarfile.USTAR_FORMAT, "utf-8", "surrogateescape"))
    if entry.data:
        out.write(entry.data)
        out.write(b"\0" * (-len(entry.data) % 512))


class Image:
    """The tree so far, and the layer being built on top of it."""

    def __init__(self):
        self.tree = {}  # path -> Entry, what all layers together show
        self.layers = []  # (comment, {path: Entry})
        self.now = {}

    def layer(self, comment):
        self.now = {}
        self.layers.append((comment, self.now))

    def parents(self, path):
        """Directories above `path` are listed in each layer that changes below them, as a diff does."""
        parts = path.split("/")[:-1]
        for i in range(1, len(parts) + 1):
            above = "/".join(parts[:i])
            if above not in self.now:
                entry = self.tree.get(above) or Entry(tarfile.DIRTYPE, 0o755)
                if entry.kind == tarfile.DIRTYPE:
                    self.tree[above] = self.now[above] = entry

    def add(self, path, entry):
        self.parents(path)
        self.now[path] = self.tree[path] = entry

    def file(self, path, data, mode=0o644, **more):
        self.add(path, Entry(tarfile.REGTYPE, mode, data=data if isinstance(data, bytes) else data.encode(), **more))

    def dir(self, path, mode=0o755, **more):
        self.add(path, Entry(tarfile.DIRTYPE, mode, **more))

    def symlink(self, path, target):
        self.add(path, Entry(tarfile.SYMTYPE, 0o777, link=target))

    def link(self, path, target):
        """A hard link. A target of a lower layer is listed again first, as a diff does."""
        if target not in self.now:
            self.add(target, self.tree[target])
        # A link's entry has the same attributes as the inode's first entry: some tools use the last
        # one.
        same = self.tree[target]
        attributes = dict(uid=same.uid, gid=same.gid, mtime=same.mtime, mtime_ns=same.mtime_ns)
        self.add(path, Entry(tarfile.LNKTYPE, same.mode, link=target, **attributes))

    def forget(self, path):
        for known in [p for p in self.tree if p == path or p.startswith(path + "/")]:
            del self.tree[known]

    def whiteout(self, path):
        self.parents(path)
        self.forget(path)
        above, _, name = path.rpartition("/")
        self.now[(above + "/" if above else "") + ".wh." + name] = Entry(tarfile.REGTYPE, 0o600)

    def opaque(self, path, mode=0o755):
        self.parents(path)
        self.forget(path)
        self.now[path] = self.tree[path] = Entry(tarfile.DIRTYPE, mode)
        self.now[path + "/.wh..wh..opq"] = Entry(tarfile.REGTYPE, 0o600)


# ---- packages ----------------------------------------------------------------


class Apt:
    """apt with its own empty system: it resolves and fetches, but installs nothing."""

    def __init__(self):
        self.debs = os.path.join(CACHE, "debs")
        self.state = os.path.join(CACHE, "apt")
        os.makedirs(os.path.join(self.debs, "partial"), exist_ok=True)
        os.makedirs(os.path.join(self.state, "lists", "partial"), exist_ok=True)
        open(os.path.join(self.state, "status"), "w").close()
        self.private_lists = False
        if not self.available():
            say("this machine has no package lists: fetching them into .cache")
            self.private_lists = True
            self.run("apt-get", "update", "-qq")

    def options(self):
        options = {
            "Dir::State::status": os.path.join(self.state, "status"),
            "Dir::Cache::archives": self.debs,
            "Dir::Cache::pkgcache": os.path.join(self.state, "pkgcache.bin"),
            "Dir::Cache::srcpkgcache": "",
            "Debug::NoLocking": "1",
            "APT::Install-Recommends": "0",
            "APT::Sandbox::User": "",
            "APT::Get::AllowUnauthenticated": "0",
        }
        if self.private_lists:
            options["Dir::State::lists"] = os.path.join(self.state, "lists")
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def run(self, tool, *arguments):
        done = subprocess.run([tool, *self.options(), *arguments], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"demo-image: {tool} {' '.join(arguments)} failed; is the Debian mirror in reach?")
        return done.stdout.decode()

    def available(self):
        done = subprocess.run(["apt-cache", *self.options(), "show", "bash"], capture_output=True, check=False)
        return done.returncode == 0

    def base_names(self):
        """Essential and required packages, and apt: debootstrap calls this minbase."""
        names = {"apt"}
        for block in self.run("apt-cache", "dumpavail").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " ")
            if fields.get("Essential") == "yes" or fields.get("Priority") == "required":
                names.add(fields["Package"])
        return sorted(names)

    def fetch(self, names, have):
        """The .deb files of `names` and their dependencies, in the order to unpack, without those in `have`."""
        plan = self.run("apt-get", "install", "-y", "-s", *names)
        packages = [line.split()[1].split(":")[0] for line in plan.splitlines() if line.startswith("Inst ")]
        new = [package for package in packages if package not in have]
        uris = self.run("apt-get", "install", "-y", "--print-uris", *names)
        for line in uris.splitlines():
            if line.startswith("'"):  # not in the cache yet
                say(f"fetching {sum(1 for l in uris.splitlines() if l[:1] == chr(39))} packages")
                self.run("apt-get", "install", "-y", "-qq", "--download-only", *names)
                break
        versions = {}
        for line in plan.splitlines():
            if line.startswith("Inst "):
                words = line.split()
                versions[words[1].split(":")[0]] = next(w for w in words if w.startswith("("))[1:]
        files = []
        for package in new:
            version = versions[package].replace(":", "%3a")
            found = [f"{package}_{version}_{a}.deb" for a in ("amd64", "arm64", "all")]
            found = [f for f in found if os.path.exists(os.path.join(self.debs, f))]
            if not found:
                sys.exit(f"demo-image: apt did not leave {package} {version} in {self.debs}")
            files.append((package, os.path.join(self.debs, found[0])))
        return files


def merged_usr(path):
    top = path.split("/", 1)[0]
    return "usr/" + path if top in MERGED and path != "usr" else path


def unpack_deb(image, package, path, status):
    """Puts a package's files into the layer, and its part of dpkg's database."""
    names = ["/."]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|", errors="surrogateescape") as tar:
            for info in tar:
                given = info.name.removeprefix("./").rstrip("/")
                if given in ("", "."):
                    continue
                names.append("/" + given)
                name = merged_usr(given)
                if given in MERGED or (info.isdir() and name in image.tree):
                    continue
                entry = Entry(info.type, info.mode & 0o7777, info.uid, info.gid, info.mtime)
                if info.isreg():
                    entry.kind, entry.data = tarfile.REGTYPE, tar.extractfile(info).read()
                elif info.issym():
                    entry.link = info.linkname
                elif info.islnk():
                    entry.link = merged_usr(info.linkname.removeprefix("./"))
                image.add(name, entry)
    control = subprocess.run(["dpkg-deb", "--ctrl-tarfile", path], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(control)) as tar:
        files = {i.name.removeprefix("./"): tar.extractfile(i).read() for i in tar if i.isreg()}
    text = files.pop("control").decode().rstrip("\n")
    first, rest = text.split("\n", 1)
    status[package] = f"{first}\nStatus: install ok installed\n{rest}\n"
    same = "\nMulti-Arch: same" in text
    arch = next(line.split(": ")[1] for line in text.splitlines() if line.startswith("Architecture: "))
    stem = "var/lib/dpkg/info/" + (f"{package}:{arch}" if same else package)
    image.file(stem + ".list", "\n".join(names).encode("utf-8", "surrogateescape") + b"\n")
    for kind in ("md5sums", "conffiles", "shlibs", "triggers"):
        if kind in files:
            image.file(f"{stem}.{kind}", files[kind])


def debian_layers(image):
    apt = Apt()
    have, status = set(), {}

    def install(comment, names):
        image.layer(comment)
        for package, path in apt.fetch(names, have):
            unpack_deb(image, package, path, status)
            have.add(package)
        image.file("var/lib/dpkg/status", "\n".join(status[p] for p in sorted(status)))

    image.layer("base")
    base = image.now
    for top in MERGED:
        image.symlink(top, "usr/" + top)
        image.dir("usr/" + top)
    names = apt.base_names()
    for package, path in apt.fetch(names, have):
        unpack_deb(image, package, path, status)
        have.add(package)
    image.layers[-1] = ("debian: minbase (%d packages)" % len(have), base)
    image.file("var/lib/dpkg/status", "\n".join(status[p] for p in sorted(status)))
    for name in ("passwd", "group"):
        image.file("etc/" + name, image.tree[f"usr/share/base-passwd/{name}.master"].data)
    image.file("etc/shadow", "root:*:19723:0:99999:7:::\n", 0o640, gid=42)
    image.file("etc/hostname", "vellum-demo\n")
    image.file("etc/hosts", "127.0.0.1 localhost\n")
    for path, target in (("usr/bin/sh", "dash"), ("usr/bin/awk", "mawk"), ("var/run", "/run"), ("var/lock", "/run/lock")):
        if path not in image.tree:
            image.symlink(path, target)
    image.dir("tmp", 0o1777)
    image.dir("root", 0o700)

    install("apt-get install git perl", ["git", "perl"])
    install("apt-get install python3", ["python3"])
    install("apt-get install gcc libc6-dev make", ["gcc", "libc6-dev", "make"])
    image.symlink("usr/bin/cc", "gcc")


def busybox_layers(image):
    """Four small layers over this machine's static busybox."""
    found = next((p for p in ("/usr/bin/busybox", "/bin/busybox") if os.path.exists(p)), None)
    if not found:
        sys.exit("demo-image: no busybox: install busybox-static")
    with open(found, "rb") as file:
        busybox = file.read()
    image.layer("busybox")
    for top in ("dev", "etc", "proc", "root", "run", "sys", "usr", "usr/bin", "var"):
        image.dir(top, 0o700 if top == "root" else 0o755)
    image.dir("tmp", 0o1777)
    image.symlink("bin", "usr/bin")
    image.file("usr/bin/busybox", busybox, 0o755)
    applets = subprocess.run([found, "--list"], stdout=subprocess.PIPE, check=True).stdout.decode().split()
    for applet in applets:
        if applet not in ("busybox", "sh"):
            image.symlink("usr/bin/" + applet, "busybox")
    image.link("usr/bin/sh", "usr/bin/busybox")
    image.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    image.file("etc/group", "root:x:0:\nnogroup:x:65534:\n")
    for number, word in enumerate(("docs", "locale", "libs")):
        image.layer(f"files: {word}")
        for i in range(40):
            image.file(f"usr/share/{('doc', 'locale', 'vellum')[number]}/{word}-{i}/text", f"{word} {i}\n" * (i + 1))


# ---- the unusual layers ------------------------------------------------------------


def odd_layers(image, large_mib):
    image.layer("data: one large file")
    generator = random.Random(7)
    large = b"".join(generator.randbytes(1 << 20) if i % 2 else b"\0" * (1 << 20) for i in range(large_mib))
    image.file("srv/large.bin", large, mtime_ns=123456789)

    image.layer("odd: links, devices, capabilities, attributes, names, owners")
    image.file("odd/links/first", "one inode, four names\n", mtime_ns=1)
    image.link("odd/links/second", "odd/links/first")
    image.link("odd/links/deep/third", "odd/links/first")
    image.link("odd/fourth", "odd/links/first")
    image.symlink("odd/links/dangling", "/no/such/place")
    image.symlink("odd/links/loop", "loop")
    for name, major, minor, mode in (("null", 1, 3, 0o666), ("zero", 1, 5, 0o666), ("tty", 5, 0, 0o620)):
        image.add("odd/dev/" + name, Entry(tarfile.CHRTYPE, mode, gid=5 if name == "tty" else 0, device=(major, minor)))
    image.add("odd/dev/loop0", Entry(tarfile.BLKTYPE, 0o660, gid=6, device=(7, 0)))
    image.add("odd/fifo", Entry(tarfile.FIFOTYPE, 0o600))
    net_raw = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    image.file("odd/capable", "#!/bin/sh\n", 0o755, xattrs={"security.capability": net_raw})
    image.file("odd/setuid", "#!/bin/sh\n", 0o4755)
    image.file("odd/setgid", "#!/bin/sh\n", 0o2755, gid=50)
    image.file("odd/mode-zero", "secret\n", 0o000)
    image.file("odd/empty", b"")
    image.dir("odd/sticky", 0o1777)
    image.dir("odd/empty-directory", 0o700, mtime_ns=999999999)
    image.file("odd/user-attribute", "x", xattrs={"user.note": b"\x00binary\xff"})
    acl = struct.pack("<I", 2)
    for tag, perm, identity in ((1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)):
        acl += struct.pack("<HHI", tag, perm, identity)
    image.file("odd/acl", "x", 0o640, xattrs={"system.posix_acl_access": acl})
    image.file("odd/far-owner", "x", uid=3000000, gid=4000000)
    image.file(os.fsdecode(b"odd/not-utf8-\xff\xe9"), "x")
    image.file("odd/new\nline", "x")
    image.file("odd/ space, comma: colon\\ backslash", "x")
    image.file("odd/" + "n" * 255, "the longest name\n")
    deep = "odd/" + "/".join("d" * 60 for _ in range(6))
    image.file(deep + "/file", "a long path\n")
    image.file("odd/before-1970", "x", mtime=0)
    image.file("odd/replaced/by-directory", "once a file\n")
    image.file("odd/replaced/by-file/inside", "once a directory\n")
    image.file("odd/replaced/by-symlink/inside", "once a directory\n")
    image.file("odd/opaque/hidden/deep", "hidden by the next layer\n")
    image.file("odd/opaque/also-hidden", "hidden by the next layer\n")
    image.file("odd/chmod-only", "the same data under another mode\n" * 1000)

    image.layer("rm -r docs and locales: whiteouts and opaque directories")
    for path in ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info"):
        if path in image.tree:
            image.whiteout(path)
    image.dir("usr/share/doc")
    image.now["usr/share/doc/.wh..wh..opq"] = Entry(tarfile.REGTYPE, 0o600)
    image.now.pop("usr/share/.wh.doc", None)
    image.file("usr/share/doc/README", "Documents were removed to save space.\n")
    image.whiteout("odd/links/second")
    image.whiteout("odd/links/dangling")
    image.opaque("odd/opaque", 0o750)
    image.file("odd/opaque/new", "only this is left\n")

    image.layer("reshape: files become directories and the other way round")
    image.forget("odd/replaced/by-directory")
    image.dir("odd/replaced/by-directory")
    image.file("odd/replaced/by-directory/inside", "now a directory\n")
    image.forget("odd/replaced/by-file")
    image.file("odd/replaced/by-file", "now a file\n")
    image.forget("odd/replaced/by-symlink")
    image.symlink("odd/replaced/by-symlink", "by-file")
    same = image.tree["odd/chmod-only"]
    image.file("odd/chmod-only", same.data, 0o600)

    image.layer("application")
    image.file("app/hello", "#!/bin/sh\necho \"hello from $(cat /app/version), $(ls / | wc -l) entries at the root\"\n", 0o755)
    image.file("app/version", "version 1\n", uid=1000, gid=1000)
    image.file("etc/app.conf", "greeting = hello\n", 0o640, gid=1000)

    image.layer("version 2")
    image.file("app/version", "version 2\n", uid=1000, gid=1000, mtime=EPOCH + 86400)


# ---- the archive ---------------------------------------------------------------


class HashingFile:
    def __init__(self, file):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data):
        self.hash.update(data)
        self.file.write(data)


def write_archive(image, output, tag):
    """Writes the image as `docker save` does; the file gets its name only when it is complete."""
    created = "2024-01-01T00:00:00Z"
    work = output + ".tmp"
    os.makedirs(work, exist_ok=True)
    ids, history, layer_paths = [], [], []
    for number, (comment, entries) in enumerate(image.layers):
        path = os.path.join(work, f"{number}.tar")
        with open(path, "wb") as file:
            out = HashingFile(file)
            for name, entry in entries.items():
                write_entry(out, name, entry)
            out.write(b"\0" * 1024)
        entries.clear()
        ids.append("sha256:" + out.hash.hexdigest())
        history.append({"created": created, "created_by": comment})
        layer_paths.append(path)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "Cmd": ["/app/hello"],
            "WorkingDir": "/",
            "Labels": {"org.opencontainers.image.title": "vellum demo"},
        },
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": history,
    }
    config_bytes = json.dumps(config, separators=(",", ":")).encode()
    config_name = hashlib.sha256(config_bytes).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": [i[7:] + "/layer.tar" for i in ids]}]
    part = os.path.join(work, "archive")
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name, data=None, path=None):
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = 0o644, EPOCH
            if path:
                info.size = os.path.getsize(path)
                with open(path, "rb") as file:
                    tar.addfile(info, file)
            else:
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

        seen = set()
        for identity, path in zip(ids, layer_paths):
            if identity not in seen:
                seen.add(identity)
                add(identity[7:] + "/layer.tar", path=path)
        add(config_name, config_bytes)
        add("manifest.json", json.dumps(manifest).encode())
    os.rename(part, output)
    shutil.rmtree(work)


def main():
    parser = argparse.ArgumentParser(description="Makes an image of ten layers from Debian packages.")
    parser.add_argument("--profile", choices=("full", "small"), default="full")
    parser.add_argument("--large-mib", type=int, help="size of the large file (128, or 4 for small)")
    parser.add_argument("--fresh", action="store_true", help="make it again though it is cached")
    parser.add_argument("output", nargs="?")
    arguments = parser.parse_args()
    large = arguments.large_mib if arguments.large_mib is not None else (128 if arguments.profile == "full" else 4)
    with open(__file__, "rb") as file:
        recipe = hashlib.sha256(file.read()).hexdigest()[:12]
    name = f"{arguments.profile}-{large}-{recipe}.tar"
    output = os.path.abspath(arguments.output or os.path.join(CACHE, "images", name))
    os.makedirs(os.path.dirname(output), exist_ok=True)
    if not os.path.exists(output) or arguments.fresh or arguments.output:
        image = Image()
        (debian_layers if arguments.profile == "full" else busybox_layers)(image)
        odd_layers(image, large)
        write_archive(image, output, f"vellum-demo-{arguments.profile}:latest")
        if not arguments.output:  # those of older recipes
            for old in os.listdir(os.path.dirname(output)):
                if old.startswith(f"{arguments.profile}-{large}-") and old != name:
                    os.unlink(os.path.join(os.path.dirname(output), old))
        say(f"made {os.path.getsize(output) >> 20} MiB in {len(image.layers)} layers")
    print(output)


if __name__ == "__main__":
    main()
