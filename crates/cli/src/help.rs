//! Help texts: examples first, then usage, then options; the verbs in groups.
//!
//! The texts belong to the definition in [`crate::args`]: [`command`] is the one tree that parsing, help, man pages and completions use. A
//! snapshot test holds the whole text of every page.

use clap::{Command, CommandFactory};
use vellum_overlay::options::listed;

use crate::args::Cli;

/// The verbs as `vellum --help` shows them. A test sees to it that each is in exactly one group.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Images",
        &[
            "load", "save", "pull", "push", "import", "adopt", "tag", "images", "inspect",
            "history", "rmi",
        ],
    ),
    (
        "Containers",
        &[
            "create", "mount", "umount", "diff", "commit", "cp", "rename", "rm", "ls", "run",
            "bundle", "volume",
        ],
    ),
    ("Other programs", &["serve", "export", "node"]),
    ("Unions", &["overlay", "settle", "cat", "explain", "layer"]),
    (
        "Store",
        &[
            "info",
            "df",
            "gc",
            "check",
            "why",
            "config",
            "unshare",
            "completions",
            "man",
            "help",
            "version",
        ],
    ),
];

/// What opens each help page, by the verb's path.
const EXAMPLES: &[(&str, &str)] = &[
    (
        "",
        "  vellum load debian.tar                  bring an image in
  vellum create debian:12 --name box      a container: a writable layer over it
  cd \"$(vellum mount box)\"                its root file system
  vellum diff box                         what changed
  vellum commit box mine:1                the changes as a new image
  vellum save mine:1 | docker load        and out again
  vellum run --rm mine:1 /bin/sh -c 'cat /etc/os-release'",
    ),
    (
        "load",
        "  vellum load debian.tar
  docker save debian:12 | vellum load
  vellum load ./oci-layout --tag debian:12",
    ),
    (
        "save",
        "  vellum save debian:12 -o debian.tar
  vellum save debian:12 | docker load
  vellum save debian:12 mine:1 --format oci-dir --compress zstd -o ./layout",
    ),
    (
        "export",
        "  vellum export containers-storage /var/lib/vellum-images
  podman --storage-opt additionalimagestore=/var/lib/vellum-images run debian:12
  vellum export containers-storage /var/lib/vellum-images --remove",
    ),
    (
        "export containers-storage",
        "  vellum export containers-storage /var/lib/vellum-images
  vellum export containers-storage /var/lib/vellum-images debian:12 mine:1 --dry-run",
    ),
    (
        "pull",
        "  vellum pull debian:12
  vellum pull --insecure localhost:5000/mine:1
  vellum pull registry.example/app@sha256:0123...",
    ),
    (
        "push",
        "  vellum push registry.example/app:1
  vellum push mine:1 localhost:5000/mine:1 --insecure --compress zstd",
    ),
    (
        "import",
        "  vellum import ./rootfs base:1 --change 'CMD [\"/bin/sh\"]'
  tar -C rootfs -c . | vellum import - base:1",
    ),
    ("tag", "  vellum tag debian:12 registry.example/debian:12"),
    (
        "images",
        "  vellum images
  vellum images 'debian:1?'
  vellum images debian --json
  vellum rmi $(vellum images --quiet 'old-*')",
    ),
    ("inspect", "  vellum inspect debian:12 box"),
    ("history", "  vellum history debian:12"),
    ("rmi", "  vellum rmi mine:1"),
    (
        "create",
        "  vellum create debian:12 --name box
  vellum create --from ./src --name scratch      a writable copy of a directory, at once
  cd \"$(vellum create --mount debian:12)\"        and its tree at once
  vellum create debian:12 --size 2G",
    ),
    (
        "mount",
        "  cd \"$(vellum mount box)\"
  vellum mount box /mnt
  vellum mount --image debian:12 --at /mnt       read-only
  vellum mount box --dry-run                     what would be mounted, and how",
    ),
    (
        "umount",
        "  vellum umount box
  vellum umount /mnt
  vellum umount --all",
    ),
    (
        "diff",
        "  vellum diff box
  vellum diff box --tar | tar -tv",
    ),
    (
        "commit",
        "  vellum commit box mine:1 --message 'with my settings'
  vellum commit box mine:1 -c 'CMD [\"/bin/app\"]' -c 'ENV MODE=fast' -c 'USER app'",
    ),
    (
        "cp",
        "  vellum cp app.conf box:/etc/
  vellum cp box:/var/log ./logs
  vellum cp box:/etc - | tar -tv",
    ),
    ("rename", "  vellum rename box webserver"),
    (
        "rm",
        "  vellum rm box
  vellum rm --force box",
    ),
    (
        "ls",
        "  vellum ls
  vellum ls --size --json
  vellum ls box:/etc --size
  vellum ls -o lowerdir=/layers/top:/layers/base /etc",
    ),
    (
        "run",
        "  vellum run --rm debian:12 cat /etc/os-release
  vellum run --rm -it debian:12 bash
  vellum run --rm -v ./src:/src:ro -v cache:/var/cache -e MODE=fast debian:12 make -C /src
  vellum run --container box ls /",
    ),
    (
        "bundle",
        "  vellum bundle box ./bundle && runc run --bundle ./bundle box
  vellum bundle box ./bundle --network host -- /bin/sh -c 'id'",
    ),
    (
        "volume",
        "  vellum volume create cache
  vellum run -v cache:/var/cache debian:12 ...",
    ),
    ("volume create", "  vellum volume create cache"),
    ("volume ls", "  vellum volume ls --json"),
    ("volume rm", "  vellum volume rm cache"),
    (
        "overlay",
        "  vellum overlay -o lowerdir=/layers/top:/layers/base,upperdir=/up,workdir=/work /merged
  vellum overlay -o lowerdir=/layers/a:/layers/b /merged                 read-only
  vellum overlay -o lowerdir=/a,upperdir=/u,workdir=/w,size=2G,settle=unmount /merged
  umount /merged                                   a plain user: fusermount3 -u /merged",
    ),
    (
        "settle",
        "  vellum settle /up /work
  vellum settle box
  vellum settle /up /work -o lowerdir=/layers/top:/layers/base        when the layers were moved",
    ),
    (
        "cat",
        "  vellum cat box:/etc/passwd
  vellum cat --image debian:12 /etc/os-release
  vellum cat -o lowerdir=/layers/top:/layers/base /etc/passwd",
    ),
    (
        "explain",
        "  vellum explain box:/etc/passwd
  vellum explain -o lowerdir=/layers/top:/layers/base,upperdir=/up,workdir=/work /etc/passwd",
    ),
    (
        "layer",
        "  vellum layer merge ./upper ./lower
  vellum layer squash ./top ./next ./base --output ./one
  vellum layer convert ./upper --below ./lower --marks wh --output ./plain",
    ),
    (
        "layer merge",
        "  vellum layer merge ./upper ./lower --work ./work",
    ),
    (
        "layer squash",
        "  vellum layer squash ./top ./next --below ./base --output ./both
  vellum layer squash ./top ./next ./base --whole --output ./tree",
    ),
    (
        "layer convert",
        "  vellum layer convert ./upper --marks user
  vellum layer convert ./upper --work ./work --below ./lower --plain
  vellum layer convert ./layer --marks wh --output ./for-aufs",
    ),
    (
        "info",
        "  vellum info
  vellum info --json",
    ),
    (
        "df",
        "  vellum df
  vellum df --verbose",
    ),
    (
        "gc",
        "  vellum gc --dry-run
  vellum gc
  vellum gc --rebuilt                     after check --rebuild, when you have looked",
    ),
    (
        "check",
        "  vellum check
  vellum check --heal --deep
  vellum check --rebuild                  when the database is lost",
    ),
    ("why", "  vellum why /var/lib/vellum/overlay2/3f2a..."),
    (
        "config",
        "  vellum config show
  vellum config import",
    ),
    ("config show", "  vellum config show --json"),
    (
        "config import",
        "  vellum config import /etc/docker/daemon.json -o /etc/vellum/vellum.toml
  vellum config import --options \"$DOCKER_STORAGE_OPTIONS\"",
    ),
    (
        "unshare",
        "  vellum unshare
  vellum unshare ls -ln ~/.local/share/vellum/overlay2",
    ),
    (
        "completions",
        "  vellum completions bash > /etc/bash_completion.d/vellum
  vellum completions fish > ~/.config/fish/completions/vellum.fish",
    ),
    (
        "serve",
        "  vellum serve containerd
  vellum serve docker
  vellum serve docker --root /data/vellum",
    ),
    (
        "serve containerd",
        "  vellum serve containerd                 and in /etc/containerd/config.toml:

      [proxy_plugins.vellum]
        type = \"snapshot\"
        address = \"/run/vellum/containerd.sock\"
      [proxy_plugins.vellum-diff]             containerd 2 and late 1.7
        type = \"diff\"
        address = \"/run/vellum/containerd.sock\"

  vellum serve containerd --root /data/vellum --engine vellum
  VELLUM_LOG=debug vellum serve containerd --socket /tmp/v.sock",
    ),
    (
        "serve docker",
        "  vellum serve docker                     then: dockerd --experimental --storage-driver=vellum
  vellum serve docker --root /data/vellum --storage-driver native
  vellum serve docker --socket /run/docker/plugins/fast.sock --engine vellum",
    ),
    (
        "adopt",
        "  vellum adopt /var/lib/docker --dry-run      what is there, and what is orphaned
  vellum adopt /var/lib/docker
  vellum adopt /data/docker debian:12 --json
  vellum adopt /var/lib/docker --all --in-place",
    ),
    ("man", "  vellum man /usr/local/share/man/man1"),
    ("help", "  vellum help\n  vellum help volume ls"),
    ("version", "  vellum version"),
    (
        "node",
        "  vellum node install --dry-run
  vellum node install --activate
  vellum node status
  vellum node uninstall --activate",
    ),
    (
        "node install",
        "  vellum node install --dry-run           what would change, line by line
  vellum node install --activate
  vellum node install --host-root /host --activate
  vellum node install --no-cri --bin-dir /opt/bin",
    ),
    (
        "node uninstall",
        "  vellum node uninstall --dry-run
  vellum node uninstall --host-root /host --activate",
    ),
    (
        "node status",
        "  vellum node status
  vellum node status --host-root /host --json",
    ),
];

const CODES: &str = "Exit codes: 0 done, 1 failed, 2 misused; `vellum run` gives its command's own, 125 if it fails before.
Settings come from flags, VELLUM_* variables, your own file and the system's: see `vellum config show`.";

/// Those of `run`, which are Docker's.
const RUN_CODES: &str = "Exit codes: the command's own; 127 if it isn't there, 126 if it can't be executed, 125 if vellum or the
runtime fails before it.";

/// Opens the list of mount options, whose one definition is the overlay room's.
const MOUNT_OPTIONS: &str = "All options of fuse-overlayfs and of the kernel's overlay are understood; docs/overlay.md explains each.";

/// Returns the whole command tree with its help texts.
pub fn command() -> Command {
    dress(Cli::command(), "", Form::Screen)
}

/// Returns the same tree for man pages, whose examples stand at the end.
pub fn man_command() -> Command {
    dress(Cli::command(), "", Form::Man)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Screen,
    Man,
}

fn dress(mut command: Command, path: &str, form: Form) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .collect();
    for name in names {
        let below = if path.is_empty() {
            name.clone()
        } else {
            format!("{path} {name}")
        };
        command = command.mut_subcommand(&name, |sub| dress(sub, &below, form));
    }
    let examples = EXAMPLES
        .iter()
        .find(|(p, _)| *p == path)
        .map_or("", |(_, text)| text);
    let middle = if path.is_empty() {
        groups(&command)
    } else {
        "{all-args}".to_owned()
    };
    let tail = match path {
        "" => format!("\n\n{CODES}"),
        "run" => format!("\n\n{RUN_CODES}"),
        _ => String::new(),
    };
    let examples = match path {
        "overlay" => format!("{examples}\n\n{MOUNT_OPTIONS}\n{}", listed().trim_end()),
        _ => examples.to_owned(),
    };
    if form == Form::Man {
        let codes = if path == "run" { RUN_CODES } else { "" };
        command = command.after_long_help(
            format!("Examples:\n\n{examples}\n\n{codes}")
                .trim_end()
                .to_owned(),
        );
    }
    command
        .help_template(format!(
            "{{about-with-newline}}\nExamples:\n{examples}\n\n{{usage-heading}} {{usage}}\n\n{middle}{tail}"
        ))
        .subcommand_help_heading("Commands")
        .disable_help_subcommand(true)
}

/// The list of verbs by group, each with its own first line.
fn groups(command: &Command) -> String {
    let mut text = String::new();
    for (title, names) in GROUPS {
        text.push_str(&format!("{title}:\n"));
        for name in *names {
            let about = command
                .find_subcommand(name)
                .and_then(Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            text.push_str(&format!("  {name:<12} {about}\n"));
        }
        text.push('\n');
    }
    text.push_str("Options:\n{options}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_one_group_and_has_examples() {
        let command = command();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            let groups = GROUPS
                .iter()
                .filter(|(_, names)| names.contains(&sub.get_name()))
                .count();
            assert_eq!(groups, 1, "{} is in {groups} groups", sub.get_name());
        }
        let named: usize = GROUPS.iter().map(|(_, names)| names.len()).sum();
        assert_eq!(named, command.get_subcommands().count());
        each(&command, "", &mut |path, _| {
            assert!(
                EXAMPLES.iter().any(|(p, _)| *p == path),
                "`{path}` has no example"
            );
        });
    }

    /// clap takes a verb's argument for a global flag of the same id: `vellum --root A verb B` would then act on the store B.
    #[test]
    fn no_verb_overrides_a_global_flag() {
        let command = command();
        let globals: Vec<_> = command
            .get_arguments()
            .filter(|arg| arg.is_global_set())
            .collect();
        let ids: Vec<&str> = globals.iter().map(|arg| arg.get_id().as_str()).collect();
        for id in ["root", "run_dir", "config", "engine", "quiet"] {
            assert!(ids.contains(&id), "{id} is no global flag any more");
        }
        let mut seen = 0;
        each(&command, "", &mut |path, verb| {
            let own = |arg: &&clap::Arg| !arg.is_global_set();
            for arg in verb.get_arguments().filter(own) {
                seen += 1;
                assert!(
                    !ids.contains(&arg.get_id().as_str()),
                    "`{path}`: {}",
                    arg.get_id()
                );
                for global in &globals {
                    let both = |a: Option<String>, b: Option<String>| a.is_some() && a == b;
                    assert!(
                        !both(
                            arg.get_long().map(str::to_owned),
                            global.get_long().map(str::to_owned)
                        ) && !both(
                            arg.get_short().map(String::from),
                            global.get_short().map(String::from)
                        ),
                        "`{path}`: {} is spelled like {}",
                        arg.get_id(),
                        global.get_id()
                    );
                }
            }
        });
        assert!(seen > 50, "only {seen} arguments were looked at");
    }

    /// Every example is a command line that is understood: shown words are never wrong.
    #[test]
    fn examples_are_understood() {
        for (path, text) in EXAMPLES {
            assert!(
                !text.contains(['{', '}']),
                "{path}: braces mean something to clap's template"
            );
            for line in text.lines() {
                let line = line
                    .split("      ")
                    .find(|part| part.contains("vellum"))
                    .unwrap_or(line);
                let Some(start) = line.find("vellum ") else {
                    continue;
                };
                let end = line[start..]
                    .find([')', '|', '>', '&'])
                    .map_or(line.len(), |at| start + at);
                // Quoted text is one word, as in a shell.
                let mut words: Vec<String> = Vec::new();
                for (at, part) in line[start..end].split('\'').enumerate() {
                    match at % 2 {
                        0 => words.extend(
                            part.split_whitespace()
                                .map(|w| w.trim_matches('"').to_owned()),
                        ),
                        _ => words.push(part.to_owned()),
                    }
                }
                words.retain(|word| word != "...");
                if let Err(e) = command().try_get_matches_from(&words) {
                    panic!("{path}: {words:?}: {e}");
                }
            }
        }
    }

    /// The whole text of every help page. `VELLUM_BLESS=1 cargo test -p vellum-cli help` writes it anew.
    #[test]
    fn help_reads_like_this() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/help.txt");
        let mut text = String::new();
        each(&command(), "", &mut |path, page| {
            let title = format!("vellum {path}");
            let page = page
                .clone()
                .bin_name(title.trim())
                .term_width(100)
                .render_help();
            let page: String = page
                .to_string()
                .lines()
                .map(|l| format!("{}\n", l.trim_end()))
                .collect();
            text.push_str(&format!("===== {} --help\n{page}\n", title.trim()));
        });
        if std::env::var_os("VELLUM_BLESS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let expect = std::fs::read_to_string(path).unwrap();
        for (line, (is, was)) in text.lines().zip(expect.lines()).enumerate() {
            assert_eq!(is, was, "tests/help.txt, line {}", line + 1);
        }
        assert_eq!(text.lines().count(), expect.lines().count());
    }

    fn each(command: &Command, path: &str, visit: &mut impl FnMut(&str, &Command)) {
        visit(path, command);
        for sub in command.get_subcommands() {
            let below = if path.is_empty() {
                sub.get_name().to_owned()
            } else {
                format!("{path} {}", sub.get_name())
            };
            each(sub, &below, visit);
        }
    }
}
