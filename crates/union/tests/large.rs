//! The cost of a diff is that of the changes, not of the tree.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{ALL_ON, Rig};
use vellum_union::{Form, changes};

/// 10 changes in a tree of 5,000 files, or 1,000,000 with `VELLUM_SLOW=1`: below 50 ms either way.
#[test]
fn a_diff_costs_what_was_changed() {
    let slow = std::env::var_os("VELLUM_SLOW").is_some();
    let (dirs, files) = if slow { (1000, 1000) } else { (100, 50) };
    let Some(rig) = Rig::new(1, ALL_ON) else {
        return;
    };
    let lower = &rig.lowers[0];
    for dir in 0..dirs {
        let dir = lower.join(format!("top/dir{dir}"));
        fs::create_dir_all(&dir).unwrap();
        for file in 0..files {
            fs::File::create(dir.join(format!("file{file}"))).unwrap();
        }
    }
    rig.mount();
    for change in 0..10 {
        let dir = rig.path(&format!("top/dir{}", change * 7));
        match change % 3 {
            0 => fs::write(dir.join("file5"), "changed").unwrap(),
            1 => fs::remove_file(dir.join("file6")).unwrap(),
            _ => fs::write(dir.join("new"), "new").unwrap(),
        }
    }
    rig.unmount();
    // The best of a few: other tests run at the same time.
    let best = (0..5).map(|_| {
        let begun = Instant::now();
        let found = changes(&rig.stack(), Form::Listing)
            .unwrap()
            .map(Result::unwrap)
            .count();
        assert_eq!(found, 1 + 10 + 10, "top, the directories, the files");
        begun.elapsed()
    });
    let best = best.min().unwrap();
    eprintln!("diff of 10 changes in {} files: {best:?}", dirs * files);
    assert!(best < Duration::from_millis(50), "{best:?}");
}
