//! `autofs-cr busy`.

use super::ExitCode;
use super::list::shown;
use super::output::Output;
use super::table::{Column, Style, Table};
use anyhow::{Context, Result};
use autofs_cr::discover::users::{Program, Users, users};
use clap::Args;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  autofs-cr busy /net/data              who keeps it from expiring
  autofs-cr busy /net/a /net/b --json

It works with mounts of any automounter, and with any others. Nothing is opened in them: a dead server does \
no harm.";

/// Tell which programs, mounts and kernel users keep mounts from expiring
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Busy {
    /// Mount points, or directories in mounts
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Busy {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        let absolute = |path: &PathBuf| {
            let path = std::path::absolute(path).with_context(|| shown(path))?;
            // Without a slash at the end; nothing is looked up.
            Ok(path.components().collect())
        };
        let paths = self.paths.iter().map(absolute).collect::<Result<Vec<PathBuf>>>()?;
        let found = users(&paths)?;
        if self.json {
            output.json(&found)?;
        } else {
            for users in &found {
                output.print(&table(users, output))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

const COLUMNS: [Column; 5] = [
    Column::right("PID"),
    Column::right("UID"),
    Column::long("PROGRAM", 12),
    Column::new("HOW"),
    Column::long("WHAT", 20),
];

fn table(users: &Users, output: &Output) -> String {
    let path = shown(&users.path);
    let what = if users.mounted { "" } else { " (nothing is mounted there: is the path right?)" };
    let free = users.programs.is_empty() && users.mounts.is_empty() && users.kernel.is_empty();
    if free {
        return format!("{path}: not used{what}\n");
    }
    let mut table = Table::new(&COLUMNS);
    for program in &users.programs {
        for used in &program.uses {
            table.row(vec![
                program.pid.to_string().into(),
                program.uid.to_string().into(),
                name(program).into(),
                used.how.to_string().into(),
                shown(&used.path).into(),
            ]);
        }
    }
    for used in &users.kernel {
        let [none, by] = ["-", &used.by];
        table.row(vec![none.into(), none.into(), "(kernel)".into(), by.into(), shown(&used.path).into()]);
    }
    for mount in &users.mounts {
        let [none, fstype] = ["-", &mount.fstype];
        let row = [none, none, "(mount)", fstype].map(Into::into);
        table.row(row.into_iter().chain([shown(&mount.path).into()]).collect());
    }
    let head = Style::Warning.paint(&format!("{path}: in use{what}"), output);
    format!("{head}\n{}", table.render(output))
}

fn name(program: &Program) -> String {
    let elsewhere = if program.elsewhere { " (other namespace)" } else { "" };
    format!("{}{elsewhere}", program.comm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use autofs_cr::discover::users::{Below, How, KernelUse, Use};

    #[test]
    fn users_are_told_in_a_table() {
        let program = Program {
            pid: 812,
            uid: 1000,
            comm: "vim".into(),
            elsewhere: true,
            uses: vec![
                Use { how: How::Cwd, path: "/net/a".into() },
                Use { how: How::Fd(7), path: "/net/a/file".into() },
            ],
        };
        let users = Users {
            path: "/net/a".into(),
            mounted: true,
            programs: vec![program],
            mounts: vec![Below { path: "/net/a/x".into(), fstype: "tmpfs".into() }],
            kernel: vec![KernelUse { by: "loop0".into(), path: "/net/a/image".into() }],
        };
        let output = Output { width: None, colours: false };
        insta::assert_snapshot!(table(&users, &output), @r"
        /net/a: in use
        PID   UID  PROGRAM                HOW     WHAT
        812  1000  vim (other namespace)  cwd     /net/a
        812  1000  vim (other namespace)  open 7  /net/a/file
          -     -  (kernel)               loop0   /net/a/image
          -     -  (mount)                tmpfs   /net/a/x
        ");
        let free = Users { programs: Vec::new(), mounts: Vec::new(), kernel: Vec::new(), ..users };
        assert_eq!(table(&free, &output), "/net/a: not used\n");
    }
}
