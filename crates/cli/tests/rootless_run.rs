//! Runs containers as a plain user, under a real other uid.

mod support;

use std::path::Path;

use support::with_shell;
use vellum_testkit::{PlainUser, Scratch, untested};

/// Ends the process that keeps the user's namespaces, even after a failure.
struct Holder<'a>(&'a PlainUser);

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        if let Err(e) = vellum_service::rootless::stop(&self.0.run_dir().join("vellum")) {
            eprintln!("a namespace holder stays: {e}");
        }
    }
}

#[test]
fn a_plain_user_runs_containers() {
    let scratch = Scratch::new();
    let Some(user) = PlainUser::new(&scratch) else {
        return;
    };
    let _holder = Holder(&user);
    let Some(image) = with_shell(&scratch) else {
        return;
    };
    if !vellum_testkit::clients::available(&["runc"]) {
        return;
    }
    let archive = user.borrow_program(&image);
    let vellum = user.borrow_program(Path::new(env!("CARGO_BIN_EXE_vellum")));
    let run = |args: &[&str]| support::said(user.command(&vellum).args(args).output().unwrap());
    let loaded = run(&["load", archive.to_str().unwrap()]);
    assert_eq!(loaded.code, 0, "{loaded:?}");
    let said = run(&[
        "run",
        "--rm",
        "shell:1",
        "sh",
        "-c",
        "id; echo x > /file && cat /file; exit 5",
    ]);
    if said.err.contains("cgroup") || said.err.contains("/proc") {
        untested("containers of a plain user", said.err);
        return;
    }
    assert_eq!(said.code, 5, "{said:?}");
    assert!(
        said.out.starts_with("uid=0(root) gid=0(root)") && said.out.ends_with("\nx\n"),
        "{said:?}"
    );
    let said = run(&[
        "run",
        "--rm",
        "--network",
        "host",
        "-v",
        "cache:/c",
        "shell:1",
        "sh",
        "-c",
        "echo v > /c/f; cat /c/f",
    ]);
    assert_eq!((said.code, said.out.as_str()), (0, "v\n"), "{said:?}");
    assert_eq!(run(&["ls", "--ids"]).out, "");
}
