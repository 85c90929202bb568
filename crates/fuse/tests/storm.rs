//! High load: eight processes that compete for the same names and bytes, and directories with very
//! many names.

mod support;

use std::fs;
use std::process::Command;

use support::*;
use vellum_testkit::Rng;

/// One of the processes. Prints what it won.
const STORM: &str = r#"
import fcntl, os, random, struct, sys
root, me, seed, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed * 8 + me)
os.chdir(root)
won = {"counted": 0, "files": 0, "dirs": 0, "removed": 0}
slots = os.open("slots", os.O_RDWR)
for round in range(rounds):
    # A counter in a lower file, under a lock.
    with open("counter", "r+b", buffering=0) as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        value = int(counter.read())
        counter.seek(0)
        counter.write(b"%d" % (value + 1))
        won["counted"] += 1
    # Names that only one can make.
    n = rng.randrange(rounds)
    try:
        os.close(os.open(f"new/{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        won["files"] += 1
    except FileExistsError: pass
    try:
        os.mkdir(f"dirs/{n}")
        won["dirs"] += 1
    except FileExistsError: pass
    # Tokens that wander; a process that comes too late finds nothing.
    token, to = rng.randrange(40), rng.randrange(4)
    try: os.rename(f"tokens/{rng.randrange(4)}/{token}", f"tokens/{to}/{token}")
    except FileNotFoundError: pass
    # Lower files that only one can remove.
    try:
        os.unlink(f"doomed/{rng.randrange(rounds)}")
        won["removed"] += 1
    except FileNotFoundError: pass
    # Each process's own numbers in one file that is copied block by block.
    at = (rng.randrange(4096) * 8 + me) * 8
    os.pwrite(slots, struct.pack("<Q", me * 1000003 + round + 1), at)
    assert struct.unpack("<Q", os.pread(slots, 8, at))[0] == me * 1000003 + round + 1
    # A file is replaced whole: readers see one version.
    with open(f"whole-{me}", "w") as new: new.write(str(me) * 1000)
    os.rename(f"whole-{me}", "whole")
    text = open("whole").read()
    assert len(text) == 1000 and len(set(text)) == 1, text[:20]
    # Names come and go while others list them.
    for dir in ("new", "tokens/0", "doomed"): os.listdir(dir)
    link = f"links/{me}-{round}"
    os.link("linked", link)
    if rng.randrange(2): os.unlink(link)
    else: won["links"] = won.get("links", 0) + 1
print(repr(won))
"#;

/// What must be true afterwards.
const AFTER: &str = r#"
import ast, os, struct, sys
root, rounds = sys.argv[1], int(sys.argv[2])
won = [ast.literal_eval(text) for text in sys.argv[3:]]
os.chdir(root)
total = lambda what: sum(one.get(what, 0) for one in won)
assert int(open("counter").read()) == total("counted") == 8 * rounds, "an increment was lost"
assert len(os.listdir("new")) == total("files")
assert len(os.listdir("dirs")) == total("dirs")
assert rounds - len(os.listdir("doomed")) == total("removed")
tokens = sorted(int(name) for dir in range(4) for name in os.listdir(f"tokens/{dir}"))
assert tokens == list(range(40)), tokens
assert all(open(f"tokens/{dir}/{name}").read() == f"token {name}" for dir in range(4) for name in os.listdir(f"tokens/{dir}"))
assert len(os.listdir("links")) == total("links") == os.stat("linked").st_nlink - 1
data = open("slots", "rb").read()
assert len(data) == 4096 * 64
for at in range(0, len(data), 8):
    me, value = at // 8 % 8, struct.unpack_from("<Q", data, at)[0]
    assert value == 0xffffffffffffffff or me * 1000003 < value <= me * 1000003 + rounds, (at, value)
"#;

#[test]
fn eight_processes_lose_nothing() {
    let name = "eight_processes_lose_nothing";
    everywhere(name, |world| {
        let seed = Rng::for_test(name).next() % 1_000_000_007;
        let slow = std::env::var_os("VELLUM_SLOW").is_some();
        let rounds: u32 = if slow { 2000 } else { 60 };
        world.put("counter", "0");
        world.put("slots", vec![0xff; 4096 * 64]);
        world.put("linked", "linked");
        for dir in [
            "new", "dirs", "links", "tokens/0", "tokens/1", "tokens/2", "tokens/3",
        ] {
            fs::create_dir_all(world.lower(dir)).unwrap();
        }
        for token in 0..40 {
            world.put(
                &format!("tokens/{}/{token}", token % 4),
                format!("token {token}"),
            );
        }
        for doomed in 0..rounds {
            world.put(&format!("doomed/{doomed}"), "");
        }
        world.option("blocks=65536");
        world.mount();
        let storm = |me: u32| {
            let mut command = Command::new("python3");
            command.args(["-c", STORM]).arg(world.at(""));
            command.args([me.to_string(), seed.to_string(), rounds.to_string()]);
            command
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let storms: Vec<_> = (0..8).map(storm).collect();
        let won: Vec<_> = storms
            .into_iter()
            .map(|storm| {
                let output = storm.wait_with_output().unwrap();
                assert!(output.status.success(), "seed {seed}: {output:?}");
                String::from_utf8(output.stdout).unwrap()
            })
            .collect();
        for _ in 0..2 {
            let ran = Command::new("python3")
                .args(["-c", AFTER])
                .arg(world.at(""))
                .arg(rounds.to_string())
                .args(&won)
                .status();
            assert!(ran.unwrap().success(), "seed {seed}");
            world.remount();
        }
    });
}

/// Reads a directory through the C library, seeks back, and removes names meanwhile.
const LIST: &str = r#"
import ctypes, os, sys
path, count = sys.argv[1].encode(), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16), ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
for call in (libc.readdir, libc.telldir, libc.rewinddir, libc.closedir): call.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
def read(dir):
    entry = libc.readdir(dir)
    return entry.contents.name if entry else None
dir = libc.opendir(path)
names, places = [], {}
while True:
    place = libc.telldir(dir)
    name = read(dir)
    if name is None: break
    if name in (b".", b".."): continue
    if len(names) % (count // 200) == 0: places[len(names)] = place
    names.append(name)
assert len(names) == len(set(names)) == count, (len(names), count)
# Back to each place, in another order: the same names follow.
for at in sorted(places, key=lambda at: at * 7919 % count):
    libc.seekdir(dir, places[at])
    for name in names[at:at + 5]: assert read(dir) == name, at
# Another reader removes some; the places stay, and what is left comes once.
gone = set(names[::max(3, count // 20000)])
for name in gone: os.unlink(os.path.join(path, name))
for at in places:
    libc.seekdir(dir, places[at])
    left = [name for name in names[at:at + 30] if name not in gone]
    got = [read(dir) for _ in left]
    # What the kernel has in its cache may still be told; what is there may not be missing.
    assert set(got) <= set(names) and (not left or got[0] in names[at:at + 30]), at
libc.closedir(dir)
dir = libc.opendir(path)
again = []
while (name := read(dir)) is not None: again.append(name)
assert sorted(again) == sorted(set(names) - gone | {b".", b".."}), len(again)
"#;

#[test]
fn large_directories_have_stable_offsets() {
    everywhere("large_directories_have_stable_offsets", |world| {
        let slow = std::env::var_os("VELLUM_SLOW").is_some();
        let count = if slow { 1_000_000 } else { 8_000 };
        let dir = world.lower("many");
        fs::create_dir(&dir).unwrap();
        let dir = fs::File::open(dir).unwrap();
        for name in 0..count {
            let kind = rustix::fs::FileType::RegularFile;
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(&dir, format!("name-{name}"), kind, mode, 0).unwrap();
        }
        world.mount();
        let ran = Command::new("python3")
            .args(["-c", LIST])
            .arg(world.at("many"))
            .arg(count.to_string())
            .status();
        assert!(ran.unwrap().success());
    });
}
