//! `autofs-cr check`.

use super::ExitCode;
use super::list::{gaps, shown, waiters};
use super::output::Output;
use super::table::Style;
use super::{TargetArgs, human};
use anyhow::Result;
use autofs_cr::discover::facts::{AutofsMount, End, Master, Pipe, Survey, Waiter};
use autofs_cr::discover::{Target, survey};
use autofs_cr::sys::features::{self, Features};
use autofs_cr::sys::mount::{MountFlags, new_superblock};
use autofs_cr::sys::process::copy_fd;
use caps::{CapSet, Capability};
use clap::Args;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// A lookup that is answered within this time is none to report.
const STUCK: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  autofs-cr check              this system, and the mounts of this namespace
  autofs-cr check --tree 812   likewise, with the mounts that process 812 sees
  autofs-cr check >/dev/null || logger 'autofs: see autofs-cr check'

Exit codes:
  0  all is well
  1  something is missing, or a mount has a problem
  2  wrong usage";

/// Can this system dump and restore, and are its autofs mounts well?
///
/// One line each: what was looked at, and what to do where it is not as it should be. Changes nothing.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    #[command(flatten)]
    pub target: TargetArgs,
}

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Finding {
    Ok(String),
    /// Something that the system lacks, and how to get it.
    Missing(String),
    /// Something that is wrong with a mount, and how to mend it.
    Problem(String),
}

impl Finding {
    fn of(is_well: bool, what: &str, what_to_do: &str) -> Self {
        if is_well { Self::Ok(what.into()) } else { Self::Missing(format!("{what}: {what_to_do}")) }
    }

    fn line(&self, output: &Output) -> String {
        let (word, style, text) = match self {
            Self::Ok(text) => ("ok", Style::Good, text),
            Self::Missing(text) => ("missing", Style::Bad, text),
            Self::Problem(text) => ("problem", Style::Bad, text),
        };
        format!("{}  {text}\n", style.paint(&format!("{word:7}"), output))
    }
}

impl Check {
    pub fn run(self, output: &mut Output) -> Result<ExitCode> {
        let features = features::get();
        let pipes = "the kernel shows the pipes of mounts";
        let mut findings = vec![
            kernel(),
            device(features),
            Finding::of(features.shows_pipes, pipes, "a kernel with CONFIG_CHECKPOINT_RESTORE"),
            mount_api(),
            descriptors(),
        ];
        findings.extend(privilege());
        findings.extend(mounts(&self.target.target()));
        output.print(&findings.iter().map(|finding| finding.line(output)).collect::<String>())?;
        let is_well = findings.iter().all(|finding| matches!(finding, Finding::Ok(_)));
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn kernel() -> Finding {
    let types = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = types.lines().any(|line| line.split('\t').next_back() == Some("autofs"));
    Finding::of(known, "the kernel has autofs", "modprobe autofs4, or a kernel with CONFIG_AUTOFS_FS")
}

fn device(features: &Features) -> Finding {
    match &features.control {
        Ok((major, minor)) => Finding::Ok(format!("/dev/autofs answers, version {major}.{minor}")),
        Err(error) => Finding::Missing(error.to_string()),
    }
}

fn mount_api() -> Finding {
    match new_superblock::<&str>("tmpfs", Path::new("autofs-cr-check"), &[], MountFlags::empty()) {
        Ok(_) => Finding::Ok("the mount API works".into()),
        Err(error) => Finding::Missing(format!("the mount API (Linux 5.12 or newer, and root): {error}")),
    }
}

fn descriptors() -> Finding {
    let copy = fs::File::open("/proc/self/stat").map(|file| copy_fd(own_pid(), file.as_raw_fd()));
    let works = matches!(copy, Ok(Ok(_)));
    Finding::of(works, "descriptors of other processes can be copied", "Linux 5.6 or newer (pidfd_getfd)")
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn privilege() -> Vec<Finding> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    vec![
        Finding::of(has(Capability::CAP_SYS_ADMIN), "CAP_SYS_ADMIN (mounts, /dev/autofs)", "run as root"),
        Finding::of(
            has(Capability::CAP_SYS_PTRACE),
            "CAP_SYS_PTRACE (holding programs while a mount changes hands)",
            "run as root",
        ),
        Finding::of(initial, "the initial user namespace", "run outside of the container's user namespace"),
        Finding::of(scope.trim() != "3", "ptrace is allowed", "boot with kernel.yama.ptrace_scope below 3"),
    ]
}

fn mounts(target: &Target) -> Vec<Finding> {
    let survey = match stuck(target) {
        Ok(survey) => survey,
        Err(error) => return vec![Finding::Missing(format!("the mounts: {error}"))],
    };
    let mut findings: Vec<_> = gaps(&survey).map(Finding::Missing).collect();
    findings.extend(problems(&survey).into_iter().map(Finding::Problem));
    if findings.is_empty() {
        findings.push(Finding::Ok(match survey.mounts.len() {
            0 => "no autofs mounts".into(),
            n => format!("{}: no master is dead, nobody is stuck", human::count(n, "autofs mount")),
        }));
    }
    findings
}

/// A survey in which the waiters are those that have waited too long.
fn stuck(target: &Target) -> Result<Survey> {
    let mut first = survey(target)?;
    let visitors = |waiters: &mut Vec<Waiter>| waiters.retain(|waiter| !waiter.expiring);
    all_waiters(&mut first).for_each(visitors);
    if all_waiters(&mut first).all(|waiters| waiters.is_empty()) {
        return Ok(first);
    }
    std::thread::sleep(STUCK);
    let mut second = survey(target)?;
    let known: Vec<Waiter> = all_waiters(&mut first).flat_map(|waiters| waiters.clone()).collect();
    all_waiters(&mut second).for_each(|waiters| waiters.retain(|waiter| known.contains(waiter)));
    Ok(second)
}

fn all_waiters(survey: &mut Survey) -> impl Iterator<Item = &mut Vec<Waiter>> {
    let placed = survey.mounts.iter_mut().map(|mount| &mut mount.waiters);
    placed.chain([&mut survey.unplaced_waiters])
}

/// What is wrong, in a sentence each.
fn problems(survey: &Survey) -> Vec<String> {
    let mut problems: Vec<_> = survey.mounts.iter().filter_map(problem).collect();
    if !survey.unplaced_waiters.is_empty() {
        problems.push(format!(
            "{} waited for more than {} s on one of these mounts: see what its master does",
            waiters(&survey.unplaced_waiters),
            STUCK.as_secs()
        ));
    }
    problems
}

fn problem(mount: &AutofsMount) -> Option<String> {
    let path = shown(&mount.path);
    let text = match (&mount.master, mount.options.pipe()) {
        (_, Pipe::Catatonic) => {
            "is catatonic: keys are not found, a direct mount looks empty: restart the daemon that serves it, or autofs-cr restore".into()
        }
        (Master::Dead, _) if mount.pipe_ends.iter().any(|end| end.end == End::Read) => {
            "has a dead master; a holder keeps its requests, and lookups wait: autofs-cr restore".into()
        }
        (Master::Dead, _) => {
            "has a dead master, and lookups will fail: restart the daemon, or autofs-cr restore".into()
        }
        // foreign, or one of which gaps() tells
        (Master::NotVisible, _) => return None,
        _ if !mount.waiters.is_empty() => {
            format!("keeps {} waiting: see what its master does", waiters(&mount.waiters))
        }
        _ => return None,
    };
    Some(format!("{path} {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_each_mount() {
        let survey: Survey = serde_json::from_str(include_str!("../../tests/data/list.json")).unwrap();
        insta::assert_snapshot!(problems(&survey).join("\n"));
    }

    #[test]
    fn a_line_says_what_to_do() {
        let output = Output { width: None, colours: false };
        assert_eq!(Finding::of(true, "a thing", "get it").line(&output), "ok       a thing\n");
        assert_eq!(Finding::of(false, "a thing", "get it").line(&output), "missing  a thing: get it\n");
    }
}
