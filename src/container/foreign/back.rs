//! Foreign mounts at a restore: the host's automounter, or our engine where it has none, mounts what the container had
//! mounted; then CRIU is given copies of all these mounts to bind.
//!
//! The copies live in a mount namespace of CRIU's own, made for them, so that nobody else sees them and nothing stays
//! behind, however CRIU ends. A copy is needed because a path leads to the top of what is stacked at it, and
//! CRIU wants the trigger below, too.

use super::HOST_IMAGE;
use crate::container::apart;
use crate::discover::mountinfo::{self, Entry};
use crate::discover::{DiscoverError, Target, survey};
use crate::faults;
use crate::image::criu::Foreign;
use crate::image::{ImageError, criu};
use crate::sys::control::{Control, ControlError};
use crate::sys::mount::{self, Change, DetachedMount, MountError, MountFlags};
use crate::sys::process::ProcessId;
use crate::sys::{DevNum, Errno, io_errno, mountns};
use rustix::fs::CWD;
use rustix::process::Signal;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the copies are, in CRIU's own namespace.
const COPIES: &str = "/run/autofs-cr/foreign";

/// How long the host's automounter may take to mount everything, seconds.
const PATIENCE: u32 = 120;

/// The host's mounts cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForeignError {
    /// The images.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The host's mount table.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The process that looks after the host's mounts says why.
    #[error("the host's automounter: {0}")]
    Host(String),
    /// It did not end in time, or could not be started.
    #[error("the host's automounter does not mount what the container had mounted: {0}")]
    Gone(Errno),
    /// The host has no such mount.
    #[error("{}: {} on the host", path.display(), if *.autofs { "no automounter serves it" } else { "nothing is mounted there" })]
    Missing {
        /// Where.
        path: PathBuf,
        /// An autofs mount?
        autofs: bool,
    },
    /// A namespace of CRIU's own.
    #[error("CRIU can have no mount namespace of its own: {0}")]
    Namespace(Errno),
    /// A copy.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The trigger below what is mounted on it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Stopped by a test.
    #[error(transparent)]
    Fault(#[from] faults::Fault),
}

/// What CRIU has to be told, and what the user should know.
#[derive(Debug, Default)]
pub struct Copies {
    /// Name in the images, and where the mount is.
    pub places: Vec<(String, PathBuf)>,
    /// Mounts that will not be as they were.
    pub warnings: Vec<String>,
    /// While it is open the host's mounts are kept in use. If nothing is sent before it is closed, our engine ends that was
    /// started for them.
    in_use: Option<OwnedFd>,
}

impl Copies {
    /// The container is restored: what serves the mounts stays.
    pub fn keep(&self) {
        // Where nobody listens, nobody ends it.
        let _ = self.in_use.as_ref().map(|socket| apart::send(socket, "", &[]));
    }
}

/// Have the host's mounts that are in the images of `dir`, and copy them. To be called before CRIU starts any process: it
/// gets a mount namespace of its own when there are such mounts.
pub fn copies(dir: BorrowedFd<'_>) -> Result<Copies, ForeignError> {
    let mounts = criu::read_foreign(dir)?;
    if mounts.is_empty() {
        return Ok(Copies::default());
    }
    let image = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd()));
    let host = ask_host(&image.join(HOST_IMAGE), &mounts)?;
    faults::point("foreign.mounted")?;
    mountns::unshare_slave().map_err(ForeignError::Namespace)?;
    let (_, table) = survey::read(&Target::Own)?;
    let table = mountinfo::parse(&table).map_err(DiscoverError::from)?;
    let made = mount::new_superblock(
        "tmpfs",
        Path::new("autofs-cr"),
        &[] as &[(&str, Option<&str>)],
        MountFlags::empty(),
    )?;
    std::fs::create_dir_all(COPIES).map_err(|error| failed("make", COPIES.as_ref(), &error))?;
    made.attach(CWD, Path::new(COPIES))?;
    let mut copies = Copies { in_use: Some(host), ..Copies::default() };
    let mut copier = Copier { table: &table, of_groups: HashMap::new(), warnings: &mut copies.warnings };
    for mount in &mounts {
        let place = copier.copy(mount)?;
        copies.places.push((mount.name(), place));
    }
    faults::point("foreign.copied")?;
    Ok(copies)
}

struct Copier<'a, 'b> {
    /// Of the host.
    table: &'a [Entry<'b>],
    /// Copies that others can be found in, by peer group.
    of_groups: HashMap<(DevNum, u32), PathBuf>,
    warnings: &'a mut Vec<String>,
}

impl Copier<'_, '_> {
    /// Where CRIU binds it from.
    fn copy(&mut self, foreign: &Foreign) -> Result<PathBuf, ForeignError> {
        let path = &foreign.path;
        let missing = || ForeignError::Missing { path: path.clone(), autofs: foreign.autofs };
        let entry = on_host(foreign, self.table).ok_or_else(missing)?;
        let place = Path::new(COPIES).join(foreign.mount_id.to_string());
        if foreign.autofs {
            let root = Control::open()?.open_mount(path, entry.dev)?;
            self.attach(foreign, entry, mount::bind(&root, Path::new(""), false)?, &place)?;
            return Ok(place);
        }
        // CRIU takes the group of all mounts that have one from the source of any of them, and the kernel wants that
        // as wide as the mount that gets it. So several binds of one file system are found in one copy.
        let Some((wide, group)) = widest(entry, self.table) else {
            self.attach(foreign, entry, mount::bind(CWD, path, false)?, &place)?;
            return Ok(place);
        };
        let copy = match self.of_groups.get(&(wide.dev, group)) {
            Some(copy) => copy.clone(),
            None => {
                self.attach(
                    foreign,
                    wide,
                    mount::bind(CWD, &mountinfo::path(wide.mount_point), false)?,
                    &place,
                )?;
                self.of_groups.insert((wide.dev, group), place.clone());
                place
            }
        };
        let root = mountinfo::path(entry.root);
        let below = root.strip_prefix(mountinfo::path(wide.root)).unwrap_or(Path::new(""));
        Ok(copy.components().chain(below.components()).collect())
    }

    fn attach(
        &mut self,
        foreign: &Foreign,
        entry: &Entry<'_>,
        copy: DetachedMount,
        place: &Path,
    ) -> Result<(), ForeignError> {
        if foreign.slave && group(entry).is_none() {
            self.warnings.push(format!(
                "{}: the mount is private on this host: what is mounted there later does not come to the container",
                foreign.path.display()
            ));
            // CRIU takes the group from it, and there must be one.
            Change::propagation(mount::Propagation::Shared, false).apply(&copy, Path::new(""))?;
        }
        std::fs::create_dir(place).map_err(|error| failed("make", place, &error))?;
        Ok(copy.attach(CWD, place)?)
    }
}

/// The peer group whose events a copy gets.
fn group(entry: &Entry<'_>) -> Option<u32> {
    entry.propagation.shared.or(entry.propagation.slave_of)
}

/// Of the mounts that give `entry` its events, the one with most of the file system; and its group.
fn widest<'a, 'b>(entry: &Entry<'_>, table: &'a [Entry<'b>]) -> Option<(&'a Entry<'b>, u32)> {
    let group = group(entry)?;
    let root = mountinfo::path(entry.root);
    let peers = table.iter().filter(|other| other.dev == entry.dev && self::group(other) == Some(group));
    let wider = peers.filter(|other| root.starts_with(mountinfo::path(other.root)));
    wider.min_by_key(|other| other.root.len()).map(|wide| (wide, group))
}

/// The topmost mount of the right kind at its path.
fn on_host<'a, 'b>(foreign: &Foreign, table: &'a [Entry<'b>]) -> Option<&'a Entry<'b>> {
    let mut here = table.iter().filter(|entry| mountinfo::path(entry.mount_point) == foreign.path);
    match foreign.autofs {
        true => here.rfind(|entry| entry.is_autofs()),
        false => here.next_back().filter(|entry| !entry.is_autofs()),
    }
}

/// In a process apart, that ends after a time: our engine serves what nobody serves, and everything is mounted that was.
fn ask_host(image: &Path, mounts: &[Foreign]) -> Result<OwnedFd, ForeignError> {
    let (socket, _) = apart::start(|socket| {
        // A walk may wait for ever; this is the end of it.
        nix::unistd::alarm::set(PATIENCE);
        let mut engine = None;
        let told = serve(image, mounts, &mut engine).and_then(|()| trigger(mounts));
        let _ = nix::unistd::alarm::cancel();
        let why = told.as_ref().err().map(ToString::to_string).unwrap_or_default();
        // Whoever asked has ended when it cannot be told.
        let _ = apart::send(socket, &why, &[]);
        let restored = apart::receive(socket).is_ok();
        if restored {
            // What was mounted stays in use until CRIU ends.
            let _ = apart::receive(socket);
        } else if let Some(engine) = engine {
            // Nothing is busy any more, and goes with it.
            drop(told);
            let _ = engine.signal(Signal::TERM);
        }
    })
    .map_err(ForeignError::Gone)?;
    match apart::receive(&socket).map_err(ForeignError::Gone)? {
        (text, _) if text.is_empty() => Ok(socket),
        (text, _) => Err(ForeignError::Host(text)),
    }
}

/// Triggers that are below no other foreign mount: those below come with these.
fn tops(mounts: &[Foreign]) -> impl Iterator<Item = &Foreign> {
    let below = |mount: &Foreign| {
        let above = |other: &Foreign| mount.path != other.path && mount.path.starts_with(&other.path);
        mounts.iter().any(above)
    };
    mounts.iter().filter(move |mount| mount.autofs && !below(mount))
}

/// Our engine for those that have no master here; `engine`: its process.
fn serve(image: &Path, mounts: &[Foreign], engine: &mut Option<ProcessId>) -> Result<(), ForeignError> {
    let here = survey(&Target::Own)?.mounts;
    let served = |path: &Path| {
        here.iter().any(|mount| mount.path == path && !mount.catatonic && mount.master.process().is_some())
    };
    let unserved: Vec<_> = tops(mounts).map(|mount| &mount.path).filter(|path| !served(path)).collect();
    if unserved.is_empty() {
        return Ok(());
    }
    let no_engine = |why: String| {
        ForeignError::Host(format!("none serves {}, and autofs-cr cannot: {why}", unserved[0].display()))
    };
    let output = Command::new("autofs-cr")
        .args(["restore", "--serve", "--dir"])
        .arg(image)
        .args(&unserved)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(|error| no_engine(error.to_string()))?;
    if !output.status.success() {
        return Err(no_engine(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let here = survey(&Target::Own)?.mounts;
    *engine =
        here.iter().find(|mount| unserved.contains(&&mount.path)).and_then(|mount| mount.master.process());
    Ok(())
}

/// What the container had mounted is mounted, and in use as long as these files are open.
fn trigger(mounts: &[Foreign]) -> Result<Vec<File>, ForeignError> {
    let mut in_use = Vec::new();
    let tops: Vec<_> = tops(mounts).map(|mount| mount.mount_id).collect();
    for mount in mounts.iter().filter(|mount| !tops.contains(&mount.mount_id)) {
        // An offset is made with what is above it, and must not be entered.
        let wanted = if mount.autofs { mount.path.parent().unwrap_or(&mount.path) } else { &mount.path };
        in_use.push(File::open(wanted).map_err(|error| failed("open", wanted, &error))?);
    }
    let (_, table) = survey::read(&Target::Own)?;
    let table = mountinfo::parse(&table).map_err(DiscoverError::from)?;
    match mounts.iter().find(|mount| on_host(mount, &table).is_none()) {
        None => Ok(in_use),
        Some(mount) => Err(ForeignError::Missing { path: mount.path.clone(), autofs: mount.autofs }),
    }
}

fn failed(what: &'static str, path: &Path, error: &std::io::Error) -> MountError {
    MountError::At { what, path: path.into(), errno: io_errno(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(path: &str, autofs: bool) -> Foreign {
        Foreign { mount_id: 1, path: path.into(), autofs, slave: true }
    }

    #[test]
    fn offsets_come_with_what_is_above_them() {
        let mounts = [
            foreign("/net", true),
            foreign("/net/a", false),
            foreign("/net/a/x", true),
            foreign("/d/one", true),
            foreign("/d/one", false),
        ];
        let tops: Vec<_> = tops(&mounts).map(|mount| mount.path.to_str().unwrap()).collect();
        assert_eq!(tops, ["/net", "/d/one"]);
    }

    #[test]
    fn binds_of_one_file_system_are_found_in_the_widest() {
        let table = "\
1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
2 1 8:1 /srv/a /ind/a rw master:1 - ext4 /dev/sda rw
3 1 8:1 /srv/b /ind/b rw shared:7 master:1 - ext4 /dev/sda rw
4 1 8:1 /srv/c /ind/c rw - ext4 /dev/sda rw
";
        let table = mountinfo::parse(table.as_bytes()).unwrap();
        let wide = |index: usize| widest(&table[index], &table).map(|(wide, group)| (wide.id, group));
        assert_eq!([wide(1), wide(2), wide(3)], [Some((1, 1)), Some((3, 7)), None]);
    }

    #[test]
    fn a_trigger_is_found_below_what_covers_it() {
        let table = "\
10 1 0:50 / /d/one rw shared:2 - autofs auto.direct rw
11 10 0:60 / /d/one rw shared:3 - tmpfs tmpfs rw
12 1 0:51 / /d/two rw shared:4 - autofs auto.direct rw
";
        let table = mountinfo::parse(table.as_bytes()).unwrap();
        let id = |path, autofs| on_host(&foreign(path, autofs), &table).map(|entry| entry.id);
        assert_eq!(id("/d/one", true), Some(10));
        assert_eq!(id("/d/one", false), Some(11));
        assert_eq!(id("/d/two", true), Some(12));
        assert_eq!(id("/d/two", false), None);
    }
}
