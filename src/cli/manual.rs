//! Man pages and completions, made from the arguments themselves when a package is built.

use super::ExitCode;
use super::output::Output;
use anyhow::{Context, Result};
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::fs;
use std::path::{Path, PathBuf};

const SOURCE: &str = concat!("autofs-cr ", env!("CARGO_PKG_VERSION"));

/// Write the man pages of all commands, and completions for bash, fish and zsh (building a package runs this)
#[derive(Args)]
pub struct Manual {
    /// The directory to write to
    dir: PathBuf,
}

impl Manual {
    pub fn run(self, _: &mut Output) -> Result<ExitCode> {
        let written = || -> Result<()> {
            fs::create_dir_all(&self.dir)?;
            for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
                clap_complete::generate_to(shell, &mut super::Cli::command(), "autofs-cr", &self.dir)?;
            }
            let mut command = super::Cli::command().disable_help_subcommand(true);
            command.build();
            man_pages(&command, &self.dir)
        };
        written().with_context(|| format!("{}: not written", self.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The page of a command, and those of its subcommands.
fn man_pages(command: &Command, dir: &Path) -> Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        man_pages(subcommand, dir)?;
    }
    let man = Man::new(command.clone().after_help(None)).section("8").source(SOURCE).manual("autofs-cr");
    let mut page = Vec::new();
    man.render(&mut page)?;
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    extra(&help).to_writer(&mut page)?;
    see_also(command.get_display_name().unwrap_or_default()).to_writer(&mut page)?;
    Ok(fs::write(dir.join(man.get_filename()), page)?)
}

/// What follows the options in `--help`: a block under a heading (`Examples:`) becomes a section of its own, the rest
/// NOTES.
fn extra(help: &str) -> Roff {
    let mut roff = Roff::new();
    let (headed, notes): (Vec<_>, Vec<_>) =
        help.split("\n\n").filter(|block| !block.is_empty()).partition(|block| heading(block).is_some());
    for block in headed {
        let mut lines = block.lines();
        let name = lines.next().unwrap_or_default().trim_end_matches(':').to_uppercase();
        roff.control("SH", [name.as_str()]).control("nf", []);
        for line in lines {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        roff.control("fi", []);
    }
    for (index, block) in notes.into_iter().enumerate() {
        if index == 0 {
            roff.control("SH", ["NOTES"]);
        } else {
            roff.control("PP", []);
        }
        roff.text([roman(block.replace('\n', " "))]);
    }
    roff
}

/// The pages of the commands that this one belongs to, and what all of them are about.
fn see_also(name: &str) -> Roff {
    let above = name.match_indices('-').map(|(at, _)| &name[..at]).filter(|above| *above != "autofs");
    let commands = above.map(|above| (above, 8));
    let pages: Vec<String> = commands
        .chain([("autofs-cr-maps", 5), ("autofs-cr-image", 5), ("autofs-cr.service", 8)])
        .map(|(page, section)| format!("{page}({section})"))
        .collect();
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
    roff
}

/// The first line, where it ends in a colon and the others are indented.
fn heading(block: &str) -> Option<&str> {
    let (first, rest) = block.split_once('\n')?;
    (first.ends_with(':') && rest.starts_with("  ")).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_become_a_section_and_the_rest_notes() {
        let text = extra("Examples:\n  a -b    \\c\n  .d\n\nSee also\nthere.\n\nMore.").render();
        let body = &text[text.find(".SH").unwrap()..];
        assert_eq!(
            body,
            ".SH EXAMPLES\n.nf\na \\-b    \\\\c\n\\&.d\n.fi\n.SH NOTES\nSee also there.\n.PP\nMore.\n"
        );
    }

    /// Where examples must be: a command's own page, or those of its subcommands where it has nothing to show.
    fn pages(command: &Command) -> Vec<String> {
        let subcommands = command.get_subcommands();
        let shown: Vec<_> =
            subcommands.filter(|sub| !sub.is_hide_set() && sub.get_name() != "help").collect();
        let is_top = command.get_name() == "autofs-cr";
        if shown.is_empty() || command.get_after_help().is_some() && !is_top {
            return vec![command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()];
        }
        shown.into_iter().flat_map(pages).collect()
    }

    /// Where clap broke them, they would not look like examples any more.
    #[test]
    fn indented_lines_of_the_help_fit_a_terminal() {
        fn look(command: &Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines().filter(|line| line.starts_with(' ')) {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
            for block in help.split("\n\n").filter(|block| heading(block).is_some()) {
                assert!(
                    block.lines().skip(1).all(|line| line.starts_with("  ")),
                    "{}: {block}",
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(look);
        }
        look(&super::super::Cli::command());
    }

    #[test]
    fn every_command_has_a_page_with_examples() {
        let dir = tempfile::tempdir().unwrap();
        Manual { dir: dir.path().into() }.run(&mut Output::new()).unwrap();
        let mut whole = super::super::Cli::command();
        whole.build();
        for name in pages(&whole) {
            let page = fs::read_to_string(dir.path().join(format!("{name}.8")));
            let page = page.unwrap_or_else(|_| panic!("no page {name}"));
            assert!(page.contains(".SH EXAMPLES\n"), "{name} has no examples");
            assert!(page.contains(".SH \"SEE ALSO\"\nautofs\\-cr(8), "), "{name} leads nowhere");
        }
        for file in ["autofs-cr.8", "autofs-cr.bash", "autofs-cr.fish", "_autofs-cr"] {
            assert!(dir.path().join(file).exists(), "{file}");
        }
    }
}
