//! Memory stays flat, whatever the layer's size: measured in a process of its own.

use std::io::{self, Read};
use std::path::Path;
use std::process::Command;

use vellum_image::{
    ApplyTarget, Cancel, Compression, LayerStream, LayerWriter, Limits, Privilege, TarEntry,
    TarKind, TargetMarks, apply, compression::Encoder,
};
use vellum_sys::{Dir, Timespec};
use vellum_testkit::Scratch;

/// The directory that the child applies to. Without it the child's test does nothing.
const CHILD: &str = "VELLUM_TEST_MEMORY_CHILD";
const MOST_MIB: u64 = 100;

fn entry(path: String, kind: TarKind) -> TarEntry {
    TarEntry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timespec::new(1, 0),
        xattrs: Vec::new(),
    }
}

/// Content with 1 MiB of data in every 16 MiB, so that a large layer does not fill the disk.
struct Patchy(u64);

impl Read for Patchy {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = buf.len().min((1 << 20) - (self.0 % (1 << 20)) as usize);
        let data = (self.0 >> 20).is_multiple_of(16);
        buf[..n].fill(if data { b'x' } else { 0 });
        self.0 += n as u64;
        Ok(n)
    }
}

/// A compressed layer with `files` files of `mib` MiB each and `links` links, generated while it is
/// read.
fn layer(files: u64, mib: u64, links: u64) -> Box<dyn Read + Send> {
    let (reader, pipe) = io::pipe().unwrap();
    std::thread::spawn(move || {
        let write = || -> Result<(), Box<dyn std::error::Error>> {
            let mut writer = LayerWriter::new(Encoder::new(Compression::Zstd, pipe)?);
            for i in 0..files {
                let size_bytes = mib << 20;
                let file = entry(format!("file-{i:06}"), TarKind::File { size_bytes });
                writer.append(&file, &mut Patchy(0))?;
            }
            for i in 0..links {
                let target = "somewhere else".into();
                writer.append(
                    &entry(format!("link-{i:06}"), TarKind::Symlink { target }),
                    &mut io::empty(),
                )?;
            }
            writer.finish()?.finish()?;
            Ok(())
        };
        // The reader sees an early end.
        if let Err(error) = write() {
            eprintln!("the layer could not be made: {error}");
        }
    });
    Box::new(reader)
}

/// Runs only in the child.
#[test]
fn child_that_applies_a_large_layer() {
    let Some(request) = std::env::var_os(CHILD) else {
        return;
    };
    let request = request.into_string().unwrap();
    let (numbers, dir) = request.split_once(':').unwrap();
    let numbers: Vec<u64> = numbers.split(',').map(|n| n.parse().unwrap()).collect();
    let target = ApplyTarget {
        root: Dir::open(Path::new(dir)).unwrap(),
        marks: TargetMarks::Plain,
        privilege: Privilege::Full,
        donor: None,
    };
    let (limits, cancel) = (Limits::default(), Cancel::new());
    let stream =
        LayerStream::open(layer(numbers[0], numbers[1], numbers[2]), &limits, &cancel).unwrap();
    let mut recipe = std::fs::File::create(Path::new(dir).with_extension("recipe")).unwrap();
    let applied = apply(stream, &target, Some(&mut recipe), &limits, &cancel).unwrap();
    assert_eq!(applied.entries, numbers[0] + numbers[2]);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    println!("{peak}");
}

#[track_caller]
fn peak_mib(files: u64, mib: u64, links: u64) -> u64 {
    let scratch = Scratch::new();
    let dir = scratch.dir("tree");
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "memory::child_that_applies_a_large_layer",
            "--nocapture",
        ])
        .env(CHILD, format!("{files},{mib},{links}:{}", dir.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = text
        .lines()
        .find_map(|line| line.split_once("VmHWM:"))
        .unwrap()
        .1;
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        / 1024
}

#[test]
fn memory_stays_flat_while_a_layer_is_applied() {
    let small = peak_mib(1, 1, 10);
    let large = peak_mib(4, 128, 10);
    assert!(
        large <= small + 16,
        "{small} MiB for a small layer, {large} MiB for 512 MiB"
    );
    let many = peak_mib(1, 1, 50_000);
    assert!(
        many <= small + 24,
        "{small} MiB for a small layer, {many} MiB for 50,000 entries"
    );
}

#[test]
fn a_layer_of_10_gib_takes_at_most_100_mib() {
    if std::env::var_os("VELLUM_SLOW").is_none() {
        // In the slow tier; the test above covers a smaller layer.
        return;
    }
    let peak = peak_mib(20, 512, 100_000);
    assert!(peak <= MOST_MIB, "{peak} MiB");
}
