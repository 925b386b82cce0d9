//! The criu command, run with the plugin: for trees of processes that no container runtime looks after.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The plugin's file.
pub const PLUGIN: &str = "autofs_cr_plugin.so";

/// The oldest CRIU that has the plugin's hooks.
const OLDEST: (u32, u32) = (4, 1);

/// How often its log is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How many of its errors are told.
const ERRORS: usize = 6;

/// CRIU could not be run, or it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// No such program.
    #[error("{} is not there: install CRIU {}.{} or newer, or tell where it is (--criu FILE)", .0.display(), OLDEST.0, OLDEST.1)]
    NotThere(PathBuf),
    /// It cannot be started.
    #[error("{} cannot be run: {error}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It tells no version.
    #[error("{} does not look like CRIU: it tells no version", .0.display())]
    NoVersion(PathBuf),
    /// Too old for the plugin.
    #[error("{} is CRIU {}.{}, which has no hooks for the plugin: install {}.{} or newer", program.display(), found.0, found.1, OLDEST.0, OLDEST.1)]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: (u32, u32),
    },
    /// The plugin is not installed.
    #[error("the plugin {PLUGIN} is not in {}: install it (scripts/install), or tell where it is (--libdir DIR)", list(.0))]
    NoPlugin(Vec<PathBuf>),
    /// It ran and failed.
    #[error("criu {action} failed ({status}), see {}{}", log.display(), lines(errors))]
    Failed {
        /// `dump` or `restore`.
        action: &'static str,
        /// Its exit status.
        status: ExitStatus,
        /// The errors of its log; the plugin's first.
        errors: Vec<String>,
        /// Where the log is.
        log: PathBuf,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

fn lines(errors: &[String]) -> String {
    let lines = errors.iter().map(|error| format!("\n  {error}"));
    errors.first().map(|_| ":").into_iter().map(str::to_owned).chain(lines).collect()
}

/// A CRIU that can carry autofs mounts.
#[derive(Clone, Debug)]
pub struct Criu {
    program: PathBuf,
    libdir: PathBuf,
    renumber: bool,
}

impl Criu {
    /// `program`: a path, or a name in `$PATH`. `libdir`: where the plugin is; if `None`, where it may be installed.
    pub fn find(program: &Path, libdir: Option<&Path>) -> Result<Self, CommandError> {
        let run = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => CommandError::NotThere(program.into()),
            _ => CommandError::Run { program: program.into(), error },
        };
        let told = Command::new(program).arg("--version").stdin(Stdio::null()).output().map_err(run)?;
        let found = version(&String::from_utf8_lossy(&told.stdout))
            .ok_or_else(|| CommandError::NoVersion(program.into()))?;
        if found < OLDEST {
            return Err(CommandError::TooOld { program: program.into(), found });
        }
        let places = libdir.map_or_else(usual_places, |dir| vec![dir.to_owned()]);
        let libdir = places.iter().find(|dir| dir.join(PLUGIN).exists()).cloned();
        let libdir = libdir.ok_or(CommandError::NoPlugin(places))?;
        Ok(Self { program: program.into(), libdir, renumber: false })
    }

    /// A restore with new device numbers where the old ones are taken, which systemd is told.
    #[must_use]
    pub fn renumbering(self, renumber: bool) -> Self {
        Self { renumber, ..self }
    }

    /// Run `criu ACTION OPTION...` on the images in `dir` to its end. `progress` gets every new stage.
    pub fn run(
        &self,
        action: &'static str,
        dir: &Path,
        options: &[OsString],
        progress: &mut dyn FnMut(&str),
    ) -> Result<Summary, CommandError> {
        let log = dir.join(format!("{action}.log"));
        let mut command = Command::new(&self.program);
        command.arg(action).arg("--images-dir").arg(dir).arg("--libdir").arg(&self.libdir);
        // Level 3: the plugin's own lines are there.
        command.args(["-v3", "--log-file"]).arg(format!("{action}.log")).args(options).stdin(Stdio::null());
        if self.renumber {
            command.env(super::RENUMBER, "yes");
        }
        // Of an earlier run.
        let _ = std::fs::remove_file(&log);
        let failed = |error| CommandError::Run { program: self.program.clone(), error };
        let child = command.spawn().map_err(failed)?;
        let (status, text) = follow(child, &log, progress).map_err(failed)?;
        match status.success() {
            true => Ok(Summary::of_log(&text)),
            false => Err(CommandError::Failed { action, status, errors: errors(&text), log }),
        }
    }
}

/// Where CRIU looks, and where an installation below another prefix would be.
fn usual_places() -> Vec<PathBuf> {
    let told = std::env::var_os("CRIU_LIBS_DIR").map(PathBuf::from);
    let beside = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join("lib/criu"));
    let mut places: Vec<_> = [told, Some("/usr/lib/criu".into()), beside()].into_iter().flatten().collect();
    places.dedup();
    places
}

/// Wait for its end; the whole log.
fn follow(
    mut child: Child,
    log: &Path,
    progress: &mut dyn FnMut(&str),
) -> std::io::Result<(ExitStatus, String)> {
    let (mut file, mut text, mut seen) = (None, Vec::new(), 0);
    loop {
        let ended = child.try_wait()?;
        file = file.or_else(|| File::open(log).ok());
        if let Some(file) = &mut file {
            file.read_to_end(&mut text)?;
        }
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let new = text.get(seen..whole).unwrap_or_default();
        if let Some(stage) = String::from_utf8_lossy(new).lines().filter_map(stage).next_back() {
            progress(stage);
        }
        seen = whole;
        match ended {
            Some(status) => return Ok((status, String::from_utf8_lossy(&text).into_owned())),
            None => std::thread::sleep(LOOK),
        }
    }
}

/// What CRIU begins with this line of its log.
fn stage(line: &str) -> Option<&'static str> {
    const STAGES: &[(&str, &str)] = &[
        ("autofs mounts in the container", "mounts"),
        ("Dumping task (pid: ", "processes"),
        ("Dumping finished", "the end"),
        ("autofs mounts in the images", "device numbers"),
        ("Forking task with ", "processes"),
        ("mnt: Restoring mount namespace", "mounts"),
        ("Opening fdinfo-s", "files"),
        ("without a master", "masters"),
        ("Restore finished", "the end"),
    ];
    STAGES.iter().find(|(text, _)| line.contains(text)).map(|(_, stage)| *stage)
}

/// What the log of a good run tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Autofs mounts, dumped or restored.
    pub mounts: usize,
    /// Restored mounts that nobody answers.
    pub without_master: usize,
    /// What the plugin warns of, and why mounts have no master.
    pub warnings: Vec<String>,
}

impl Summary {
    fn of_log(text: &str) -> Self {
        let ours = |line: &str| line.split_once("autofs-cr: ").map(|(_, rest)| rest.to_owned());
        let mut summary = Self::default();
        for line in text.lines().filter_map(ours) {
            let numbers: Vec<usize> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            match numbers[..] {
                [mounts] if line.contains("autofs mounts in the") => summary.mounts = mounts,
                [mounts, without] if line.ends_with("without a master") => {
                    (summary.mounts, summary.without_master) = (mounts, without);
                }
                _ => {}
            }
        }
        let warned = text.lines().filter_map(|line| line.split_once(" (autofs-cr): "));
        summary.warnings = warned.map(|(_, warning)| warning.to_owned()).collect();
        summary
    }
}

/// The errors of a log: the plugin's, then CRIU's.
fn errors(text: &str) -> Vec<String> {
    // That it failed is known. And it tries to raise a limit, says so when it may not, and goes on.
    let all = text.lines().filter(|line| {
        line.contains("Error (") && !line.contains("RLIMIT_NOFILE for self") && !line.ends_with(" FAILED.")
    });
    let message = |line: &str| {
        line.split_once("Error (")
            .and_then(|(_, rest)| rest.split_once("): "))
            .map(|(_, text)| text.to_owned())
    };
    let (ours, its): (Vec<_>, Vec<_>) = all.partition(|line| line.contains("Error (autofs-cr)"));
    ours.into_iter().chain(its).filter_map(message).take(ERRORS).collect()
}

/// Of `Version: 4.1.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "))?;
    let mut numbers = version.split(|char: char| !char.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("Version: 4.1.1\nGitID: v4.1.1\n"), Some((4, 1)));
        assert_eq!(version("Version: 4.2\n"), Some((4, 2)));
        assert_eq!(version("Usage: criu"), None);
        assert!((3, 17) < OLDEST && (10, 0) > OLDEST);
    }

    #[test]
    fn a_log_is_summed_up() {
        let log = "(00.1) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.2) autofs-cr: 3 autofs mounts in the images\n\
                   (00.3) Warn  (autofs-cr): device number 0:44 cannot be kept\n\
                   (00.4) autofs-cr: 3 autofs mounts, 1 without a master\n";
        let warnings = vec!["device number 0:44 cannot be kept".to_owned()];
        assert_eq!(Summary::of_log(log), Summary { mounts: 3, without_master: 1, warnings });
        assert_eq!(errors(log), Vec::<String>::new());
        assert_eq!(Summary::of_log("nothing"), Summary::default());
    }

    #[test]
    fn the_plugins_errors_come_first() {
        let log =
            "(00.2) Error (criu/mount.c:1): Can't dump\n(00.2) Error (autofs-cr): /mnt: why\n(00.3) done\n";
        assert_eq!(errors(log), ["/mnt: why", "Can't dump"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let none = Criu::find(Path::new("/nowhere/criu"), None).unwrap_err().to_string();
        assert!(none.starts_with("/nowhere/criu is not there: install CRIU 4.1 or newer"), "{none}");
        let other = Criu::find(Path::new("/bin/true"), None).unwrap_err().to_string();
        assert!(other.contains("does not look like CRIU"), "{other}");
    }
}
