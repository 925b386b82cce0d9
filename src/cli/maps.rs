//! `autofs-cr maps`.

use super::ExitCode;
use super::output::Output;
use super::progress::Progress;
use super::table::Style;
use anyhow::{Context, Result};
use autofs_cr::engine::config::{CONF, Given};
use autofs_cr::engine::maps::check::{FileKind, Found, check, guess};
use autofs_cr::engine::maps::{Severity, Site};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use unicode_width::UnicodeWidthStr;

/// Look at maps without serving them
#[derive(Args)]
#[command(after_help = HELP)]
pub struct Maps {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Check(Check),
}

const HELP: &str = "\
Examples:
  autofs-cr maps check                  autofs.conf, the master map, its files
  autofs-cr maps check /etc/auto.home   one map
  autofs-cr maps check --kind direct m  a file that is not what it looks like

Exit codes of check:
  0  no errors, perhaps warnings
  1  errors were found, or a file cannot be read
  2  wrong usage";

/// Find errors in master maps, maps (sun and amd format) and autofs.conf
///
/// Also tells where automount 5.1.9 would read a line otherwise. No program runs, and no name is looked up.
#[derive(Args)]
#[command(after_help = HELP)]
struct Check {
    /// What to check; of a master map all files that it names as well
    files: Vec<PathBuf>,

    /// What the files are [default: as they look]
    #[arg(long)]
    kind: Option<Kind>,

    /// The configuration that counts for the maps [default: /etc/autofs.conf]
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,

    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Master,
    Indirect,
    Direct,
    Amd,
    Conf,
}

impl From<Kind> for FileKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Master => Self::Master,
            Kind::Indirect => Self::Indirect,
            Kind::Direct => Self::Direct,
            Kind::Amd => Self::Amd,
            Kind::Conf => Self::Conf,
        }
    }
}

impl Maps {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        match self.command {
            Command::Check(check) => check.run(output),
        }
    }
}

impl Check {
    fn run(self, output: &mut Output) -> Result<ExitCode> {
        let site = Arc::new(Given { conf: self.conf.clone(), ..Given::default() }.read(&mut Vec::new())?);
        let progress = Progress::begin("reading the maps");
        let mut found: Vec<Found> = Vec::new();
        let mut seen = HashSet::new();
        for (path, kind) in self.files(&site)? {
            let own = check(&path, kind, &site);
            for one in own.with_context(|| format!("cannot read {}", path.display()))? {
                // A map may be given by itself and be in a master map, too.
                if seen.insert((one.0.clone(), one.1.at, one.1.message.clone())) {
                    found.push(one);
                }
            }
        }
        drop(progress);
        if self.json {
            for one in &found {
                output.print(&(serde_json::to_string(&Line::from(one))? + "\n"))?;
            }
        } else {
            output.print(&report(&found, output))?;
        }
        let failed = found.iter().any(|(_, warning)| warning.severity == Severity::Error);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn files(&self, site: &Site) -> Result<Vec<(PathBuf, FileKind)>> {
        if self.files.is_empty() {
            let conf = self.conf.clone().unwrap_or_else(|| CONF.into());
            let master = Path::new("/etc").join(&site.conf.master_map_name);
            let conf = conf.exists().then_some((conf, FileKind::Conf));
            return Ok(conf.into_iter().chain([(master, FileKind::Master)]).collect());
        }
        let kind = |path: &PathBuf| {
            // Maps are found by absolute paths.
            let path = std::path::absolute(path)?;
            let kind = match self.kind {
                Some(kind) => kind.into(),
                None => guess(
                    &path,
                    &std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
                ),
            };
            Ok((path, kind))
        };
        self.files.iter().map(kind).collect()
    }
}

/// A line of JSON. Line and column count from 1, columns in bytes.
#[derive(Serialize)]
struct Line<'a> {
    severity: &'static str,
    file: String,
    line: u32,
    column: u32,
    message: &'a str,
}

impl<'a> From<&'a Found> for Line<'a> {
    fn from((path, warning): &'a Found) -> Self {
        Self {
            severity: word(warning.severity),
            file: path.display().to_string(),
            line: warning.at.line,
            column: warning.at.column,
            message: &warning.message,
        }
    }
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Differs => "differs",
    }
}

/// As compilers show it: what, where, and the line with a mark.
fn report(found: &[Found], output: &Output) -> String {
    let mut files: HashMap<&Path, Vec<Vec<u8>>> = HashMap::new();
    let lines = |path| -> Vec<Vec<u8>> {
        std::fs::read(path).unwrap_or_default().split(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
    };
    let mut text = String::new();
    for (path, warning) in found {
        let style = match warning.severity {
            Severity::Error => Style::Bad,
            Severity::Warning => Style::Warning,
            Severity::Differs => Style::Dim,
        };
        let at = warning.at;
        let _ = writeln!(text, "{}: {}", style.paint(word(warning.severity), output), warning.message);
        let _ = writeln!(text, "  --> {}:{at}", path.display());
        let lines = files.entry(path).or_insert_with(|| lines(path));
        if let Some(line) = lines.get(at.line as usize - 1) {
            let before = &line[..line.len().min(at.column as usize - 1)];
            let number = at.line.to_string();
            let margin = " ".repeat(number.len());
            let mark = style.paint("^", output);
            let _ = writeln!(text, " {margin} |\n {number} | {}", printable(line).trim_end());
            let _ = writeln!(text, " {margin} | {}{mark}", " ".repeat(printable(before).width()));
        }
        text.push('\n');
    }
    let count = |severity| found.iter().filter(|(_, warning)| warning.severity == severity).count();
    let (errors, warnings, differs) =
        (count(Severity::Error), count(Severity::Warning), count(Severity::Differs));
    let s = |count: usize| if count == 1 { "" } else { "s" };
    let _ = writeln!(
        text,
        "{errors} error{}, {warnings} warning{}; read otherwise by automount 5.1.9: {differs}",
        s(errors),
        s(warnings)
    );
    text
}

/// One column for each control character, tabs included, so that marks stand where they should.
fn printable(line: &[u8]) -> String {
    let blank = |c: char| if c.is_control() { ' ' } else { c };
    String::from_utf8_lossy(line).chars().map(blank).collect()
}
