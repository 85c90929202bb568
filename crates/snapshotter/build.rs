//! Generates Rust from the messages in `proto/`. The parser is a library, so `protoc` is not
//! needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "content.proto",
            "diff.proto",
            "introspection.proto",
            "leases.proto",
            "namespaces.proto",
            "snapshots.proto",
        ],
        ["proto"],
    )?;
    // The client side is for the tests.
    tonic_prost_build::configure()
        .btree_map(".")
        .compile_fds(files)?;
    Ok(())
}
