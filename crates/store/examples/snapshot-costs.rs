//! What the calls on snapshots cost: medians and the slow end, for one process and for many at
//! once.
//!
//! `cargo run --release -p vellum-store --example snapshot-costs [DIRECTORY] [ROUNDS] [PROCESSES]`

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use vellum_store::{Commit, PrepareOptions, Result, SnapshotKey, Store, StoreOptions, Sweep};

fn line(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "{name:<28} p50 {:8.3} ms   p90 {:8.3} ms   p99 {:8.3} ms",
        at(50),
        at(90),
        at(99)
    );
}

fn timed<T>(times: &mut Vec<Duration>, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let value = call()?;
    times.push(begun.elapsed());
    Ok(value)
}

fn rounds(store: &Store, label: &str, parent: &SnapshotKey, count: usize) -> Result<()> {
    let on = PrepareOptions {
        parent: Some(parent.clone()),
        ..PrepareOptions::default()
    };
    let [mut prepare, mut tree, mut stat, mut remove, mut commit] = [const { Vec::new() }; 5];
    for i in 0..count {
        let key = SnapshotKey::from(format!("{} {i}", std::process::id()));
        timed(&mut prepare, || store.prepare(&key, &on))?;
        timed(&mut tree, || store.tree(&key))?;
        timed(&mut stat, || store.stat(&key))?;
        if i % 4 == 0 {
            let name = SnapshotKey::from(format!("{} layer {i}", std::process::id()));
            timed(&mut commit, || store.commit(&name, &key, Commit::default()))?;
            store.remove(&name, Sweep::Now)?;
        } else {
            timed(&mut remove, || store.remove(&key, Sweep::Now))?;
        }
    }
    for (name, times) in [
        ("prepare", prepare),
        ("tree", tree),
        ("stat", stat),
        ("commit (empty)", commit),
        ("remove", remove),
    ] {
        line(&format!("{label} {name}"), times);
    }
    Ok(())
}

fn chain(store: &Store, depth: usize) -> Result<SnapshotKey> {
    let mut parent: Option<SnapshotKey> = None;
    for i in 0..depth {
        let (key, name) = (
            SnapshotKey::from(format!("c{depth}/{i}")),
            SnapshotKey::from(format!("l{depth}/{i}")),
        );
        store.prepare(
            &key,
            &PrepareOptions {
                parent: parent.clone(),
                ..PrepareOptions::default()
            },
        )?;
        store.commit(&name, &key, Commit::default())?;
        parent = Some(name);
    }
    Ok(parent.unwrap_or_else(|| SnapshotKey::from("none")))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let root = arguments
        .next()
        .map_or_else(|| std::env::temp_dir().join("vellum-costs"), PathBuf::from);
    let mut number = |default| {
        arguments
            .next()
            .and_then(|a| a.to_str()?.parse().ok())
            .unwrap_or(default)
    };
    let (count, processes): (usize, usize) = (number(200), number(6));
    if processes == 0 {
        let store = Store::open(&StoreOptions::new(&root))?;
        rounds(&store, "crowd", &SnapshotKey::from("l10/9"), count)?;
        return Ok(());
    }
    let mut open = Vec::new();
    for _ in 0..20 {
        timed(&mut open, || {
            Store::open(&StoreOptions::new(&root))?.exists(&SnapshotKey::from("x"))
        })?;
    }
    line("open and look up", open);
    let store = Store::open(&StoreOptions::new(&root))?;
    for depth in [10, 500] {
        let top = chain(&store, depth)?;
        rounds(&store, &format!("depth {depth}:"), &top, count)?;
    }
    let begun = Instant::now();
    let children: Vec<_> = (0..processes)
        .map(|_| {
            Command::new(std::env::current_exe()?)
                .arg(&root)
                .arg(count.to_string())
                .arg("0")
                .spawn()
        })
        .collect::<std::io::Result<_>>()?;
    for mut child in children {
        child.wait()?;
    }
    let each = begun.elapsed().as_secs_f64() * 1e3 / (processes * count) as f64;
    println!(
        "{processes} processes: {each:.3} ms for each prepare, tree, stat and commit or remove"
    );
    drop(store);
    std::fs::remove_dir_all(&root)?;
    Ok(())
}
