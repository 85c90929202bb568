//! Why a runtime started no command, as an exit code: 126, 127 or 125. Pure.
//!
//! Runtimes exit with 1 after every failure, so their messages decide, as they do for Docker and
//! Podman. Messages about anything but the command itself are the runtime's failure, and so are
//! unknown messages.

use serde_json::{Deserializer, Value};

/// The container could not be created or started: the runtime's failure, or ours.
pub(super) const NOT_STARTED: i32 = 125;
/// The command exists but can't be executed.
const NOT_EXECUTABLE: i32 = 126;
/// The command does not exist.
const NOT_FOUND: i32 = 127;

/// What runc (`exec: "x": ...`, `exec /x: ...`) and crun write about the command.
const OF_THE_COMMAND: [&str; 5] = [
    "exec: \"",
    "exec /",
    "exec `",
    "executable file `",
    "exists but it is not executable",
];

/// Returns the exit code for the log of a runtime that failed.
pub(super) fn code(log: &str) -> i32 {
    let said = last_error(log).to_lowercase();
    if !OF_THE_COMMAND.iter().any(|words| said.contains(words)) {
        return NOT_STARTED;
    }
    let missing = ["not found", "no such file or directory", "not a directory"];
    match missing.iter().any(|words| said.contains(words)) {
        true => NOT_FOUND,
        false => NOT_EXECUTABLE,
    }
}

/// Returns the last message of level `error` in a log of JSON objects, or the whole text if it is
/// something else.
fn last_error(log: &str) -> String {
    let entries = Deserializer::from_str(log).into_iter::<Value>();
    let errors = entries.map_while(Result::ok).filter_map(|entry| {
        (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_owned))?
    });
    errors.last().unwrap_or_else(|| log.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_messages_become_exit_codes() {
        #[track_caller]
        fn check(said: &str, expect: i32) {
            let entry = |level: &str, msg: &str| {
                serde_json::json!({ "level": level, "msg": msg }).to_string()
            };
            let log = format!(
                "{}\n{}\n",
                entry("warning", "exec: \"x\": not found"),
                entry("error", said)
            );
            assert_eq!(code(&log), expect, "{said}");
            assert_eq!(code(said), expect, "as plain text: {said}");
        }
        // runc 1.1
        let runc =
            |rest: &str| format!("runc run failed: unable to start container process: {rest}");
        check(
            &runc(r#"exec: "nosuch": executable file not found in $PATH"#),
            127,
        );
        check(
            &runc(r#"exec: "": executable file not found in $PATH"#),
            127,
        );
        check(
            &runc(r#"exec: "/nosuch": stat /nosuch: no such file or directory"#),
            127,
        );
        check(
            &runc(r#"exec: "/file/x": stat /file/x: not a directory"#),
            127,
        );
        check(&runc(r#"exec: "/file": permission denied"#), 126);
        check(&runc("exec /own: permission denied"), 126);
        check(
            &runc(r#"exec: "/loop": stat /loop: too many levels of symbolic links"#),
            126,
        );
        check(
            &runc(r#"exec: "x": cannot run executable found relative to current directory"#),
            126,
        );
        check(
            &runc("error during container init: mkdir /proc/nosuch: no such file or directory"),
            125,
        );
        check(
            &runc(
                "error during container init: error mounting \"/a\" to rootfs at \"/b\": no such file or directory",
            ),
            125,
        );
        // runc 1.3
        check(
            &runc(r#"error during container init: exec: "/dir": is a directory"#),
            126,
        );
        check(
            &runc(
                r#"error during container init: exec: "nosuch": executable file not found in $PATH"#,
            ),
            127,
        );
        // crun
        check(
            "executable file `nosuch` not found in $PATH: No such file or directory",
            127,
        );
        check(
            "executable file `/nosuch` not found: No such file or directory",
            127,
        );
        check("the path `/file` exists but it is not executable", 126);
        check("exec `/file`: Permission denied", 126);
        check("exec `/file`: Exec format error", 126);
        check("mount `x` to `y`: Permission denied", 125);
        check("", 125);
        // crun writes its objects over several lines, and objects of other levels may follow the
        // error.
        let crun = "{\n  \"msg\": \"executable file `x` not found\",\n  \"level\": \"error\"\n}\n{\"msg\": \"bye\", \"level\": \"info\"}";
        assert_eq!(code(crun), 127);
    }
}
