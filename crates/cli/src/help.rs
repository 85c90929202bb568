//! Help texts: examples first, then usage, then options; the verbs in groups.
//!
//! The texts belong to the verbs ([`crate::verbs`]): [`command`] is the one tree that parsing,
//! help, man pages and completions use. A snapshot test holds the whole text of every page.

use clap::{Command, CommandFactory};

use crate::verbs::{Cli, Group, PAGES, Page};

/// The examples on the page of `vellum` itself.
const EXAMPLES: &str = "  vellum load debian.tar                  load an image
  vellum create debian:12 --name box      create a container from it
  cd \"$(vellum mount box)\"                enter its root file system
  vellum diff box                         list what changed
  vellum commit box mine:1                turn the changes into a new image
  vellum save mine:1 | docker load        send it to Docker
  vellum run --rm mine:1 /bin/sh -c 'cat /etc/os-release'";

const CODES: &str = "Exit codes: 0 success, 1 failure, 2 wrong usage; `vellum run`: its command's, or 125 if that didn't start.
Settings come from flags, VELLUM_* variables, and your own and the system's file: see `vellum config show`.";

/// Returns the whole command tree with its help texts.
pub fn command() -> Command {
    dress(Cli::command(), "", Form::Screen)
}

/// Returns the same tree for man pages, with the examples at the end.
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
    let (verb, below) = path.split_once(' ').unwrap_or((path, ""));
    let page = PAGES.iter().find(|page| page.name == verb);
    let examples = match page {
        None => EXAMPLES.to_owned(),
        Some(page) => examples(page, below),
    };
    let codes = page
        .filter(|_| below.is_empty())
        .map_or("", |page| page.codes);
    let middle = match page {
        None => groups(&command),
        Some(_) => "{all-args}".to_owned(),
    };
    let tail = match (page, codes) {
        (None, _) => format!("\n\n{CODES}"),
        (Some(_), "") => String::new(),
        (Some(_), codes) => format!("\n\n{codes}"),
    };
    if form == Form::Man {
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

/// Returns the examples of a verb or of one of its subcommands, and the verb's notes.
fn examples(page: &Page, below: &str) -> String {
    let own = page.examples.iter().find(|(words, _)| *words == below);
    let examples = own.map_or("", |(_, text)| text);
    match below {
        "" => format!("{examples}\n\n{}", (page.notes)()),
        _ => examples.to_owned(),
    }
    .trim_end()
    .to_owned()
}

/// Returns the list of verbs by group, each with the first line of its help.
fn groups(command: &Command) -> String {
    let mut text = String::new();
    for (group, title) in Group::ALL {
        text.push_str(&format!("{title}:\n"));
        for page in PAGES.iter().filter(|page| page.group == group) {
            let about = command
                .find_subcommand(page.name)
                .and_then(Command::get_about)
                .map(ToString::to_string)
                .unwrap_or_default();
            text.push_str(&format!("  {:<12} {about}\n", page.name));
        }
        text.push('\n');
    }
    text.push_str("Options:\n{options}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All examples, by the path of their page.
    fn pages() -> Vec<(String, &'static str)> {
        let mut pages = vec![(String::new(), EXAMPLES)];
        for page in PAGES {
            for (below, text) in page.examples {
                let path = format!("{} {below}", page.name);
                pages.push((path.trim_end().to_owned(), *text));
            }
        }
        pages
    }

    #[test]
    fn every_verb_has_examples_and_every_example_a_verb() {
        let command = command();
        command.clone().debug_assert();
        let mut paths: Vec<String> = pages().into_iter().map(|(path, _)| path).collect();
        each(&command, "", &mut |path, _| {
            let at = paths.iter().position(|known| known == path);
            paths.swap_remove(at.unwrap_or_else(|| panic!("`{path}` has no example")));
        });
        assert_eq!(paths, [] as [String; 0]);
    }

    /// clap confuses a verb's argument with a global flag of the same id: `vellum --root A verb B`
    /// would then use the store B.
    #[test]
    fn no_verb_overrides_a_global_flag() {
        let command = command();
        let globals: Vec<_> = command
            .get_arguments()
            .filter(|arg| arg.is_global_set())
            .collect();
        let ids: Vec<&str> = globals.iter().map(|arg| arg.get_id().as_str()).collect();
        for id in ["root", "run_dir", "config", "engine", "quiet"] {
            assert!(ids.contains(&id), "{id} is no longer a global flag");
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

    /// Every example parses as a command line.
    #[test]
    fn examples_are_understood() {
        for (path, text) in pages() {
            assert!(
                !text.contains(['{', '}']),
                "{path}: braces have a meaning in clap's template"
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

    /// The whole text of every help page. `VELLUM_BLESS=1 cargo test -p vellum-cli help`
    /// rewrites it.
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
