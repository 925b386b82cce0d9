//! A dump, seen from CRIU's main process: every task of the container is stopped.

use super::attendant::{Attendant, Request};
use super::foreign::{self, Seen};
use super::limits::{self, Limit};
use super::owner::{self, Eyes, Owner};
use super::parked::{self, Parked};
use super::relay;
use super::tree::{Member, Tree};
use crate::attach;
use crate::discover::facts::{AutofsMount, End, Master, PipeEnd};
use crate::discover::survey::survey_among;
use crate::discover::{DiscoverError, Target, survey};
use crate::faults;
use crate::image::checkpoint::DumpedMount;
use crate::image::{File, ImageError, criu};
use crate::sys::control::Control;
use crate::sys::packet::V5_SIZE;
use crate::sys::process::{ProcessId, copy_fd};
use crate::sys::tracee::Held;
use crate::sys::{DevNum, Errno};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A mount cannot be dumped, and so neither can the container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The mount tables could not be read.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// CRIU cannot carry that many.
    #[error(transparent)]
    Limit(#[from] Limit),
    /// What is inside could not be read.
    #[error("{}: {why}", path.display())]
    Inside {
        /// The mount.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Another call.
    #[error("{}: cannot {what}: {errno}", path.display())]
    Call {
        /// The mount.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The facts have no such mount: CRIU's table and ours differ.
    #[error("no autofs mount {0} in the container's mount tables")]
    Unknown(DevNum),
    /// A request that the master has not read.
    #[error("{}: {bytes} bytes of requests wait in the pipe; try again when they are answered", path.display())]
    Unread {
        /// The mount.
        path: PathBuf,
        /// How many.
        bytes: u64,
    },
    /// The master is outside the container.
    #[error("{}: its master is not in the container: {who}", path.display())]
    Foreign {
        /// The mount.
        path: PathBuf,
        /// What is known of it.
        who: String,
    },
    /// The process apart.
    #[error("the process that reads what is in the container's autofs mounts failed: {0}")]
    Attendant(Errno),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] faults::Fault),
}

/// A place of a superblock.
#[derive(Debug)]
struct Place {
    /// The facts as this process sees them.
    seen: AutofsMount,
    /// As the container does, and what is inside.
    dumped: DumpedMount,
    /// Why that is not known.
    unknown: Option<String>,
}

/// What is known of the container's autofs mounts.
#[derive(Debug)]
pub struct Dump {
    tree: Tree,
    /// Every place of every superblock. Where namespaces share one, the places of the first.
    mounts: Vec<Place>,
    /// Where the places of a superblock are among them.
    places: HashMap<DevNum, Vec<usize>>,
    warnings: Vec<String>,
    parked: Vec<Parked>,
    /// By which inode automount(8) knows the root of a direct or offset mount.
    inodes: HashMap<DevNum, u64>,
    /// Mounts of the host's automounter, and what is mounted below them.
    foreign: Vec<Seen>,
    /// Below the root of the container's cgroup namespace.
    cgroups: Vec<PathBuf>,
    /// Who reads what is in the mounts; `None` when that is known.
    attendant: Option<Attendant>,
    /// The superblocks that it reads, in its order.
    asked: Vec<Vec<DevNum>>,
}

impl Dump {
    /// The facts of the container whose root process is `root`; `None` when it has no autofs mounts. We trace all
    /// of its processes, and they are stopped. `quiet`: after a [`Lull`](super::Lull), nobody waits for an answer. What is in
    /// the mounts is not known before [`Dump::complete`]: the attendant reads it, or another one.
    pub fn begin(root: i32, quiet: bool, attendant: Option<Attendant>) -> Result<Option<Self>, DumpError> {
        faults::point("container.awake")?;
        let tree = Tree::of(root);
        let mut dump = Self {
            tree,
            mounts: Vec::new(),
            places: HashMap::new(),
            warnings: Vec::new(),
            parked: Vec::new(),
            inodes: HashMap::new(),
            foreign: Vec::new(),
            cgroups: Vec::new(),
            attendant: None,
            asked: Vec::new(),
        };
        let mut looks = Vec::new();
        let mut known: HashSet<DevNum> = HashSet::new();
        for member in dump.tree.own_mount_namespaces().into_iter().copied().collect::<Vec<_>>() {
            let mut mounts = dump.survey(&member)?;
            mounts.retain(|mount| !known.contains(&mount.dev));
            dump.inodes.extend(relay::look_behind(&dump.tree, &mut mounts));
            if member.pid == root {
                dump.foreign = foreign::find(root, &mounts, |mount| dump.is_inside(mount))?;
                let foreign: HashSet<u64> = dump.foreign.iter().map(|seen| seen.mount.mount_id).collect();
                let foreign = |mount: &&AutofsMount| foreign.contains(&mount.mount_id);
                known.extend(mounts.iter().filter(foreign).map(|mount| mount.dev));
                mounts.retain(|mount| !known.contains(&mount.dev));
            }
            known.extend(mounts.iter().map(|mount| mount.dev));
            looks.extend(dump.add(&member, mounts));
        }
        if dump.mounts.is_empty() && dump.foreign.is_empty() {
            return Ok(None);
        }
        let question = Request::Look { root, mounts: looks };
        // One that has died since is no reason to fail.
        let asked = attendant
            .filter(|attendant| attendant.ask(&question).is_ok())
            .map_or_else(|| Attendant::start().and_then(|new| new.ask(&question).map(|()| new)), Ok);
        dump.attendant = Some(asked.map_err(DumpError::Attendant)?);
        dump.check_limits()?;
        let mut pipes = HashSet::new();
        // Of another's pipe nothing is taken.
        let ours = |mount: &&AutofsMount| !mount.catatonic && dump.is_inside(mount);
        let live = dump.mounts.iter().map(|place| &place.seen).filter(ours);
        for mount in live.filter(|mount| pipes.insert(mount.options.pipe_ino)) {
            if quiet { drain(mount) } else { unread(mount) }?;
        }
        dump.park();
        Ok(Some(dump))
    }

    /// Wait for what is in the mounts, and ask their masters. Everybody is still stopped. Returns what will be lost, though the dump
    /// goes on; `None` when it was complete before.
    pub fn complete(&mut self) -> Result<Option<Vec<String>>, DumpError> {
        let Some(attendant) = self.attendant.take() else { return Ok(None) };
        let found = attendant.answer().map_err(DumpError::Attendant)?;
        let devs = std::mem::take(&mut self.asked).into_iter().flatten();
        let inside: HashMap<_, _> = devs.zip(found.mounts.into_iter().flatten()).collect();
        for place in &mut self.mounts {
            match inside.get(&place.seen.dev) {
                Some(Ok(inside)) => {
                    let dumped = &mut place.dumped;
                    (dumped.root_mode, dumped.root_uid, dumped.root_gid) =
                        (inside.mode, inside.uid, inside.gid);
                    dumped.tree.clone_from(&inside.entries);
                    if dumped.facts.known_by_inode() {
                        self.inodes.entry(dumped.facts.dev).or_insert(inside.ino);
                    }
                    place.unknown = None;
                }
                Some(Err(why)) => place.unknown = Some(why.clone()),
                None => {}
            }
        }
        let mut warnings = self.ask_owners();
        match found.cgroups {
            Ok(found) => self.cgroups = found.into_iter().map(PathBuf::from).collect(),
            Err(why) => warnings.push(format!("cgroups without processes are lost: {why}")),
        }
        Ok(Some(warnings))
    }

    /// What CRIU must take for external mounts: where the container has them, and their names.
    pub fn externals(&self) -> impl Iterator<Item = (&Path, String)> {
        self.foreign.iter().map(|seen| (seen.place.as_path(), seen.mount.name()))
    }

    /// When CRIU has written its images: where several are stacked at one place, it gave all of them one name.
    pub fn name_externals(&self, dir: BorrowedFd<'_>) -> Result<(), ImageError> {
        let mut places = HashSet::new();
        match self.foreign.iter().all(|seen| places.insert(&seen.place)) {
            true => Ok(()),
            false => criu::name_externals(dir),
        }
    }

    /// The image of the inodes by which masters know their mounts; `None` when no master does. Complete, as the next.
    pub fn roots_image(&self) -> Option<File> {
        (!self.inodes.is_empty()).then(|| criu::encode_roots(&self.inodes))
    }

    /// The image of the container's cgroups; `None` when it has none of its own.
    pub fn cgroups_image(&self) -> Option<File> {
        (!self.cgroups.is_empty()).then(|| criu::encode_cgroups(&self.cgroups))
    }

    /// The image of those; `None` when there are none.
    pub fn foreign_image(&self) -> Option<File> {
        (!self.foreign.is_empty()).then(|| criu::encode_foreign(self.foreign.iter().map(|seen| &seen.mount)))
    }

    /// Write down what serves them on the host, into CRIU's image directory. Returns what could not be.
    pub fn record_host(&self, dir: BorrowedFd<'_>) -> Vec<String> {
        if self.foreign.is_empty() { Vec::new() } else { foreign::record(dir, &self.foreign) }
    }

    /// How many places have an autofs mount.
    pub fn places(&self) -> usize {
        self.mounts.len()
    }

    /// Nothing was changed yet.
    fn check_limits(&mut self) -> Result<(), DumpError> {
        let inner = self.mounts.iter().map(|place| &place.dumped.facts);
        let pipes = limits::pipes(inner);
        limits::of_dump(&pipes)?;
        // It may be restored where there is more room.
        let here = limits::buffer().map_or(Ok(()), |buffer| limits::of_restore(&pipes, buffer));
        self.warnings
            .extend(here.err().map(|limit| format!("a restore on a machine like this one: {limit}")));
        Ok(())
    }

    /// Descriptors that CRIU would refuse are taken away.
    fn park(&mut self) {
        let mounts: Vec<_> = self.mounts.iter().map(|place| &place.seen).collect();
        let inner = self.mounts.iter().map(|place| &place.dumped.facts);
        let owners: BTreeMap<i32, &Member> = inner
            .filter_map(|facts| owner::of(&self.tree, facts))
            .map(|member| (member.pid, member))
            .collect();
        for member in owners.into_values() {
            match parked::park(member, &mounts) {
                Ok(parked) => self.parked.extend(parked),
                Err(error) => self.warnings.push(format!("descriptors on covered mounts: {error}")),
            }
        }
    }

    /// The image of the descriptors that were taken away; `None` when there are none.
    pub fn parked_image(&self) -> Option<File> {
        let descriptor = |parked: &Parked| {
            let descriptor = parked.descriptor;
            (descriptor.inner, descriptor.fd, descriptor.dev.minor, descriptor.cloexec)
        };
        (!self.parked.is_empty()).then(|| criu::encode_parked(self.parked.iter().map(descriptor)))
    }

    /// The dump is over, well or not, and everybody is still stopped: what was taken away is given back. Returns
    /// what could not be.
    pub fn end(self) -> Vec<String> {
        let failed = self.parked.iter().filter_map(|parked| parked.unpark().err());
        let failed = failed.map(|error| format!("a descriptor is lost: {error}")).collect();
        // Programs are frozen until CRIU, which ends now, goes on: thousands of small pieces of memory go with it.
        std::mem::forget((self.mounts, self.places));
        failed
    }

    /// What will be lost, though the dump goes on.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The image of all mounts; [`Dump::image`] has what is to be appended for each.
    pub fn mounts_image(&self) -> File {
        criu::begin_mounts()
    }

    /// What the superblock `dev` adds to the image of all mounts; nothing when it was asked for before.
    pub fn image(&mut self, dev: DevNum) -> Result<Vec<u8>, DumpError> {
        let places = std::mem::take(self.places.get_mut(&dev).ok_or(DumpError::Unknown(dev))?);
        let mut found = Vec::with_capacity(places.len());
        for position in places {
            let Place { seen: mount, dumped, unknown } = &self.mounts[position];
            if let Some(why) = unknown.clone() {
                return Err(DumpError::Inside { path: mount.path.clone(), why });
            }
            faults::point("container.parked")?;
            if !mount.catatonic {
                self.master_is_inside(mount)?;
            }
            found.push((position, dumped));
        }
        Ok(criu::encode(found))
    }

    /// The mounts that a member sees, with those who read their pipes: processes of the container, so that others are looked at
    /// only where there is none (the host's automounter, a relay).
    fn survey(&self, member: &Member) -> Result<Vec<AutofsMount>, DiscoverError> {
        let space = Target::Process(member.pid);
        let inside = self.tree.members.iter().map(|member| member.pid).collect();
        let mounts = survey_among(&space, inside)?.mounts;
        let read = |mount: &AutofsMount| mount.catatonic || self.is_inside(mount);
        if mounts.iter().all(read) { Ok(mounts) } else { Ok(survey(&space)?.mounts) }
    }

    /// Mounts of one namespace; what is to be read for them.
    fn add(&mut self, member: &Member, mounts: Vec<AutofsMount>) -> Option<(i32, Vec<attach::Target>)> {
        let mut seen = HashSet::new();
        let first = mounts.iter().filter(|mount| seen.insert(mount.dev));
        let targets: Vec<_> =
            first.map(|mount| attach::Target { path: mount.path.clone(), dev: mount.dev }).collect();
        for mount in mounts {
            let dumped = DumpedMount::of(self.inner(&mount));
            self.places.entry(mount.dev).or_default().push(self.mounts.len());
            self.mounts.push(Place { seen: mount, dumped, unknown: Some("it was not looked at".to_owned()) });
        }
        self.asked.push(targets.iter().map(|target| target.dev).collect());
        (!targets.is_empty()).then_some((member.pid, targets))
    }

    /// Requesters and timeouts of keys. Where they cannot be had the restore goes without; returns why.
    fn ask_owners(&mut self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut by_owner: BTreeMap<i32, Vec<&mut DumpedMount>> = BTreeMap::new();
        let mounts = self.mounts.iter_mut().map(|place| &mut place.dumped);
        for dumped in mounts.filter(|dumped| owner::knows_more(dumped)) {
            if let Some(owner) = owner::of(&self.tree, &dumped.facts) {
                by_owner.entry(owner.pid).or_default().push(dumped);
            }
        }
        if by_owner.is_empty() {
            return warnings;
        }
        let Ok(control) = Control::open() else { return warnings };
        for (pid, mounts) in by_owner {
            let Ok(eyes) = Eyes::of(pid, &control, &self.tree) else { continue };
            let (roots, mut mounts): (Vec<_>, Vec<_>) =
                mounts.into_iter().filter_map(|mount| Some((eyes.open(&mount.facts).ok()?, mount))).unzip();
            drop(eyes);
            let mut held = Held::adopt(pid);
            let asked = Owner::new(&mut held, &control).and_then(|owner| owner.ask(&roots, &mut mounts));
            if let Err(error) = asked.and_then(|()| held.release()) {
                warnings.push(format!("requesters and timeouts of keys are lost: {error}"));
            }
        }
        warnings
    }

    /// Somebody in the container reads the pipe.
    fn is_inside(&self, mount: &AutofsMount) -> bool {
        let inside = |end: &PipeEnd| self.tree.by_pid(end.process.pid).is_some();
        mount.pipe_ends.iter().filter(|end| end.end == End::Read).any(inside)
    }

    fn master_is_inside(&self, mount: &AutofsMount) -> Result<(), DumpError> {
        let who = match &mount.master {
            _ if self.is_inside(mount) => return Ok(()),
            // Nobody will ever read it: the restored mount is catatonic.
            Master::Dead => return Ok(()),
            Master::Automount { process }
            | Master::Systemd { process, .. }
            | Master::AutofsCr { process }
            | Master::Unknown { process, .. } => format!("it is process {}", process.pid),
            Master::NotVisible => "no process is seen to read its pipe".to_owned(),
        };
        Err(DumpError::Foreign { path: mount.path.clone(), who })
    }

    /// The facts with the numbers that the container uses for its processes.
    fn inner(&self, mount: &AutofsMount) -> AutofsMount {
        let translate = |id: ProcessId| Some(ProcessId { pid: self.tree.by_pid(id.pid)?.inner, ..id });
        let ends = mount.pipe_ends.iter();
        let ends = ends.filter_map(|end| Some(PipeEnd { process: translate(end.process)?, ..end.clone() }));
        let mut facts = mount.clone();
        facts.pipe_ends = ends.collect();
        facts.options.pgrp = self.inner_group(mount.options.pgrp);
        facts.waiters.clear();
        facts.master = match &mount.master {
            Master::Automount { process } => translate(*process).map(|process| Master::Automount { process }),
            Master::AutofsCr { process } => translate(*process).map(|process| Master::AutofsCr { process }),
            Master::Systemd { process, unit } => {
                translate(*process).map(|process| Master::Systemd { process, unit: unit.clone() })
            }
            Master::Unknown { process, comm } => {
                translate(*process).map(|process| Master::Unknown { process, comm: comm.clone() })
            }
            Master::Dead | Master::NotVisible => None,
        }
        .unwrap_or(Master::Dead);
        facts
    }

    /// The owner group's number in the container; 0 when nobody of it lives there.
    fn inner_group(&self, group: i32) -> i32 {
        let in_group = |member: &&Member| {
            ProcessId::of(member.pid).and_then(ProcessId::group).is_ok_and(|its| its == group)
        };
        match self.tree.by_pid(group) {
            Some(leader) if leader.inner_group == leader.inner => leader.inner,
            _ => self.tree.members.iter().find(in_group).map_or(0, |member| member.inner_group),
        }
    }
}

/// A request in the pipe would be lost.
fn unread(mount: &AutofsMount) -> Result<(), DumpError> {
    in_pipe(mount, |_, bytes| match bytes {
        0 => Ok(()),
        bytes => Err(DumpError::Unread { path: mount.path.clone(), bytes }),
    })
}

/// Take out what nobody waits for: CRIU would restore it as bytes, not as packets.
fn drain(mount: &AutofsMount) -> Result<(), DumpError> {
    let mut packet = [0; 2 * V5_SIZE];
    in_pipe(mount, |pipe, mut bytes| {
        let failed = |errno| DumpError::Call { path: mount.path.clone(), what: "empty its pipe", errno };
        while bytes > 0 {
            rustix::io::read(pipe, &mut packet).map_err(failed)?;
            bytes = rustix::io::ioctl_fionread(pipe).map_err(failed)?;
        }
        Ok(())
    })
}

/// With every reader's descriptor of the pipe, and the number of bytes in it.
fn in_pipe(
    mount: &AutofsMount,
    mut act: impl FnMut(&OwnedFd, u64) -> Result<(), DumpError>,
) -> Result<(), DumpError> {
    let mut seen = HashSet::new();
    let mut readers = mount.pipe_ends.iter().filter(|end| end.end == End::Read && seen.insert(end.process));
    readers.try_for_each(|end| {
        let failed = |errno| DumpError::Call { path: mount.path.clone(), what: "look into its pipe", errno };
        let pipe = copy_fd(end.process.pid, end.fd).map_err(failed)?;
        let bytes = rustix::io::ioctl_fionread(&pipe).map_err(failed)?;
        act(&pipe, bytes)
    })
}
