//! The units, and the commands for systemd.
//!
//! The units are those of `contrib/systemd`, with the program's path filled in. Commands run the
//! node's `systemctl`: directly on this machine, through `chroot` where the node is mounted
//! elsewhere (its `/run` must be mounted too).

use std::path::Path;
use std::process::{Command, Stdio};

use crate::tree::Tree;
use vellum_service::error::{Error, Result};

const RESTART_CONTAINERD: &str = "systemctl try-restart containerd.service";

/// Where a node's programs are, and `chroot` in a minimal image: the image's own path may be
/// shorter.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PROGRAM: &str = "/usr/local/bin/vellum";

/// The file from which the units read variables.
pub const ENVIRONMENT_FILE: &str = "/etc/default/vellum";

const UNITS: [(&str, &str); 2] = [
    (
        "vellum-containerd.socket",
        include_str!("../../../contrib/systemd/vellum-containerd.socket"),
    ),
    (
        "vellum-containerd.service",
        include_str!("../../../contrib/systemd/vellum-containerd.service"),
    ),
];

/// Returns the names and texts of a node's units.
pub fn units(program: &Path) -> Vec<(&'static str, String)> {
    let program = program.display().to_string();
    UNITS
        .iter()
        .map(|(name, text)| (*name, text.replace(PROGRAM, &program)))
        .collect()
}

/// The commands for systemd after files have changed. The server is restarted; mounts and
/// containers are not.
pub fn after_install(restart_containerd: bool) -> Vec<String> {
    let mut commands = vec![
        "systemctl daemon-reload".to_owned(),
        "systemctl enable vellum-containerd.socket vellum-containerd.service".to_owned(),
        "systemctl restart vellum-containerd.service".to_owned(),
    ];
    if restart_containerd {
        commands.push(RESTART_CONTAINERD.to_owned());
    }
    commands
}

/// Tells whether these commands restart containerd.
pub fn restarts_containerd(commands: &[String]) -> bool {
    commands.iter().any(|command| command == RESTART_CONTAINERD)
}

/// The commands for systemd before files are removed (the first), and after.
pub fn around_uninstall(restart_containerd: bool) -> Vec<String> {
    let mut commands = vec![
        "systemctl disable --now vellum-containerd.service vellum-containerd.socket".to_owned(),
        "systemctl daemon-reload".to_owned(),
    ];
    if restart_containerd {
        commands.push(RESTART_CONTAINERD.to_owned());
    }
    commands
}

/// Runs commands on the node, in order, and returns them.
///
/// Errors: `Program`; `Unsupported` with the failed command's output. The commands after it are not
/// run.
pub fn run(tree: &Tree, commands: &[String]) -> Result<Vec<String>> {
    for command in commands {
        let mut words = command.split(' ');
        let name = words.next().unwrap_or_default();
        let mut process = if tree.root() == Path::new("/") {
            Command::new(name)
        } else {
            let mut chroot = Command::new("chroot");
            chroot.env("PATH", SEARCH_PATH).arg(tree.root()).arg(name);
            chroot
        };
        let output = process
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::Program {
                program: name.into(),
                source,
            })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Unsupported {
                what: format!("`{command}` ended with {}: {}", output.status, said.trim()),
                hint: "the files are in place; run the rest of the commands by hand, or the same command again".into(),
            });
        }
    }
    Ok(commands.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_a_node_lacks_is_named() {
        let tree = Tree::at(Path::new("/")).unwrap();
        let commands = ["vellum-has-no-such-program now".to_owned()];
        let error = run(&tree, &commands).unwrap_err();
        assert!(matches!(error, Error::Program { .. }), "{error:?}");
        assert_eq!(error.to_string(), "cannot run vellum-has-no-such-program");
    }
}
