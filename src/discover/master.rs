//! Which program answers a mount: the one that reads its pipe.

use super::facts::{End, Master, PipeEnd};
use super::proc::TaskDir;
use super::{mountinfo, unit};
use crate::sys::{DevNum, process::ProcessId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Name (`comm`) of the process that keeps read ends open after `dump --hold`. It reads nothing: it is no master.
pub const HOLDER_COMM: &str = "autofs-cr-hold";

/// A program, told by its executable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Program {
    Automount,
    Systemd,
    AutofsCr,
    Holder,
    Other,
}

impl Program {
    /// The executable's name decides, even after it was deleted by an upgrade; the name of the process only
    /// where the executable is not readable: any script can be called `automount`.
    fn of(exe: Option<&Path>, comm: &[u8]) -> Self {
        if comm == HOLDER_COMM.as_bytes() {
            return Self::Holder;
        }
        let exe = exe.and_then(Path::file_name).map(|name| name.as_encoded_bytes());
        let name = exe.unwrap_or(comm);
        match name.strip_suffix(b" (deleted)").unwrap_or(name) {
            b"automount" => Self::Automount,
            b"systemd" => Self::Systemd,
            b"autofs-cr" => Self::AutofsCr,
            _ => Self::Other,
        }
    }
}

/// A process that holds a pipe's read end.
#[derive(Clone, Debug)]
struct Reader {
    program: Program,
    pgrp: i32,
    /// Where it sees the autofs mounts, when its mount namespace is not the surveyed one.
    elsewhere: HashMap<DevNum, PathBuf>,
}

/// Tells masters; looks at each process once.
#[derive(Debug)]
pub struct Masters {
    mount_namespace: u64,
    readers: HashMap<ProcessId, Reader>,
}

impl Masters {
    /// For the mounts of this namespace.
    pub fn new(mount_namespace: u64) -> Self {
        Self { mount_namespace, readers: HashMap::new() }
    }

    /// Who of the holders of the pipe's ends answers the mount with number `dev` at `path`, owned by group
    /// `pgrp`? `None`: nobody of them.
    ///
    /// Several processes may hold the read end (a daemon forks helpers): a program that is known goes before
    /// one that is not, then the owner group's leader, its members, and the oldest.
    pub fn choose(&mut self, dev: DevNum, path: &Path, pgrp: i32, ends: &[PipeEnd]) -> Option<Master> {
        let reads = ends.iter().filter(|end| end.end == End::Read);
        let (end, reader) = reads
            .filter_map(|end| Some((end, self.reader(end)?.clone())))
            .filter(|(_, reader)| reader.program != Program::Holder)
            .min_by_key(|(end, reader)| {
                (
                    reader.program == Program::Other,
                    end.process.pid != pgrp,
                    reader.pgrp != pgrp,
                    end.process.start_time,
                    end.process.pid,
                )
            })?;
        let process = end.process;
        Some(match reader.program {
            Program::Automount => Master::Automount { process },
            Program::AutofsCr => Master::AutofsCr { process },
            Program::Systemd => Master::Systemd {
                process,
                unit: unit::name(reader.elsewhere.get(&dev).map_or(path, PathBuf::as_path), "automount"),
            },
            Program::Other | Program::Holder => Master::Unknown { process, comm: end.comm.clone() },
        })
    }

    fn reader(&mut self, end: &PipeEnd) -> Option<&Reader> {
        use std::collections::hash_map::Entry;
        match self.readers.entry(end.process) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(new) => {
                let dir = TaskDir::process(end.process.pid).ok()?;
                let stat = dir.stat().filter(|stat| dir.identity(stat) == end.process)?;
                let program = Program::of(dir.read_link("exe").ok().as_deref(), &stat.name);
                let elsewhere = match dir.namespace("mnt") {
                    Some(namespace) if program == Program::Systemd && namespace != self.mount_namespace => {
                        autofs_paths(&dir)
                    }
                    _ => HashMap::new(),
                };
                Some(new.insert(Reader { program, pgrp: stat.pgrp, elsewhere }))
            }
        }
    }
}

/// Where a process sees each autofs superblock.
fn autofs_paths(process: &TaskDir) -> HashMap<DevNum, PathBuf> {
    let file = process.read("mountinfo").unwrap_or_default();
    let entries = mountinfo::parse(&file).unwrap_or_default();
    let autofs = entries.iter().filter(|entry| entry.is_autofs());
    autofs.map(|entry| (entry.dev, mountinfo::path(entry.mount_point))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_by_their_executable() {
        let of = |exe: &str, comm: &str| Program::of(Some(Path::new(exe)), comm.as_bytes());
        assert_eq!(of("/usr/sbin/automount", "automount"), Program::Automount);
        assert_eq!(of("/usr/sbin/automount (deleted)", "automount"), Program::Automount);
        assert_eq!(of("/usr/lib/systemd/systemd", "systemd"), Program::Systemd);
        assert_eq!(of("/opt/autofs-cr", "autofs-cr"), Program::AutofsCr);
        assert_eq!(of("/opt/autofs-cr", HOLDER_COMM), Program::Holder);
        assert_eq!(of("/usr/bin/python3.11", "automount"), Program::Other);
        assert_eq!(of("/", "automount"), Program::Automount);
        assert_eq!(Program::of(None, b"systemd"), Program::Systemd);
        assert_eq!(Program::of(None, b"cat"), Program::Other);
    }

    fn end(pid: i32, start_time: u64, end: End) -> PipeEnd {
        PipeEnd { process: ProcessId { pid, start_time }, comm: format!("p{pid}"), fd: 3, end, flags: 0 }
    }

    fn masters(readers: &[(&PipeEnd, Program, i32)]) -> Masters {
        let reader = |program, pgrp| Reader { program, pgrp, elsewhere: HashMap::new() };
        Masters {
            mount_namespace: 0,
            readers: readers
                .iter()
                .map(|&(end, program, pgrp)| (end.process, reader(program, pgrp)))
                .collect(),
        }
    }

    #[test]
    fn the_sensible_one_of_several_holders() {
        let script = end(10, 1, End::Read);
        let leader = end(20, 2, End::Read);
        let helper = end(30, 3, End::Read);
        let holder = end(40, 0, End::Read);
        let mut masters = masters(&[
            (&script, Program::Other, 10),
            (&leader, Program::Automount, 20),
            (&helper, Program::Automount, 20),
            (&holder, Program::Holder, 40),
        ]);
        let mut choose = |pgrp, ends: &[&PipeEnd]| {
            let ends: Vec<_> = ends.iter().map(|&end| end.clone()).collect();
            masters.choose(DevNum::anonymous(5), Path::new("/mnt"), pgrp, &ends)
        };
        let automount = |end: &PipeEnd| Some(Master::Automount { process: end.process });
        let all = [&holder, &helper, &script, &leader];
        assert_eq!(choose(20, &all), automount(&leader));
        // started by a script: the group's leader is not the daemon
        assert_eq!(choose(10, &all), automount(&leader));
        assert_eq!(choose(20, &[&helper, &holder]), automount(&helper));
        assert_eq!(choose(40, &[&holder]), None);
        assert_eq!(
            choose(20, &[&script]),
            Some(Master::Unknown { process: script.process, comm: "p10".into() })
        );
        assert_eq!(choose(20, &[&end(20, 2, End::Write)]), None);
    }

    #[test]
    fn systemd_names_the_unit_by_the_path_that_it_sees() {
        let systemd = end(1, 1, End::Read);
        let mut masters = masters(&[(&systemd, Program::Systemd, 1)]);
        let dev = DevNum::anonymous(5);
        let unit = |masters: &mut Masters| match masters.choose(
            dev,
            Path::new("/srv/box/mnt/data"),
            1,
            std::slice::from_ref(&systemd),
        ) {
            Some(Master::Systemd { unit, .. }) => unit,
            other => panic!("{other:?}"),
        };
        assert_eq!(unit(&mut masters), "srv-box-mnt-data.automount");
        let inside = HashMap::from([(dev, "/mnt/data".into())]);
        masters.readers.get_mut(&systemd.process).unwrap().elsewhere = inside;
        assert_eq!(unit(&mut masters), "mnt-data.automount");
    }
}
