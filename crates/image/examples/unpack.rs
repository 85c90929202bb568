//! Unpacks one layer and writes it again, with times: for measuring and profiling.
//!
//! `unpack LAYER DIR [RECIPE]` applies LAYER to the empty DIR as an overlay layer, and writes its
//! recipe to RECIPE. `unpack --replay RECIPE DIR >TAR` writes the layer again.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use vellum_format::Prefix;
use vellum_image::recipe::replay;
use vellum_image::{ApplyTarget, Cancel, LayerStream, Limits, Privilege, TargetMarks, apply};
use vellum_sys::Dir;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let (limits, cancel) = (Limits::default(), Cancel::new());
    let start = Instant::now();
    match arguments.as_slice() {
        [flag, recipe, tree] if flag == "--replay" => {
            let mut recipe = File::open(recipe)?;
            let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
            let replayed = replay(&mut recipe, &Dir::open(Path::new(tree))?, &mut out, &cancel)?;
            out.flush()?;
            eprintln!(
                "{} {} bytes in {:?}",
                replayed.diff_id,
                replayed.tar_bytes,
                start.elapsed()
            );
        }
        [layer, tree, rest @ ..] => {
            let target = ApplyTarget {
                root: Dir::open(Path::new(tree))?,
                marks: TargetMarks::Overlay(Prefix::Trusted),
                privilege: Privilege::Full,
                donor: None,
            };
            let mut recipe = rest.first().map(File::create).transpose()?;
            let stream = LayerStream::open(Box::new(File::open(layer)?), &limits, &cancel)?;
            let applied = apply(
                stream,
                &target,
                recipe.as_mut().map(|file| file as &mut dyn Write),
                &limits,
                &cancel,
            )?;
            eprintln!(
                "{} {} entries, {} bytes in {:?}",
                applied.blob.diff_id,
                applied.entries,
                applied.blob.tar_bytes,
                start.elapsed()
            );
        }
        _ => return Err("usage: unpack LAYER DIR [RECIPE] | --replay RECIPE DIR".into()),
    }
    Ok(())
}
