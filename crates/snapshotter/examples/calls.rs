//! Times the snapshotter's calls: `calls SOCKET calls ROUNDS NAME`, `calls SOCKET many COUNT`,
//! `calls SOCKET empty COUNT`, `calls SOCKET removals COUNT NAME`. See bench/snapshots.py.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use vellum_snapshotter::api::services::snapshots::v1 as wire;
use vellum_snapshotter::api::types::Mount;
use wire::snapshots_client::SnapshotsClient;

type Failed = Box<dyn std::error::Error>;
type Client = SnapshotsClient<Channel>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, what, count, rest @ ..] = arguments.as_slice() else {
        return Err("SOCKET calls|many|empty|removals COUNT [NAME]".into());
    };
    let channel = Endpoint::from_shared(format!("unix://{socket}"))?
        .connect()
        .await?;
    let client = SnapshotsClient::new(channel).max_decoding_message_size(16 << 20);
    let count: usize = count.parse()?;
    let name = rest.first().map_or("", String::as_str);
    match what.as_str() {
        "calls" => calls(client, count, name).await,
        "removals" => removals(client, count, name).await,
        "many" => many(client, count).await,
        _ => empty(client, count).await,
    }
}

async fn prepare(client: &mut Client, key: &str, parent: &str) -> Result<Vec<Mount>, Failed> {
    let request = wire::PrepareSnapshotRequest {
        snapshotter: "vellum".into(),
        key: key.into(),
        parent: parent.into(),
        // The label that an unpacker sets: with it the server tracks what is written.
        labels: BTreeMap::from([(
            "containerd.io/snapshot.ref".to_owned(),
            format!("sha256:{key}"),
        )]),
    };
    Ok(client.prepare(request).await?.into_inner().mounts)
}

async fn commit(client: &mut Client, name: &str, key: &str) -> Result<(), Failed> {
    let request = wire::CommitSnapshotRequest {
        name: name.into(),
        key: key.into(),
        ..Default::default()
    };
    client.commit(request).await?;
    Ok(())
}

async fn remove(client: &mut Client, key: &str) -> Result<(), Failed> {
    let request = wire::RemoveSnapshotRequest {
        key: key.into(),
        ..Default::default()
    };
    client.remove(request).await?;
    Ok(())
}

fn upper(mounts: &[Mount]) -> &str {
    let mount = &mounts[0];
    mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="))
        .unwrap_or(&mount.source)
}

fn row(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share).div_ceil(100) - 1].as_secs_f64() * 1000.0;
    println!(
        "| {what} | {:.2} | {:.2} | {:.2} |",
        at(50),
        at(99),
        at(100)
    );
}

/// Layers of 16 files of 64 KiB, each prepared, filled, committed, queried and removed.
async fn calls(mut client: Client, rounds: usize, name: &str) -> Result<(), Failed> {
    let content = vec![7; 64 << 10];
    let mut times: [Vec<Duration>; 5] = Default::default();
    for round in 0..rounds {
        let (key, layer) = (
            format!("key {name} {round}"),
            format!("layer {name} {round}"),
        );
        let begun = Instant::now();
        let mounts = prepare(&mut client, &key, "").await?;
        times[0].push(begun.elapsed());
        for n in 0..16 {
            std::fs::write(format!("{}/{n}", upper(&mounts)), &content)?;
        }
        let begun = Instant::now();
        commit(&mut client, &layer, &key).await?;
        times[1].push(begun.elapsed());
        let begun = Instant::now();
        let on = prepare(&mut client, &format!("on {name} {round}"), &layer).await?;
        times[2].push(begun.elapsed());
        assert!(!on.is_empty());
        let begun = Instant::now();
        client
            .stat(wire::StatSnapshotRequest {
                key: layer.clone(),
                ..Default::default()
            })
            .await?;
        times[3].push(begun.elapsed());
        remove(&mut client, &format!("on {name} {round}")).await?;
        let begun = Instant::now();
        remove(&mut client, &layer).await?;
        times[4].push(begun.elapsed());
    }
    client.cleanup(wire::CleanupRequest::default()).await?;
    let names = [
        "prepare",
        "commit of 1 MiB",
        "prepare on a layer",
        "stat",
        "remove",
    ];
    for (what, times) in names.into_iter().zip(times) {
        row(&format!("{what}, {name}"), times);
    }
    Ok(())
}

/// Creates chains of ten layers, until there are `count` snapshots.
async fn many(mut client: Client, count: usize) -> Result<(), Failed> {
    let begun = Instant::now();
    let mut parent = String::new();
    for n in 0..count {
        if n % 10 == 0 {
            parent.clear();
        }
        let (key, name) = (format!("many key {n}"), format!("many {n}"));
        prepare(&mut client, &key, &parent).await?;
        commit(&mut client, &name, &key).await?;
        parent = name;
    }
    let each = begun.elapsed() / count as u32;
    println!("\n{count} layers prepared and committed: {each:.2?} each");
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let mut stream = client
            .list(wire::ListSnapshotsRequest::default())
            .await?
            .into_inner();
        let mut listed = 0;
        while let Some(message) = stream.message().await? {
            listed += message.info.len();
        }
        assert_eq!(listed, count);
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    println!("list of {count}: {:.1?} (median of 5)", times[2]);
    Ok(())
}

/// Removes all of them, as garbage collection does: children first, then Cleanup.
async fn empty(mut client: Client, count: usize) -> Result<(), Failed> {
    let begun = Instant::now();
    for n in (0..count).rev() {
        remove(&mut client, &format!("many {n}")).await?;
    }
    println!("remove: {:.2?} each", begun.elapsed() / count as u32);
    let begun = Instant::now();
    client.cleanup(wire::CleanupRequest::default()).await?;
    println!("cleanup of {count}: {:.2?}", begun.elapsed());
    Ok(())
}

/// Removes all of them and prints the time of each removal, during which containerd's garbage
/// collection holds its lock.
async fn removals(mut client: Client, count: usize, name: &str) -> Result<(), Failed> {
    let mut times = Vec::new();
    for n in (0..count).rev() {
        let begun = Instant::now();
        remove(&mut client, &format!("many {n}")).await?;
        times.push(begun.elapsed());
    }
    row(&format!("remove, {name}"), times);
    client.cleanup(wire::CleanupRequest::default()).await?;
    Ok(())
}
