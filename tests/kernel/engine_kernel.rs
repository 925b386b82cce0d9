//! The engine's kernel calls, and its jobs, on the real kernel.

use crate::common::{Visitor, mountinfo_line, next_packet, private_mount_namespace, tmpfs, wait_until};
use autofs_cr::engine::jobs;
use autofs_cr::engine::kernel::{Kernel, linux::Linux};
use autofs_cr::engine::maps::{Credentials, MountSpec, Replica, Resolved, What};
use autofs_cr::engine::served::{Opener, PropagationType, ServeOptions, Served, Source};
use autofs_cr::engine::task::{Asker, Child, Duty, MountTask, Outcome, Place, Task, UnmountTask};
use autofs_cr::sys::control::Control;
use autofs_cr::sys::mount::{Change, MountType, Propagation, Unmount, unmount};
use autofs_cr::sys::packet::{Kind, Packet, packet_pipe};
use autofs_cr::sys::{DevNum, Errno};
use rustix::fs::CWD;
use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A map whose every key is this entry.
#[derive(Debug, Default)]
struct Every(Resolved);

impl Source for Every {
    fn lookup(&self, _key: &[u8], _who: Credentials) -> Result<Option<Resolved>, Errno> {
        Ok(Some(self.0.clone()))
    }
    fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, Errno> {
        Ok(None)
    }
}

impl Opener for Every {
    fn submount(&self, _: &Served, _: &Path, _: &OsStr, _: &OsStr) -> Result<Served, Errno> {
        Err(Errno::NOSYS)
    }
}

/// The kernel with a map; every mount is made catatonic in the end, so that no visitor can hang.
struct Bench {
    kernel: Linux,
    read: OwnedFd,
    home: PathBuf,
    served: Arc<Served>,
    places: Vec<Arc<Place>>,
}

impl Bench {
    fn new() -> Self {
        Self::serving(&[], ServeOptions::default())
    }

    fn serving(offsets: &[&str], options: ServeOptions) -> Self {
        let home = private_mount_namespace();
        let pipe = packet_pipe().unwrap();
        let kernel = Linux::new(Control::open().unwrap(), pipe.write);
        let spec = |offset: &&str| MountSpec { offset: offset.into(), what: a_tmpfs() };
        let entry =
            Resolved { mounts: offsets.iter().map(spec).collect(), strict: true, ..Resolved::default() };
        let served = Served {
            point: None,
            name: "a map".into(),
            source: Box::new(Every(entry)),
            options,
            opener: Arc::new(Every::default()),
        };
        Self { kernel, read: pipe.read, home, served: Arc::new(served), places: Vec::new() }
    }

    fn trigger(&mut self, name: &str, kind: MountType) -> Arc<Place> {
        let path = self.home.join(name);
        self.kernel.make_dir(&path, 0o755).unwrap();
        let place = Arc::new(self.kernel.make_trigger(&path, kind, &self.served).unwrap());
        self.places.push(place.clone());
        place
    }

    fn request(&self) -> Packet {
        next_packet(&self.read)
    }

    /// EXPIRE in a thread of its own (which shares this one's namespace), because it waits for the answer.
    ///
    /// What should be idle may be in use for a moment: a visitor of another test has copies of all descriptors of
    /// this process between its fork and its exec. Therefore the call is repeated, here and below.
    fn expire<T>(&self, place: &Place, meanwhile: impl FnOnce() -> T) -> (Result<bool, Errno>, T) {
        std::thread::scope(|scope| {
            let idle = || Some(self.kernel.expire(place, true)).filter(|called| *called != Ok(false));
            let call = scope.spawn(move || wait_until(idle));
            let result = meanwhile();
            (call.join().unwrap(), result)
        })
    }

    fn unmount(&self, path: &Path) {
        wait_until(|| self.kernel.unmount(path).ok());
    }

    /// Nothing is idle: no request comes.
    fn assert_not_idle(&self, place: &Place) {
        assert_eq!(self.kernel.expire(place, true), Ok(false));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for place in self.places.iter().rev() {
            let _ = self.kernel.make_catatonic(place);
        }
    }
}

fn a_tmpfs() -> What {
    What::Mount {
        fstype: "tmpfs".into(),
        options: "mode=0711".into(),
        sources: vec![Replica::plain("a source")],
        use_weight_only: false,
    }
}

#[test]
fn a_trigger_is_as_its_map_says() {
    let options = ServeOptions {
        timeout: Duration::from_secs(77),
        strict_expire: true,
        ignore: true,
        ..ServeOptions::default()
    };
    let mut bench = Bench::serving(&[], options);
    for kind in [MountType::Direct, MountType::Indirect, MountType::Offset] {
        let place = bench.trigger(&kind.to_string(), kind);
        let line = mountinfo_line(place.dev);
        let options = format!(",timeout=77,minproto=5,maxproto=5,{kind},strictexpire,ignore,");
        assert!(line.contains(&options) && line.contains(" autofs a\\040map "), "{line}");
        assert_eq!(bench.kernel.find(place.dev), Ok((*place).clone()));
    }
    let missing = bench.home.join("missing");
    let made = bench.kernel.make_trigger(&missing, MountType::Direct, &bench.served);
    assert_eq!(made, Err(Errno::NOENT));
}

#[test]
fn mounts_go_out_of_the_namespace_only_when_they_are_to() {
    for (wanted, tags) in [
        (PropagationType::Slave, [false, true]),
        (PropagationType::Private, [false, false]),
        (PropagationType::Shared, [true, false]),
    ] {
        let options = ServeOptions { propagation: wanted, ..ServeOptions::default() };
        let mut bench = Bench::serving(&[], options);
        let shared = bench.home.join("shared");
        fs::create_dir(&shared).unwrap();
        tmpfs().attach(CWD, &shared).unwrap();
        Change::propagation(Propagation::Shared, false).apply(CWD, &shared).unwrap();
        // a peer, so that a slave has a master
        fs::create_dir(bench.home.join("peer")).unwrap();
        let peer = autofs_cr::sys::mount::bind(CWD, &shared, false).unwrap();
        peer.attach(CWD, &bench.home.join("peer")).unwrap();
        let place = bench.trigger("shared/trigger", MountType::Direct);
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().rfind(|line| line.contains(" /mnt/shared/trigger ")).unwrap();
        assert_eq!([line.contains(" shared:"), line.contains(" master:")], tags, "{wanted:?}: {line}");

        bench.kernel.mount(&a_tmpfs(), &place.path, &bench.served).unwrap();
        assert!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o777 == 0o711);
        let covered = bench.kernel.is_covered(&place, &place.path);
        assert_eq!(covered, Ok(true));
        let copy = Place { path: bench.home.join("peer/trigger").into(), ..(*place).clone() };
        assert_eq!(bench.kernel.is_covered(&copy, &copy.path), Ok(tags[0]), "{wanted:?}");
    }
}

#[test]
fn answers_reach_the_visitor() {
    let mut bench = Bench::new();
    let place = bench.trigger("direct", MountType::Direct);
    let visitor = Visitor::run("cat", &[&place.path.join("file")]);
    let request = bench.request();
    bench.kernel.answer(&place, request.token, Err(Errno::HOSTDOWN)).unwrap();
    assert!(visitor.outcome().1.contains("Host is down"));
    assert_eq!(bench.kernel.answer(&place, request.token, Ok(())), Err(Errno::INVAL));

    let visitor = Visitor::run("cat", &[&place.path.join("file")]);
    let request = bench.request();
    bench.kernel.mount(&a_tmpfs(), &place.path, &bench.served).unwrap();
    fs::write(place.path.join("file"), "text").unwrap();
    bench.kernel.answer(&place, request.token, Ok(())).unwrap();
    assert_eq!(visitor.outcome().1, "text");
}

#[test]
fn a_mount_that_was_moved_is_answered() {
    let mut bench = Bench::new();
    let place = bench.trigger("direct", MountType::Direct);
    let visitor = Visitor::run("cat", &[&place.path.join("file")]);
    let request = bench.request();
    fs::create_dir(bench.home.join("elsewhere")).unwrap();
    rustix::mount::mount_move(&*place.path, bench.home.join("elsewhere")).unwrap();
    assert!(!bench.kernel.exists(&place));
    bench.kernel.answer(&place, request.token, Err(Errno::ACCESS)).unwrap();
    assert!(visitor.outcome().1.contains("Permission denied"));
    bench.places = vec![Arc::new(bench.kernel.find(place.dev).unwrap())];
    assert_eq!(*bench.places[0].path, *bench.home.join("elsewhere"));
    assert_eq!(bench.kernel.find(DevNum::anonymous(0xffff0)), Err(Errno::NOENT));
}

#[test]
fn catatonic_releases_the_visitor() {
    let mut bench = Bench::new();
    let place = bench.trigger("indirect", MountType::Indirect);
    let visitor = Visitor::run("cat", &[&place.path.join("key")]);
    bench.request();
    bench.kernel.make_catatonic(&place).unwrap();
    assert!(visitor.outcome().1.contains("No such file"));
}

#[test]
fn an_idle_mount_expires_and_a_used_one_does_not() {
    let mut bench = Bench::new();
    let place = bench.trigger("direct", MountType::Direct);
    bench.kernel.mount(&a_tmpfs(), &place.path, &bench.served).unwrap();
    let user = Visitor::run_as("sleep", &[Path::new("1000")], |command| _ = command.current_dir(&place.path));
    wait_until(|| {
        fs::read_link(format!("/proc/{}/cwd", user.pid())).is_ok_and(|cwd| cwd == *place.path).then_some(())
    });
    bench.assert_not_idle(&place);
    assert_eq!(bench.kernel.unmount(&place.path), Err(Errno::BUSY));
    drop(user);

    for (answer, result) in [(Err(Errno::BUSY), Err(Errno::BUSY)), (Ok(()), Ok(true))] {
        let (called, ()) = bench.expire(&place, || {
            let request = bench.request();
            assert_eq!((request.kind, request.dev), (Kind::ExpireDirect, place.dev));
            if answer.is_ok() {
                // the caller's open root is no use of what covers it
                bench.unmount(&place.path);
            }
            bench.kernel.answer(&place, request.token, answer).unwrap();
        });
        assert_eq!(called, result);
    }
    assert_eq!(bench.kernel.is_covered(&place, &place.path), Ok(false));
    // A trigger is chosen though nothing is mounted on it.
    let (called, ()) = bench.expire(&place, || {
        let request = bench.request();
        assert_eq!(NonZeroU64::new(request.ino), place.ino);
        bench.kernel.answer(&place, request.token, Ok(())).unwrap();
    });
    assert_eq!(called, Ok(true));
}

/// Why no descriptor is kept: EXPIRE allows for one open root on its own mount (the caller's) and none below.
#[test]
fn an_open_root_counts_as_a_use() {
    let mut bench = Bench::new();
    let control = Control::open().unwrap();
    let open = |place: &Place| control.open_mount(&place.path, place.dev).unwrap();
    let direct = bench.trigger("direct", MountType::Direct);
    bench.kernel.mount(&a_tmpfs(), &direct.path, &bench.served).unwrap();
    let offset = bench.trigger("direct/offset", MountType::Offset);
    let indirect = bench.trigger("indirect", MountType::Indirect);
    let key = indirect.target(b"key");
    bench.kernel.make_dir(&key, 0o755).unwrap();
    bench.kernel.mount(&a_tmpfs(), &key, &bench.served).unwrap();

    let may_go = |place: &Place| {
        let (called, ()) = bench.expire(place, || {
            let request = bench.request();
            bench.kernel.answer(place, request.token, Err(Errno::BUSY)).unwrap();
        });
        assert_eq!(called, Err(Errno::BUSY));
    };
    may_go(&direct);
    may_go(&indirect);
    let other = open(&direct);
    bench.assert_not_idle(&direct);
    drop(other);
    let below = open(&offset);
    bench.assert_not_idle(&direct);
    assert_eq!(bench.kernel.unmount(&offset.path), Err(Errno::BUSY));
    drop(below);
    may_go(&direct);
    let held = bench.kernel.hold(&indirect).unwrap();
    // the keys of an indirect mount are looked at, not the mount
    may_go(&indirect);
    bench.unmount(&key);
    assert_eq!(bench.kernel.unmount(&indirect.path), Err(Errno::BUSY));
    drop(held);
    bench.unmount(&indirect.path);
    assert_eq!(bench.kernel.hold(&indirect).err(), Some(Errno::NOENT));
}

#[test]
fn covered_is_what_has_a_mount_on_it() {
    let mut bench = Bench::new();
    let place = bench.trigger("indirect", MountType::Indirect);
    let covered = |key: &str| bench.kernel.is_covered(&place, &place.path.join(key));
    assert_eq!(covered("absent"), Ok(false));
    for key in ["empty", "full"] {
        bench.kernel.make_dir(&place.path.join(key), 0o755).unwrap();
    }
    bench.kernel.mount(&a_tmpfs(), &place.path.join("full"), &bench.served).unwrap();
    bench.kernel.symlink(&place.path.join("full"), &place.path.join("link")).unwrap();
    assert_eq!([covered("empty"), covered("full"), covered("link")], [Ok(false), Ok(true), Ok(false)]);
    assert_eq!(bench.kernel.unmount(&place.path.join("link")), Err(Errno::INVAL));
    assert_eq!(bench.kernel.unmount(&place.path), Err(Errno::BUSY));
    bench.unmount(&place.path.join("full"));
    assert_eq!(covered("full"), Ok(false));
    bench.unmount(&place.path);
    assert!(!bench.kernel.exists(&place));
    assert_eq!(covered("full"), Err(Errno::NOENT));
}

#[test]
fn directories_links_and_names() {
    let mut bench = Bench::new();
    let place = bench.trigger("indirect", MountType::Indirect);
    let at = |name: &str| place.path.join(name);
    let kernel = &bench.kernel;
    assert_eq!(kernel.make_dir(&at("a/b/c"), 0o2777), Ok(3));
    // whatever the umask is
    assert_eq!(fs::metadata(at("a/b/c")).unwrap().permissions().mode() & 0o7777, 0o2777);
    assert_eq!(kernel.make_dir(&at("a/b/c"), 0o755), Ok(0));
    assert_eq!(kernel.make_dir(&at("a/b/d"), 0o755), Ok(1));
    assert_eq!(kernel.remove(&at("a/b")), Err(Errno::NOTEMPTY));
    for name in ["a/b/c", "a/b/d", "a/b", "a"] {
        kernel.remove(&at(name)).unwrap();
    }
    assert_eq!(kernel.remove(&at("a")), Err(Errno::NOENT));
    kernel.symlink(Path::new("/usr"), &at("link")).unwrap();
    assert_eq!(kernel.symlink(Path::new("/usr"), &at("link")), Err(Errno::EXIST));
    let trigger = kernel.make_dir(&at("key"), 0o755).map(|_| at("key"));
    bench.kernel.mount(&a_tmpfs(), &trigger.unwrap(), &bench.served).unwrap();
    symlink("x", at("key/dangling")).unwrap();
    let mut names = kernel.names(&place.path).unwrap();
    names.sort();
    assert_eq!(names, ["key", "link"]);
    assert_eq!(kernel.remove(&at("key")), Err(Errno::BUSY));
    assert_eq!(kernel.remove_link(&at("key")), Err(Errno::ISDIR));
    kernel.remove_link(&at("link")).unwrap();
    kernel.remove(&at("key/dangling")).unwrap();
    assert_eq!(kernel.names(&at("none")), Err(Errno::NOENT));
}

/// A visitor walks down a multi-mount, trigger by trigger; then all of it is taken away at once.
#[test]
fn jobs_mount_a_tree_and_take_it_away() {
    let mut bench = Bench::serving(&["", "s", "s/x/deep", "t"], ServeOptions::default());
    let top = bench.trigger("indirect", MountType::Indirect);
    let deep = top.path.join("key/s/x/deep");
    let visitor = Visitor::run("stat", &[Path::new("-fc%T"), &deep]);
    let mut below: Vec<Child> = Vec::new();
    for step in [top.path.to_path_buf(), top.path.join("key/s"), deep.clone()] {
        let request = bench.request();
        let child = below.iter().find(|child| child.place.dev == request.dev);
        let place = child.map_or(&top, |child| &child.place).clone();
        assert_eq!((&*place.path, place.ino), (&*step, NonZeroU64::new(request.ino)));
        let task = MountTask {
            place: place.clone(),
            key: if child.is_none() { request.name } else { Vec::new() },
            served: bench.served.clone(),
            offset: child.and_then(|child| match &child.duty {
                Duty::Offset(offset) => Some(offset.clone()),
                Duty::Map(_) => None,
            }),
            asker: Asker {
                token: request.token,
                who: Credentials { uid: request.uid, gid: request.gid },
                pid: request.tgid,
                since: std::time::Instant::now(),
            },
            check: false,
            known: Vec::new(),
        };
        match jobs::run(&bench.kernel, &Task::Mount(task), &|_, _| ()) {
            Outcome::Mounted { result: Ok(()), children, .. } => below.extend(children),
            other => panic!("{other:?}"),
        }
        bench.kernel.answer(&place, request.token, Ok(())).unwrap();
    }
    assert_eq!(visitor.outcome().1, "tmpfs\n");
    assert_eq!(below.len(), 3);

    loop {
        let (called, outcome) = bench.expire(&top, || {
            let request = bench.request();
            let task = UnmountTask {
                place: top.clone(),
                key: request.name,
                served: bench.served.clone(),
                token: Some(request.token),
                linger: false,
                below: below.clone(),
            };
            let outcome = jobs::run(&bench.kernel, &Task::Unmount(task), &|_, _| ());
            bench.kernel.answer(&top, request.token, outcome.result()).unwrap();
            outcome
        });
        match outcome {
            // nothing is lost then
            Outcome::Unmounted { result: Err(Errno::BUSY), below: left } => below = left,
            Outcome::Unmounted { result: Ok(()), below: left } => {
                assert_eq!((called, left.len()), (Ok(true), 0));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(below.iter().all(|child| bench.kernel.find(child.place.dev) == Err(Errno::NOENT)));
    assert!(bench.kernel.names(&top.path).unwrap().is_empty());
}

/// A map whose mount somebody takes away while it is asked.
#[derive(Debug)]
struct TakesAway(PathBuf);

impl Source for TakesAway {
    fn lookup(&self, _key: &[u8], _who: Credentials) -> Result<Option<Resolved>, Errno> {
        unmount(&self.0, Unmount::Lazy).unwrap();
        Ok(None)
    }
    fn keys(&self) -> Result<Option<Vec<Vec<u8>>>, Errno> {
        Ok(None)
    }
}

#[test]
fn a_visitor_of_a_mount_that_was_taken_out_of_the_namespace_is_answered() {
    let mut bench = Bench::new();
    let place = bench.trigger("indirect", MountType::Indirect);
    let visitor = Visitor::run("stat", &[&place.path.join("key")]);
    let Packet { token, name: key, uid, gid, tgid: pid, .. } = bench.request();
    let since = std::time::Instant::now();
    let task = MountTask {
        place: place.clone(),
        key,
        served: Arc::new(Served {
            point: Some(place.path.to_path_buf()),
            name: "a map".into(),
            source: Box::new(TakesAway(place.path.to_path_buf())),
            options: ServeOptions::default(),
            opener: Arc::new(Every::default()),
        }),
        offset: None,
        asker: Asker { token, who: Credentials { uid, gid }, pid, since },
        check: false,
        known: Vec::new(),
    };
    let outcome = jobs::run(&bench.kernel, &Task::Mount(task), &|held, result| {
        // no path leads there
        assert_eq!(bench.kernel.answer(&place, token, result), Err(Errno::NOENT));
        assert_eq!(held.answer(token, result), Ok(()));
    });
    assert_eq!(outcome.result(), Err(Errno::NOENT));
    assert!(!visitor.outcome().0.success());
}
