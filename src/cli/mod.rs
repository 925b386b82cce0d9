//! The command line. Each command is a module with its arguments and `run`; [`output`] prints.
//!
//! A new command: a module here, a variant of [`Command`], a line in [`Command::run`].

mod automount;
mod busy;
mod check;
mod criu;
mod ctl;
mod dump;
mod explain;
mod human;
mod list;
mod manual;
mod maps;
mod output;
mod progress;
mod restore;
mod show;
mod table;
mod top;

use anyhow::{Result, ensure};
use autofs_cr::discover::Target;
use autofs_cr::log;
use autofs_cr::sys::privilege::{self, Role};
use autofs_cr::sys::process;
use clap::{ArgAction, Args, Parser, Subcommand};
use output::Output;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  autofs-cr list                  who answers which mount
  autofs-cr check                 what would stand in the way
  autofs-cr dump -D ckpt --hold   write the mounts down; the daemon may die now:
                                  lookups wait
  autofs-cr restore -D ckpt --serve
                                  answer them, and serve the mounts from now on
  autofs-cr automount             serve /etc/auto.master
  autofs-cr top                   watch who waits, and on what

Exit codes:
  0  done
  1  failed, or `check` found something; the message says what to do
  2  wrong usage";

/// Checkpoint, restore and serve Linux autofs mounts
#[derive(Parser)]
#[command(name = "autofs-cr", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Tell more on stderr (-vv: everything)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    List(list::List),
    Check(check::Check),
    Dump(dump::Dump),
    Restore(restore::Restore),
    Show(show::Show),
    Automount(automount::Automount),
    Explain(explain::Explain),
    Criu(criu::CriuCommand),
    Maps(maps::Maps),
    Ctl(ctl::Ctl),
    Busy(busy::Busy),
    Top(top::Top),
    #[command(hide = true)]
    HoldPipes(dump::HoldPipes),
    #[command(hide = true)]
    Manual(manual::Manual),
}

impl Command {
    /// Which privileges it keeps. The holder first gets its descriptors.
    fn role(&self) -> Role {
        match self {
            Self::Show(_) | Self::Manual(_) => Role::Reader,
            Self::List(_) | Self::Check(_) | Self::Ctl(_) | Self::Busy(_) | Self::Top(_) => Role::Observer,
            // Those mount, or run programs of others.
            _ => Role::Mounter,
        }
    }

    /// Commands that mount say so before anything else fails for it.
    fn check_rights(&self) -> Result<()> {
        let name = match self {
            Self::Dump(_) => "dump",
            Self::Restore(_) => "restore",
            Self::Criu(_) => "criu",
            Self::Automount(automount) if automount.mounts() => "automount",
            _ => return Ok(()),
        };
        ensure!(privilege::may_mount(), "autofs-cr {name} needs CAP_SYS_ADMIN: run it as root");
        Ok(())
    }

    fn run(self, output: &mut Output) -> Result<ExitCode> {
        self.check_rights()?;
        match self {
            Self::List(list) => list.run(output),
            Self::Check(check) => check.run(output),
            Self::Dump(dump) => dump.run(output),
            Self::Restore(restore) => restore.run(output),
            Self::Show(show) => show.run(output),
            Self::Automount(automount) => automount.run(output),
            Self::Explain(explain) => explain.run(output),
            Self::Criu(criu) => criu.run(output),
            Self::Maps(maps) => maps.run(output),
            Self::Ctl(ctl) => ctl.run(output),
            Self::Busy(busy) => busy.run(output),
            Self::Top(top) => top.run(output),
            Self::HoldPipes(hold) => hold.run(),
            Self::Manual(manual) => manual.run(output),
        }
    }
}

/// Parse, run, report.
pub fn main() -> ! {
    let Cli { command, verbose } = parse(std::env::args_os());
    let verbose = match &command {
        Command::Automount(automount) => verbose.max(automount.verbosity()),
        _ => verbose,
    };
    let level = ["warn", "info,autofs_cr=debug", "trace"][usize::from(verbose.min(2))];
    log::begin(level, output::colours(&std::io::stderr()));
    if let Err(error) = privilege::keep(command.role()) {
        output::warn(format_args!("capabilities that are not needed are kept: {error}"));
    }
    let ExitCode(code) = match command.run(&mut Output::new()) {
        Ok(code) => code,
        Err(error) if output::reader_has_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    };
    process::end(code)
}

/// What the program ends with. (The standard library's does not tell its number.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(u8);

impl ExitCode {
    /// All is well.
    pub const SUCCESS: Self = Self(0);
    /// Something is not.
    pub const FAILURE: Self = Self(1);
}

impl From<u8> for ExitCode {
    fn from(code: u8) -> Self {
        Self(code)
    }
}

/// Arguments as they are given; those of automount(8), when that is the name we are called by.
fn parse(mut arguments: impl Iterator<Item = OsString>) -> Cli {
    let program = arguments.next().unwrap_or_else(|| "autofs-cr".into());
    let by_name = Path::new(&program).file_name() == Some(OsStr::new("automount"));
    let mut arguments = arguments.peekable();
    let automount = by_name || arguments.peek().is_some_and(|first| first == "automount");
    let inserted = by_name.then(|| "automount".into());
    let all = std::iter::once(program).chain(inserted);
    let mut cli = if automount {
        Cli::parse_from(all.chain(automount::arguments(arguments)))
    } else {
        Cli::parse_from(all.chain(arguments))
    };
    if let Command::Automount(automount) = &mut cli.command {
        automount.by_name = by_name;
    }
    cli
}

/// Whose mounts.
#[derive(Args, Clone, Default)]
pub struct TargetArgs {
    /// The mount namespace of this process, as seen from its root directory
    #[arg(long, value_name = "PID", conflicts_with = "mount_namespace")]
    tree: Option<i32>,

    /// The mount namespace of this file (/proc/PID/ns/mnt, or where one was bound)
    #[arg(long, value_name = "FILE")]
    mount_namespace: Option<PathBuf>,
}

impl TargetArgs {
    /// Without either: our own.
    pub fn target(&self) -> Target {
        match (self.tree, &self.mount_namespace) {
            (Some(pid), _) => Target::Process(pid),
            (None, Some(file)) => Target::Namespace(file.clone()),
            (None, None) => Target::Own,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    fn automount(args: &[&str]) -> automount::Automount {
        let arguments: Vec<OsString> = args.iter().map(OsString::from).collect();
        match parse(arguments.into_iter()).command {
            Command::Automount(automount) => automount,
            _ => unreachable!(),
        }
    }

    #[test]
    fn called_by_the_name_of_automount() {
        assert!(automount(&["/usr/sbin/automount", "-f", "/etc/auto.x"]).by_name);
        assert!(!automount(&["/usr/sbin/autofs-cr", "automount"]).by_name);
    }

    /// Every option of automount(8), short and long, with its value as it may be written there.
    #[test]
    fn options_of_automount() {
        let short =
            ["automount", "-f", "-v", "-d7", "-t30", "-n", "5", "-P6", "-M", "7", "-p", "/run/p", "-Da=b"];
        let more = ["-D", "c=d", "-S", "-r", "-O", "ro,nosuid", "-C", "-F", "auto.x"];
        let all = automount(&[&short[..], &more].concat());
        let long = [
            "automount",
            "--foreground",
            "--debug=7",
            "--timeout=30",
            "--negative-timeout",
            "5",
            "--positive-timeout=6",
            "--master-wait=7",
            "--pid-file=/run/p",
            "--define",
            "a=b",
            "--define=c=d",
            "--systemd-service",
            "--random-multimount-selection",
            "--global-options=ro,nosuid",
            "--dont-check-daemon",
            "--force",
            "auto.x",
        ];
        assert_eq!(format!("{all:?}"), format!("{:?}", automount(&long)));
        let given = all.given(None).unwrap();
        assert_eq!((given.timeout.unwrap().as_secs(), given.negative_timeout.unwrap().as_secs()), (30, 5));
        assert_eq!((given.positive_timeout.unwrap().as_secs(), given.master_wait), (6, Some(7)));
        assert_eq!(given.definitions, [("a".into(), b"b".to_vec()), ("c".into(), b"d".to_vec())]);
        assert_eq!(given.options, [b"ro".to_vec(), b"nosuid".to_vec()]);
        assert!(given.random_replica);
        assert_eq!(all.verbosity(), 2);
        assert_eq!(automount(&["automount", "--debug"]).verbosity(), 2);
        for alone in ["-m", "--dumpmaps", "-U", "--force-exit", "-V", "--version", "-h"] {
            let parsed = Cli::try_parse_from(["autofs-cr", "automount", alone]);
            assert_eq!(parsed.is_ok(), alone != "-h", "{alone}");
        }
    }

    #[test]
    fn a_target_is_one_of_three() {
        let target = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["autofs-cr", "list"], args].concat())?;
            match cli.command {
                Command::List(list) => Ok(list.target.target()),
                _ => unreachable!(),
            }
        };
        let parsed = |args: &[&str]| target(args).map_err(|error: clap::Error| error.kind());
        assert_eq!(parsed(&[]), Ok(Target::Own));
        assert_eq!(parsed(&["--tree", "7"]), Ok(Target::Process(7)));
        assert_eq!(parsed(&["--mount-namespace", "/ns"]), Ok(Target::Namespace("/ns".into())));
        assert_eq!(
            parsed(&["--tree", "7", "--mount-namespace", "/ns"]),
            Err(clap::error::ErrorKind::ArgumentConflict)
        );
    }
}
