//! Words that are not verbs of Vellum: verbs of other programs, answered with the program or verb
//! that does it, and typing errors.

use std::ffi::OsString;

use clap::CommandFactory;
use vellum_service::names;

use crate::verbs::Cli;

const PROCESSES: &str = "Vellum only runs one command in a container (`vellum run`); for the rest, `vellum bundle CONTAINER DIR` writes a bundle \
     for runc or crun, and Docker, Podman and containerd run containers on Vellum's layers";
const BUILDS: &str = "Vellum doesn't build Dockerfiles: use `buildah bud`, `podman build` or `docker build`, which can work on Vellum's layers; \
     `vellum commit` makes an image from a container, and `vellum import` from a directory";
const LOGINS: &str = "Vellum reads the logins of Docker and Podman: log in with `docker login`, `podman login` or `skopeo login`";
const NETWORKS: &str = "Vellum doesn't manage networks: use `vellum run --network none|host`, or an engine such as Docker or Podman";

const PRUNES: &str = "`vellum gc` removes what nothing needs, but neither images nor containers: `vellum rmi` and `vellum rm` remove those";

/// Options of other programs that Vellum's verbs of the same name don't have: the verbs, the
/// options, and what to use instead.
const OPTIONS: &[(&[&str], &[&str], &str)] = &[
    (
        &["mount"],
        &["-o", "--options"],
        "`--read-only`, or `--mount-opt NAME=VALUE` before the verb",
    ),
    (
        &["umount"],
        &["-l", "--lazy"],
        "`--force` detaches a mount that is in use",
    ),
    (
        &["rm"],
        &["-v", "--volumes"],
        "leave it out: `vellum volume rm` removes volumes",
    ),
    (
        &["rm"],
        &["-a", "--all"],
        "`vellum ls --ids | xargs vellum rm` removes all that are not in use",
    ),
    (
        &["create"],
        &["-v", "--volume", "-e", "--env", "-i", "-t", "-it"],
        "`vellum run` and `vellum bundle` take it: a container of Vellum is a tree, without a process",
    ),
    (
        &["images", "ls", "info", "df", "inspect", "history"],
        &["--format"],
        "`--json` prints everything, for `jq`",
    ),
    (
        &["images"],
        &["--filter", "-f"],
        "write a part of the name, or a pattern: `vellum images 'debian:*'`",
    ),
    (
        &["ls"],
        &["--filter", "-f"],
        "write a part of the name, or a pattern: `vellum ls 'web-*'`",
    ),
    (
        &["images"],
        &["--all", "-a"],
        "everything is listed: leave it out",
    ),
    (
        &["run", "create"],
        &["-p", "--publish", "-P", "--publish-all", "--net"],
        NETWORKS,
    ),
    (&["create"], &["-d", "--detach"], PROCESSES),
    (&["run", "create"], &["--restart"], PROCESSES),
    (
        &["run", "create"],
        &["--privileged"],
        "`--cap-add ALL` gives all capabilities; devices and other namespaces need `vellum bundle` and a runtime",
    ),
    (
        &["run"],
        &["--mount", "--tmpfs"],
        "`--volume SOURCE:PATH[:ro]` mounts a directory or a volume",
    ),
    (
        &["run", "create"],
        &["-m", "--memory", "--cpus", "--pids-limit"],
        PROCESSES,
    ),
];

/// Verbs of other programs that Vellum doesn't have, and what to use instead.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &[
            "exec", "logs", "start", "stop", "restart", "kill", "attach", "top", "stats", "wait",
            "pause", "unpause", "port", "update", "events", "pod", "kube", "compose", "up", "down",
            "swarm", "service", "stack",
        ],
        PROCESSES,
    ),
    (&["build", "buildx", "builder", "bud"], BUILDS),
    (&["login", "logout"], LOGINS),
    (&["network"], NETWORKS),
    (
        &["search"],
        "Vellum doesn't search registries: use `skopeo list-tags` or `podman search`",
    ),
];

/// What other programs call Vellum's verbs: the beginning of the command line, and the verb here.
const CALLED: &[(&[&str], &str)] = &[
    (&["image", "ls"], "images"),
    (&["image", "list"], "images"),
    (&["image", "rm"], "rmi"),
    (&["image"], ""),
    (&["container", "ls"], "ls"),
    (&["container", "list"], "ls"),
    (&["container"], ""),
    (&["system", "df"], "df"),
    (&["system", "prune"], "gc"),
    (&["system", "info"], "info"),
    (&["system"], "info"),
    (&["list"], "ls"),
    (&["mounts"], "mount"),
    (&["unmount"], "umount"),
    (&["remove"], "rm"),
    (&["delete"], "rm"),
];

/// Returns the error for a command line that doesn't begin with a verb, with a hint.
pub fn told(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let first = words.first().map_or("", |word| word);
    let mut text = format!("there is no command `{first}`");
    if let Some(hint) = hint(&words.iter().map(|word| &**word).collect::<Vec<_>>()) {
        text.push_str("\nhint: ");
        text.push_str(&hint);
    }
    text
}

/// Returns the error for an option that a verb doesn't have, with a hint.
pub fn option(verb: &str, given: &str) -> String {
    let name = given.split('=').next().unwrap_or(given);
    let near = || {
        let longs = options(verb).into_iter().filter(|o| o.starts_with("--"));
        names::near(name, longs).map(|option| format!("did you mean `{option}`?"))
    };
    foreign_option(verb, name).unwrap_or_else(|| {
        let hint = near().unwrap_or_else(|| format!("`vellum {verb} --help` lists its options"));
        no_option(verb, name, &hint)
    })
}

/// Returns the error for an option that other programs have and this verb doesn't.
pub fn foreign_option(verb: &str, name: &str) -> Option<String> {
    let mut all = OPTIONS.iter();
    let (.., instead) =
        all.find(|(verbs, names, _)| verbs.contains(&verb) && names.contains(&name))?;
    Some(no_option(verb, name, instead))
}

fn no_option(verb: &str, name: &str, hint: &str) -> String {
    format!("`vellum {verb}` has no option `{name}`\nhint: {hint}")
}

/// Returns the options of a verb, short and long, with their dashes.
fn options(verb: &str) -> Vec<String> {
    let command = Cli::command();
    let arguments = command.find_subcommand(verb).into_iter();
    let arguments = arguments.flat_map(|verb| verb.get_arguments());
    let names = arguments.flat_map(|argument| {
        let short = argument.get_short().map(|short| format!("-{short}"));
        let long = argument.get_long().map(|long| format!("--{long}"));
        [short, long].into_iter().flatten()
    });
    names.collect()
}

fn hint(words: &[&str]) -> Option<String> {
    let first = *words.first()?;
    if words.get(1) == Some(&"prune") && ["image", "container"].contains(&first) {
        return Some(PRUNES.to_owned());
    }
    if let Some((_, who)) = ELSEWHERE.iter().find(|(names, _)| names.contains(&first)) {
        return Some((*who).to_owned());
    }
    if let Some((called, verb)) = CALLED.iter().find(|(called, _)| words.starts_with(called)) {
        // `image history` is `history`, and so on whenever the second word is a verb here.
        let verb = match (*verb, words.get(called.len())) {
            ("", Some(second)) if verbs().any(|verb| verb == *second) => second,
            ("", _) if first == "image" => "images",
            ("", _) => "ls",
            (verb, _) => verb,
        };
        return Some(format!("in Vellum that is `vellum {verb}`"));
    }
    names::near(first, verbs())
        .map(|verb| format!("did you mean `vellum {verb}`? `vellum --help` lists all commands"))
        .or_else(|| Some("`vellum --help` lists all commands".to_owned()))
}

fn verbs() -> impl Iterator<Item = String> {
    let command = Cli::command();
    let names: Vec<_> = command
        .get_subcommands()
        .flat_map(|verb| [verb.get_name()].into_iter().chain(verb.get_all_aliases()))
        .map(str::to_owned)
        .collect();
    names.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        told(&words)
    }

    #[test]
    fn verbs_of_other_programs_get_an_alternative() {
        for (line, answer) in [
            ("exec box sh", "`vellum bundle"),
            ("logs box", "`vellum run`"),
            ("build .", "`buildah bud`"),
            ("login quay.io", "`skopeo login`"),
            ("image ls", "`vellum images`"),
            ("image history x", "`vellum history`"),
            ("image rm x", "`vellum rmi`"),
            ("container rename a b", "`vellum rename`"),
            ("container ls -a", "`vellum ls`"),
            ("system prune", "`vellum gc`"),
            ("unmount /mnt", "`vellum umount`"),
        ] {
            assert!(said(line).contains(answer), "{line}: {}", said(line));
        }
    }

    #[test]
    fn a_typing_error_suggests_the_verb_and_nothing_else() {
        for (line, verb) in [
            ("lod x", "load"),
            ("comit", "commit"),
            ("imagse", "images"),
            ("umuont", "umount"),
            ("prnue", "prune"),
        ] {
            assert!(
                said(line).contains(&format!("did you mean `vellum {verb}`?")),
                "{}",
                said(line)
            );
        }
        for line in ["frobnicate", "x", "start-all", "restore"] {
            assert!(!said(line).contains("did you mean"), "{}", said(line));
        }
    }

    #[test]
    fn foreign_options_are_not_options_here() {
        for (verbs, names, _) in OPTIONS {
            for verb in *verbs {
                let command = Cli::command();
                let found = command.find_subcommand(verb).map(|verb| verb.get_name());
                assert_eq!(found, Some(*verb), "a verb, and not its alias");
                let own = options(verb);
                for name in *names {
                    assert!(!own.iter().any(|own| own == name), "{verb} {name}");
                }
            }
        }
    }

    #[test]
    fn foreign_verbs_are_not_verbs_here() {
        let verbs: Vec<_> = verbs().collect();
        let others = ELSEWHERE
            .iter()
            .flat_map(|(names, _)| names.iter().copied());
        let called = CALLED.iter().map(|(called, _)| called[0]);
        for word in others.chain(called) {
            assert!(!verbs.iter().any(|verb| verb == word), "{word}");
        }
        for (_, verb) in CALLED.iter().filter(|(_, verb)| !verb.is_empty()) {
            assert!(verbs.iter().any(|found| found == verb), "{verb}");
        }
    }
}
