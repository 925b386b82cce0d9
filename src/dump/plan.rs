//! What a dump will do, decided from the facts alone.

use crate::attach::Target;
use crate::discover::escaped::escape;
use crate::discover::facts::{AutofsMount, End, Master, MountType, Pipe, Survey};
use crate::sys::process::ProcessId;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How the mounts are left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// As they were.
    #[default]
    LeaveRunning,
    /// As they were; a holder keeps the read ends of their pipes for this time, so that lookups wait when the master
    /// dies.
    Hold(Duration),
    /// Taken from their masters; waiters are stopped.
    Catatonic,
}

/// Which mounts, and what becomes of them.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// Only the mounts at these absolute paths, with what is mounted below them. Empty: all.
    pub paths: Vec<PathBuf>,
    /// None that a unit of systemd serves.
    pub without_units: bool,
    /// What becomes of them.
    pub mode: Mode,
}

/// Processes that matter.
#[derive(Clone, Debug, Default)]
pub struct Who {
    /// Our own process group.
    pub our_group: i32,
    /// The tree that is dumped: mounts with a master outside are foreign. `None`: no mount is.
    pub tree: Option<HashSet<i32>>,
}

/// What will be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DumpPlan {
    /// The mounts to dump, parents before children.
    pub mounts: Vec<AutofsMount>,
    /// Mounts that are left out, because their masters are foreign.
    pub foreign: Vec<PathBuf>,
    /// Mounts that are left out, because no path leads to them, and what hides each.
    pub hidden: Vec<(PathBuf, PathBuf)>,
    /// Who triggered a mount last is told to its owner alone. These masters will be asked.
    pub inquiries: Vec<Inquiry>,
    /// Mounts that have no owner, or are ours: we ask.
    pub ask_ourselves: Vec<Target>,
    /// Read ends that the masters have: packets may wait there, and a holder copies them. By the pipe's inode.
    pub pipes: BTreeMap<u64, ReadEnd>,
}

/// Questions that only a master may ask the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// In whose place.
    pub master: ProcessId,
    /// The owner group.
    pub group: i32,
    /// About which mounts.
    pub mounts: Vec<Target>,
}

/// The read end of a pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadEnd {
    /// Who has it.
    pub process: ProcessId,
    /// As which descriptor.
    pub fd: i32,
}

/// It cannot be done. Nothing was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Not one in the whole namespace.
    #[error(
        "there is no autofs mount in this mount namespace: name another one by --tree or --mount-namespace"
    )]
    NoMounts,
    /// None at a path that was named.
    #[error("no autofs mount at {}{}", shown(path), listed(near))]
    NoMountAt {
        /// As it was named.
        path: PathBuf,
        /// Mounts above, below or beside it.
        near: Vec<PathBuf>,
    },
    /// A mount that was named has a master outside the tree.
    #[error(
        "{}: process {} answers it, which is outside the tree that is dumped; leave it out, or dump without --tree", shown(path), .master
    )]
    Foreign {
        /// The mount.
        path: PathBuf,
        /// Its master.
        master: i32,
    },
    /// Every mount is foreign.
    #[error("every autofs mount here is answered from outside the tree; dump without --tree")]
    OnlyForeign,
    /// Every mount belongs to a unit, and those were not wanted.
    #[error("every autofs mount here belongs to a unit of systemd; dump without --without-units")]
    OnlyUnits,
    /// No mount to dump is left, or one that was named.
    #[error("{}: hidden by what is mounted on {}; unmount that, then dump", shown(path), shown(by))]
    Hidden {
        /// The mount.
        path: PathBuf,
        /// Where the other one is.
        by: PathBuf,
    },
    /// To make a mount catatonic one must be able to give it back.
    #[error(
        "{}: its master cannot be seen, so the mount could not be given back if anything failed; run as root in the pid namespace \
         of its master, or dump without --catatonic", shown(.0)
    )]
    MasterNotVisible(PathBuf),
    /// The kernel does not show the pipe.
    #[error("{}: this kernel does not show the pipe (CONFIG_CHECKPOINT_RESTORE is off); only a plain dump is possible", shown(.0))]
    PipeNotShown(PathBuf),
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

fn listed(paths: &[PathBuf]) -> String {
    match paths {
        [] => "; autofs-cr list tells where there are some".into(),
        paths => {
            let paths: Vec<_> = paths.iter().map(|path| shown(path)).collect();
            format!("; near it: {}", paths.join(", "))
        }
    }
}

/// Decide.
pub fn plan(survey: &Survey, wishes: &Wishes, who: &Who) -> Result<DumpPlan, PlanError> {
    if survey.mounts.is_empty() {
        return Err(PlanError::NoMounts);
    }
    let mut chosen = choose(survey, &wishes.paths)?;
    chosen.retain(|mount| !(wishes.without_units && matches!(mount.master, Master::Systemd { .. })));
    if chosen.is_empty() {
        return Err(PlanError::OnlyUnits);
    }
    let is_foreign = |mount: &AutofsMount| match (&who.tree, mount.master.process()) {
        (Some(tree), Some(process)) => !tree.contains(&process.pid),
        // its master is in a pid namespace that is not shown, and so is outside
        (Some(_), None) => mount.master == Master::NotVisible,
        (None, _) => false,
    };
    let mut plan = DumpPlan::default();
    for mount in chosen {
        if let Some(by) = &mount.hidden_by {
            plan.hidden.push((mount.path.clone(), by.clone()));
        } else if is_foreign(mount) {
            if let (Some(process), true) = (mount.master.process(), wishes.paths.contains(&mount.path)) {
                return Err(PlanError::Foreign { path: mount.path.clone(), master: process.pid });
            }
            plan.foreign.push(mount.path.clone());
        } else {
            possible(mount, wishes.mode)?;
            plan.mounts.push(mount.clone());
        }
    }
    let reached = |path: &PathBuf| plan.mounts.iter().any(|mount| mount.path.starts_with(path));
    let named = |path: &&(PathBuf, PathBuf)| wishes.paths.contains(&path.0) && !reached(&path.0);
    if let Some((path, by)) = plan.hidden.iter().find(named) {
        return Err(PlanError::Hidden { path: path.clone(), by: by.clone() });
    }
    match (plan.mounts.is_empty(), plan.hidden.first()) {
        (false, _) => {}
        (true, None) => return Err(PlanError::OnlyForeign),
        (true, Some((path, by))) => return Err(PlanError::Hidden { path: path.clone(), by: by.clone() }),
    }
    plan.find_questions(who.our_group);
    plan.find_pipes();
    Ok(plan)
}

/// The mounts at the paths, and all below them.
fn choose<'a>(survey: &'a Survey, paths: &[PathBuf]) -> Result<Vec<&'a AutofsMount>, PlanError> {
    for path in paths {
        if !survey.mounts.iter().any(|mount| mount.path == *path) {
            return Err(PlanError::NoMountAt { path: path.clone(), near: near_to(survey, path) });
        }
    }
    let wanted =
        |mount: &&AutofsMount| paths.is_empty() || paths.iter().any(|path| mount.path.starts_with(path));
    Ok(survey.mounts.iter().filter(wanted).collect())
}

/// Above, below, or in the same directory; five at most.
fn near_to(survey: &Survey, path: &Path) -> Vec<PathBuf> {
    let mounts = || survey.mounts.iter().map(|mount| &mount.path);
    let related = mounts().filter(|mount| path.starts_with(mount) || mount.starts_with(path));
    let beside = mounts().filter(|mount| mount.parent() == path.parent());
    let mut seen = HashSet::new();
    related.chain(beside).filter(|mount| seen.insert(*mount)).take(5).cloned().collect()
}

fn possible(mount: &AutofsMount, mode: Mode) -> Result<(), PlanError> {
    match (mode, mount.options.pipe()) {
        (Mode::Hold(_) | Mode::Catatonic, Pipe::NotShown) => Err(PlanError::PipeNotShown(mount.path.clone())),
        (Mode::Catatonic, Pipe::Inode(_)) if mount.master == Master::NotVisible => {
            Err(PlanError::MasterNotVisible(mount.path.clone()))
        }
        _ => Ok(()),
    }
}

impl DumpPlan {
    /// Each superblock once, at the first place where its root is attached: what is asked there holds everywhere.
    pub fn superblocks(&self) -> impl Iterator<Item = &AutofsMount> {
        let mut seen = HashSet::new();
        self.mounts.iter().filter(move |mount| mount.root == Path::new("/") && seen.insert(mount.dev))
    }

    /// Who triggered a mount is only of interest where something is mounted, and the kernel only tells it of direct
    /// mounts and offsets.
    ///
    /// systemd is not asked: it makes no use of it, and is better left alone.
    fn find_questions(&mut self, our_group: i32) {
        let mut inquiries: BTreeMap<i32, Inquiry> = BTreeMap::new();
        let mut ask_ourselves = Vec::new();
        for mount in self.superblocks() {
            let covered = !mount.covering.is_empty() || !mount.autofs_children.is_empty();
            if !covered || mount.options.mount_type == MountType::Indirect {
                continue;
            }
            let target = target(mount);
            let group = mount.options.pgrp;
            match (&mount.master, mount.master.process()) {
                _ if mount.catatonic || group == our_group => ask_ourselves.push(target),
                (Master::Systemd { .. }, _) | (_, None) => {}
                (_, Some(master)) => inquiries
                    .entry(group)
                    .or_insert(Inquiry { master, group, mounts: Vec::new() })
                    .mounts
                    .push(target),
            }
        }
        self.inquiries = inquiries.into_values().filter(|inquiry| inquiry.group != 0).collect();
        self.ask_ourselves = ask_ourselves;
    }

    fn find_pipes(&mut self) {
        let mut pipes = BTreeMap::new();
        for mount in &self.mounts {
            let mut reads = mount.pipe_ends.iter().filter(|end| end.end == End::Read);
            let end = match mount.master.process() {
                Some(process) => reads.find(|end| end.process == process),
                // a holder's
                None => reads.next(),
            };
            if let (Pipe::Inode(ino), Some(end)) = (mount.options.pipe(), end) {
                pipes.entry(ino).or_insert(ReadEnd { process: end.process, fd: end.fd });
            }
        }
        self.pipes = pipes;
    }

    /// The mounts that can be taken from a master: each superblock with a pipe, once.
    pub fn live(&self) -> Vec<Target> {
        self.superblocks().filter(|mount| !mount.catatonic).map(target).collect()
    }
}

fn target(mount: &AutofsMount) -> Target {
    Target { path: mount.path.clone(), dev: mount.dev }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::discover::facts::{AutofsOptions, CoveringMount, PipeEnd, Propagation};
    use crate::sys::DevNum;

    fn process(pid: i32) -> ProcessId {
        ProcessId { pid, start_time: 1 }
    }

    /// A direct mount with a master that is process and group `pid`, its pipe number 1000 + `pid`.
    pub(in crate::dump) fn mount(id: u64, path: &str, pid: i32) -> AutofsMount {
        let options =
            format!("rw,fd=5,pgrp={pid},timeout=60,minproto=5,maxproto=5,direct,pipe_ino={}", 1000 + pid);
        let read = |pid, comm: &str| PipeEnd {
            process: process(pid),
            comm: comm.into(),
            fd: 4,
            end: End::Read,
            flags: 0,
        };
        AutofsMount {
            mount_id: id,
            parent_id: 1,
            dev: DevNum::anonymous(id as u32),
            path: path.into(),
            root: "/".into(),
            source: "map".into(),
            options: AutofsOptions::parse(options.as_bytes()),
            mount_flags: Vec::new(),
            propagation: Propagation::default(),
            catatonic: false,
            pipe_ends: vec![read(9, "autofs-cr-hold"), read(pid, "automount")],
            master: Master::Automount { process: process(pid) },
            covering: Vec::new(),
            autofs_children: Vec::new(),
            waiters: Vec::new(),
            hidden_by: None,
        }
    }

    fn covered(mut mount: AutofsMount) -> AutofsMount {
        mount.covering.push(CoveringMount {
            mount_id: 900,
            path: mount.path.clone(),
            dev: DevNum::anonymous(9),
            root: "/".into(),
            fstype: "tmpfs".into(),
            source: "x".into(),
            mount_flags: Vec::new(),
            super_options: Vec::new(),
            propagation: Propagation::default(),
        });
        mount
    }

    fn catatonic(mut mount: AutofsMount) -> AutofsMount {
        mount.options.fd = -1;
        mount.options.pipe_ino = None;
        mount.catatonic = true;
        mount.pipe_ends.clear();
        mount.master = Master::Dead;
        mount
    }

    fn survey_of(mounts: Vec<AutofsMount>) -> Survey {
        Survey { mounts, ..Survey::default() }
    }

    fn us(our_group: i32) -> Who {
        Who { our_group, tree: None }
    }

    fn wish(paths: &[&str]) -> Wishes {
        Wishes { paths: paths.iter().map(PathBuf::from).collect(), ..Wishes::default() }
    }

    fn paths(plan: &DumpPlan) -> Vec<&str> {
        plan.mounts.iter().filter_map(|mount| mount.path.to_str()).collect()
    }

    #[test]
    fn a_path_stands_for_the_mounts_there_and_below() {
        let survey =
            survey_of(vec![mount(2, "/a", 7), mount(3, "/a/b", 7), mount(4, "/ab", 7), mount(5, "/c", 7)]);
        assert_eq!(paths(&plan(&survey, &wish(&[]), &us(1)).unwrap()), ["/a", "/a/b", "/ab", "/c"]);
        assert_eq!(paths(&plan(&survey, &wish(&["/c", "/a"]), &us(1)).unwrap()), ["/a", "/a/b", "/c"]);
    }

    #[test]
    fn a_wrong_path_is_answered_with_the_right_ones() {
        let mounts = survey_of(vec![mount(2, "/net", 7), mount(3, "/net/x/y", 7), mount(4, "/misc", 7)]);
        let error = plan(&mounts, &wish(&["/net/x"]), &us(1)).unwrap_err();
        assert_eq!(error.to_string(), "no autofs mount at /net/x; near it: /net, /net/x/y");
        let error = plan(&mounts, &wish(&["/mics"]), &us(1)).unwrap_err();
        assert_eq!(error.to_string(), "no autofs mount at /mics; near it: /net, /misc");
        let error = plan(&mounts, &wish(&["/far/away"]), &us(1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no autofs mount at /far/away; autofs-cr list tells where there are some"
        );
        assert_eq!(plan(&survey_of(vec![]), &wish(&[]), &us(1)), Err(PlanError::NoMounts));
    }

    #[test]
    fn foreign_mounts_are_left_out_unless_they_were_named() {
        let survey =
            survey_of(vec![mount(2, "/host", 7), mount(3, "/ours", 8), catatonic(mount(4, "/dead", 6))]);
        let tree = |pids: &[i32]| Who { our_group: 1, tree: Some(pids.iter().copied().collect()) };
        let made = plan(&survey, &wish(&[]), &tree(&[8])).unwrap();
        assert_eq!(paths(&made), ["/ours", "/dead"]);
        assert_eq!(made.foreign, [Path::new("/host")]);
        let foreign = PlanError::Foreign { path: "/host".into(), master: 7 };
        assert_eq!(plan(&survey, &wish(&["/host"]), &tree(&[8])), Err(foreign));
        let all_foreign = survey_of(vec![mount(2, "/host", 7)]);
        assert_eq!(plan(&all_foreign, &wish(&[]), &tree(&[])), Err(PlanError::OnlyForeign));
    }

    #[test]
    fn mounts_of_units_are_left_out_on_demand() {
        let mut unit = mount(2, "/unit", 1);
        unit.master = Master::Systemd { process: process(1), unit: "unit.automount".into() };
        let without = Wishes { without_units: true, ..Wishes::default() };
        let both = survey_of(vec![unit.clone(), mount(3, "/ours", 8)]);
        assert_eq!(paths(&plan(&both, &without, &us(1)).unwrap()), ["/ours"]);
        assert_eq!(plan(&survey_of(vec![unit]), &without, &us(1)), Err(PlanError::OnlyUnits));
    }

    #[test]
    fn hidden_mounts_are_left_out_unless_they_were_named() {
        let hidden = |id, path| AutofsMount { hidden_by: Some("/a".into()), ..mount(id, path, 7) };
        let survey = survey_of(vec![hidden(2, "/a/b"), mount(3, "/a/c", 7), hidden(4, "/a/c")]);
        let made = plan(&survey, &wish(&[]), &us(1)).unwrap();
        assert_eq!(paths(&made), ["/a/c"]);
        assert_eq!(made.hidden, [("/a/b".into(), "/a".into()), ("/a/c".into(), "/a".into())]);
        assert!(plan(&survey, &wish(&["/a/c"]), &us(1)).is_ok());
        let error = PlanError::Hidden { path: "/a/b".into(), by: "/a".into() };
        assert_eq!(plan(&survey, &wish(&["/a/c", "/a/b"]), &us(1)), Err(error));
        let error = PlanError::Hidden { path: "/a/b".into(), by: "/a".into() };
        assert_eq!(plan(&survey_of(vec![hidden(2, "/a/b")]), &wish(&[]), &us(1)), Err(error));
    }

    #[test]
    fn only_covered_direct_mounts_have_a_question_and_only_masters_ask() {
        let mut indirect = covered(mount(5, "/indirect", 7));
        indirect.options.mount_type = MountType::Indirect;
        let mut systemd = covered(mount(6, "/systemd", 1));
        systemd.master = Master::Systemd { process: process(1), unit: "systemd.automount".into() };
        let mut bound = covered(mount(2, "/bound", 7));
        bound.mount_id = 99;
        let made = plan(
            &survey_of(vec![
                covered(mount(2, "/a", 7)),
                bound,
                mount(3, "/idle", 7),
                covered(mount(4, "/b", 7)),
                indirect,
                systemd,
                covered(mount(7, "/c", 8)),
                covered(catatonic(mount(8, "/dead", 9))),
                covered(mount(9, "/mine", 50)),
            ]),
            &wish(&[]),
            &us(50),
        )
        .unwrap();
        let asked = |mounts: &[Target]| -> Vec<_> { mounts.iter().map(|mount| mount.path.clone()).collect() };
        let inquiries: Vec<_> =
            made.inquiries.iter().map(|inquiry| (inquiry.group, asked(&inquiry.mounts))).collect();
        assert_eq!(inquiries, [(7, vec!["/a".into(), "/b".into()]), (8, vec!["/c".into()])]);
        assert_eq!(asked(&made.ask_ourselves), [Path::new("/dead"), Path::new("/mine")]);
        assert_eq!(made.live().len(), 7);
    }

    #[test]
    fn a_pipe_is_read_by_its_master_else_by_a_holder() {
        let mut orphan = mount(3, "/orphan", 8);
        orphan.master = Master::Dead;
        orphan.pipe_ends.pop();
        let made =
            plan(&survey_of(vec![mount(2, "/a", 7), mount(4, "/b", 7), orphan]), &wish(&[]), &us(1)).unwrap();
        let pipes: Vec<_> = made.pipes.iter().map(|(ino, end)| (*ino, end.process.pid)).collect();
        assert_eq!(pipes, [(1007, 7), (1008, 9)]);
    }

    #[test]
    fn what_cannot_be_given_back_is_not_taken() {
        let mut unseen = mount(2, "/a", 7);
        unseen.master = Master::NotVisible;
        let mut hidden = mount(3, "/b", 7);
        hidden.options.pipe_ino = None;
        for (mount, error) in [
            (unseen, PlanError::MasterNotVisible("/a".into())),
            (hidden, PlanError::PipeNotShown("/b".into())),
        ] {
            let survey = survey_of(vec![mount]);
            let catatonic = Wishes { mode: Mode::Catatonic, ..Wishes::default() };
            assert_eq!(plan(&survey, &catatonic, &us(1)), Err(error));
            assert!(plan(&survey, &wish(&[]), &us(1)).is_ok());
        }
    }
}
