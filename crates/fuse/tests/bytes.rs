//! Random reads, writes, stores through mappings, truncations and holes on one file through several
//! descriptors, compared with memory.

mod support;

use std::fs;
use std::process::Command;

use support::*;
use vellum_testkit::Rng;

const SCRIPT: &str = r#"
import ctypes, mmap, os, random, sys
path, shadow_path, seed, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
shadow = bytearray(open(shadow_path, "rb").read())
LIMIT = 6 << 20
fds = [os.open(path, os.O_RDWR) for _ in range(3)]
reader = os.open(path, os.O_RDONLY)
early = mmap.mmap(reader, 4096, mmap.MAP_SHARED, mmap.PROT_READ)

def span(most=300_000):
    at = rng.randrange(LIMIT)
    return at, min(rng.randrange(1, most), LIMIT - at)

def write(at, data):
    if len(shadow) < at: shadow.extend(bytes(at - len(shadow)))
    shadow[at:at + len(data)] = data

def punch(fd, at, length):
    done = libc.fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(length))
    assert done == 0, os.strerror(ctypes.get_errno())
    end = min(at + length, len(shadow))
    if at < end: shadow[at:end] = bytes(end - at)

for step in range(steps):
    fd = rng.choice(fds)
    what = rng.randrange(10)
    at, length = span()
    if what <= 2:
        data = rng.randbytes(length)
        assert os.pwrite(fd, data, at) == length
        write(at, data)
    elif what <= 5:
        got = os.pread(rng.choice(fds + [reader]), length, at)
        assert got == bytes(shadow[at:at + length]), ("read", step, at, length)
    elif what == 6 and len(shadow) > 8192:
        m = mmap.mmap(fd, len(shadow))
        at = rng.randrange(len(shadow) - 4096)
        data = rng.randbytes(rng.randrange(1, 4096))
        assert m[at:at + 64] == bytes(shadow[at:at + 64]), ("map", step, at)
        m[at:at + len(data)] = data
        write(at, data)
        if rng.randrange(2): m.flush()
        m.close()
    elif what == 7:
        punch(fd, at, length)
    elif what == 8 and rng.randrange(3) == 0:
        os.ftruncate(fd, at)
        if at < len(shadow): del shadow[at:]
        else: shadow.extend(bytes(at - len(shadow)))
    elif what == 9:
        assert os.fstat(fd).st_size == len(shadow), ("size", step)
        if rng.randrange(4) == 0: os.fsync(fd)
    if len(shadow) >= 4096:
        assert early[:64] == bytes(shadow[:64]), ("early map", step)
open(shadow_path, "wb").write(shadow)
"#;

fn compare(world: &mut World, name: &str) {
    let seed = Rng::for_test(name).next() % 1_000_000_007;
    eprintln!("seed of the script: {seed}");
    let content: Vec<u8> = (0..(4u32 << 20) / 4).flat_map(u32::to_ne_bytes).collect();
    world.put("file", &content);
    let shadow = world.beside("shadow");
    fs::write(&shadow, &content).unwrap();
    world.mount();
    for round in 0..3 {
        let ran = Command::new("python3")
            .args(["-c", SCRIPT])
            .arg(world.at("file"))
            .arg(&shadow)
            .arg((seed + round).to_string())
            .arg("250")
            .status()
            .unwrap();
        assert!(ran.success());
        let wanted = fs::read(&shadow).unwrap();
        assert!(
            fs::read(world.at("file")).unwrap() == wanted,
            "at the end of round {round}"
        );
        world.remount();
        assert!(
            fs::read(world.at("file")).unwrap() == wanted,
            "after remount {round}"
        );
    }
    assert!(fs::read(world.lower("file")).unwrap() == content);
}

#[test]
fn bytes_are_right_whatever_is_done_to_a_file() {
    let name = "bytes_are_right_whatever_is_done_to_a_file";
    everywhere(name, |world| compare(world, name));
}

#[test]
fn bytes_of_block_copied_files_are_right_whatever_is_done() {
    let name = "bytes_of_block_copied_files_are_right_whatever_is_done";
    everywhere(name, |world| {
        world.option("blocks=65536");
        compare(world, name);
    });
}

#[test]
fn one_byte_written_through_a_mount_copies_one_block() {
    everywhere(
        "one_byte_written_through_a_mount_copies_one_block",
        |world| {
            use std::os::unix::fs::{FileExt, MetadataExt};
            world.option("blocks=65536");
            let lower = fs::File::create(world.lower("big")).unwrap();
            lower.set_len(10 << 30).unwrap();
            lower.write_all_at(b"end", (10 << 30) - 3).unwrap();
            world.mount();
            let mut options = fs::OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .open(world.at("big"))
                .unwrap();
            file.write_all_at(b"x", 5 << 30).unwrap();
            let stat = fs::metadata(world.upper("big")).unwrap();
            assert!(stat.blocks() * 512 <= 1 << 20, "{} blocks", stat.blocks());
            let mut end = [0; 3];
            file.read_exact_at(&mut end, (10 << 30) - 3).unwrap();
            assert_eq!(&end, b"end");
            drop(file);
            world.remount();
            let file = fs::File::open(world.at("big")).unwrap();
            file.read_exact_at(&mut end, (5 << 30) - 1).unwrap();
            assert_eq!(&end, b"\0x\0");
            assert_eq!(file.metadata().unwrap().len(), 10 << 30);
        },
    );
}
