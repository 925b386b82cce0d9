//! The survey of real mounts.

use crate::common::*;
use autofs_cr::discover::facts::{AutofsMount, End, Master, Pipe, Survey};
use autofs_cr::discover::master::HOLDER_COMM;
use autofs_cr::discover::{DiscoverError, Target, survey};
use autofs_cr::sys::mount::{self, MountType};
use autofs_cr::sys::packet::packet_pipe;
use autofs_cr::sys::process::ProcessId;
use autofs_cr::sys::{DevNum, Errno};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::CWD;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::{ffi::OsStrExt, fs::MetadataExt, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

fn own() -> Survey {
    survey(&Target::Own).unwrap()
}

fn at<'a>(survey: &'a Survey, path: &Path) -> &'a AutofsMount {
    let mut found = survey.mounts.iter().filter(|mount| mount.path == path);
    let mount = found.next().unwrap_or_else(|| panic!("no mount at {}", path.display()));
    assert!(found.next().is_none(), "two mounts at {}", path.display());
    mount
}

fn me() -> ProcessId {
    ProcessId::of(std::process::id() as i32).unwrap()
}

/// A file system at a path, by its number.
fn cover(path: &Path) -> DevNum {
    let tmpfs = tmpfs();
    tmpfs.attach(CWD, path).unwrap();
    tmpfs.dev().unwrap()
}

#[test]
fn every_fact_of_a_direct_mount() {
    let home = private_mount_namespace();
    let direct = Autofs::mount_with(MountType::Direct, home.join("direct"), |params| {
        params.strict_expire = true;
        params.ignore = true;
        params.uid = Some(7);
        params.gid = Some(8);
    });
    direct.control.set_timeout(direct.fd.as_fd(), 300).unwrap();
    let bottom = cover(&direct.path);
    let top = cover(&direct.path);

    let survey = own();
    assert_eq!(survey.mount_namespace, fs::metadata("/proc/thread-self/ns/mnt").unwrap().ino());
    let facts = at(&survey, &direct.path);
    assert_eq!(facts.dev, direct.dev);
    assert_eq!((facts.root.as_path(), facts.source.as_path()), (Path::new("/"), Path::new("test")));
    let options = &facts.options;
    assert_eq!((options.mount_type, options.timeout), (MountType::Direct, 300));
    assert_eq!((options.min_proto, options.max_proto), (5, 5));
    assert_eq!((options.uid, options.gid), (Some(7), Some(8)));
    assert!(options.strict_expire && options.ignore);
    assert_eq!(options.pgrp, rustix::process::getpgrp().as_raw_nonzero().get());
    assert_eq!(options.fd, direct.pipe.write.as_raw_fd());
    assert!(options.unknown.is_empty(), "{:?}", options.unknown);
    let ino = rustix::fs::fstat(&direct.pipe.read).unwrap().st_ino;
    assert_eq!(options.pipe(), Pipe::Inode(ino));
    assert!(!facts.catatonic);

    // another test's child may hold a copy between its fork and its exec
    let mut ends: Vec<_> = facts.pipe_ends.iter().filter(|end| end.process == me()).collect();
    ends.sort_by_key(|end| end.fd);
    let mut expected =
        [(direct.pipe.read.as_raw_fd(), End::Read), (direct.pipe.write.as_raw_fd(), End::Write)];
    expected.sort_by_key(|&(fd, _)| fd);
    assert_eq!(ends.iter().map(|end| (end.fd, end.end)).collect::<Vec<_>>(), expected);
    assert!(
        matches!(&facts.master, Master::Unknown { process, .. } if *process == me()),
        "{:?}",
        facts.master
    );

    assert_eq!(facts.covering.iter().map(|covering| covering.dev).collect::<Vec<_>>(), [bottom, top]);
    assert_eq!(facts.covering[0].fstype, "tmpfs");
    assert_eq!(facts.covering[0].path, direct.path);
    assert!(facts.autofs_children.is_empty() && facts.waiters.is_empty());
    for _ in 0..2 {
        mount::unmount(&direct.path, mount::Unmount::Lazy).unwrap();
    }
    assert!(at(&own(), &direct.path).covering.is_empty());
}

#[test]
fn an_indirect_mount_with_keys_and_offsets() {
    let home = private_mount_namespace();
    let indirect = Autofs::mount(MountType::Indirect, home.join("indirect"));
    let (plain, multi) = (indirect.path.join("plain"), indirect.path.join("multi"));
    fs::create_dir(&plain).unwrap();
    fs::create_dir_all(multi.join("rootless")).unwrap();
    let plain_dev = cover(&plain);
    let offset = Autofs::mount(MountType::Offset, plain.join("offset"));
    let rootless = Autofs::mount(MountType::Offset, multi.join("rootless"));
    let below = cover(&rootless.path);

    let survey = own();
    let facts = at(&survey, &indirect.path);
    assert_eq!(facts.options.mount_type, MountType::Indirect);
    assert_eq!(facts.covering.iter().map(|covering| covering.dev).collect::<Vec<_>>(), [plain_dev]);
    let ids: Vec<_> = [&offset, &rootless].iter().map(|mount| at(&survey, &mount.path).mount_id).collect();
    assert_eq!(facts.autofs_children, ids);
    assert_eq!(at(&survey, &rootless.path).covering[0].dev, below);
    mount::unmount(&rootless.path, mount::Unmount::Lazy).unwrap();
    drop((offset, rootless));
    mount::unmount(&plain, mount::Unmount::Lazy).unwrap();
}

#[test]
fn a_bound_part_and_propagation_are_told() {
    let home = private_mount_namespace();
    let indirect = Autofs::mount(MountType::Indirect, home.join("indirect"));
    fs::create_dir(indirect.path.join("key")).unwrap();
    let copy = home.join("copy");
    fs::create_dir(&copy).unwrap();
    mount::Change::propagation(mount::Propagation::Shared, false).apply(CWD, &indirect.path).unwrap();
    // the owner triggers nothing
    mount::bind(CWD, &indirect.path.join("key"), false).unwrap().attach(CWD, &copy).unwrap();

    let survey = own();
    let (original, copy) = (at(&survey, &indirect.path), at(&survey, &copy));
    assert_eq!(original.dev, copy.dev);
    assert_eq!(copy.root, Path::new("/key"));
    assert!(original.propagation.shared.is_some());
    assert_eq!(original.propagation, copy.propagation);
    mount::unmount(&copy.path, mount::Unmount::Lazy).unwrap();
}

#[test]
fn paths_of_any_bytes() {
    let home = private_mount_namespace();
    let name = OsStr::from_bytes(b"a b\t\n\\040#\xff\xc3\xa4");
    let direct = Autofs::mount(MountType::Direct, home.join(name));
    let survey = own();
    let facts = at(&survey, &direct.path);
    assert_eq!(facts.dev, direct.dev);
    let json = serde_json::to_string(&survey).unwrap();
    assert!(json.contains(r"/mnt/a b\\011\\012\\134040#\\377ä"), "{json}");
    assert_eq!(serde_json::from_str::<Survey>(&json).unwrap(), survey);
}

#[test]
fn minors_above_255() {
    let home = private_mount_namespace();
    let mut fillers = Vec::new();
    while fillers.last().is_none_or(|last: &mount::DetachedMount| last.dev().unwrap().minor < 256) {
        fillers.push(tmpfs());
    }
    let direct = Autofs::mount(MountType::Direct, home.join("direct"));
    assert!(direct.dev.minor > 255, "{}", direct.dev);
    assert_eq!(at(&own(), &direct.path).dev, direct.dev);
}

#[test]
fn a_thousand_mounts_and_more() {
    const MANY: usize = 1_500;
    let home = private_mount_namespace();
    let first = Autofs::mount(MountType::Direct, home.join("0"));
    let params = mount::AutofsParams::new(first.pipe.write.as_fd(), MountType::Direct);
    for number in 1..MANY {
        let path = home.join(number.to_string());
        fs::create_dir(&path).unwrap();
        let detached = mount::autofs(&params, Path::new("test"), mount::MountFlags::empty()).unwrap();
        detached.attach(CWD, &path).unwrap();
        if number % 2 == 0 {
            cover(&path);
        }
    }
    let start = Instant::now();
    let survey = own();
    let took = start.elapsed();
    assert_eq!(survey.mounts.len(), MANY);
    let is_told =
        |mount: &AutofsMount| matches!(&mount.master, Master::Unknown { process, .. } if *process == me());
    assert!(survey.mounts.iter().all(is_told));
    assert_eq!(survey.mounts.iter().filter(|mount| mount.covering.len() == 1).count(), (MANY - 1) / 2);
    // a survey that is not linear takes minutes
    assert!(took < LIMIT / 6, "{took:?}");
}

#[test]
fn a_survey_triggers_nothing() {
    let home = private_mount_namespace();
    let mounts =
        [MountType::Direct, MountType::Indirect].map(|kind| Autofs::mount(kind, home.join(kind.to_string())));
    own();
    for mount in &mounts {
        let mut fds = [PollFd::new(&mount.pipe.read, PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut fds, Some(&Timespec::default())), Ok(0));
    }
}

#[test]
fn a_dead_master_and_a_catatonic_mount() {
    let home = private_mount_namespace();
    let mut mount = Autofs::mount(MountType::Direct, home.join("direct"));
    let path = mount.path.clone();
    close_pipe(&mut mount);
    // other tests' children may keep a copy until they exec
    wait_until(|| (at(&own(), &path).master == Master::Dead).then_some(()));
    let survey = own();
    assert_eq!(at(&survey, &path).dev, mount.dev);
    assert!(!at(&survey, &path).catatonic);
    assert!(at(&survey, &path).pipe_ends.is_empty());

    mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
    let survey = own();
    let facts = at(&survey, &path);
    assert!(facts.catatonic);
    assert_eq!((facts.options.pipe(), &facts.master), (Pipe::Catatonic, &Master::Dead));
}

/// This process is the master no longer.
fn close_pipe(mount: &mut Autofs) {
    mount.pipe = packet_pipe().unwrap();
}

/// A program under another name that holds the read end of a mount's pipe as its stdin.
fn reader(mount: &Autofs, name: &str) -> Visitor {
    let program = Path::new("/mnt").join(name);
    fs::copy("/bin/sleep", &program).unwrap();
    let stdin = mount.pipe.read.try_clone().unwrap();
    let program = program.to_str().unwrap();
    Visitor::run_as(program, &[Path::new("1000")], |command| {
        command.stdin(Stdio::from(stdin));
    })
}

fn wait_for_exec(visitor: &Visitor, name: &str) {
    let comm = format!("/proc/{}/comm", visitor.pid());
    wait_until(|| fs::read_to_string(&comm).unwrap().trim().eq(name).then_some(()));
}

#[test]
fn masters_are_told_by_their_programs() {
    let home = private_mount_namespace();
    let mount = Autofs::mount(MountType::Direct, home.join("my data"));
    let master = || at(&own(), &mount.path).master.clone();

    // known programs go before this test, which holds the pipe and leads the owner group
    let holder = reader(&mount, HOLDER_COMM);
    wait_for_exec(&holder, HOLDER_COMM);
    assert!(matches!(master(), Master::Unknown { process, .. } if process == me()));
    drop(holder);
    for name in ["automount", "systemd", "autofs-cr"] {
        let program = reader(&mount, name);
        wait_for_exec(&program, name);
        let process = ProcessId::of(program.pid()).unwrap();
        let expected = match name {
            "automount" => Master::Automount { process },
            "systemd" => Master::Systemd { process, unit: r"mnt-my\x20data.automount".into() },
            _ => Master::AutofsCr { process },
        };
        assert_eq!(master(), expected);
        // an upgrade
        fs::remove_file(home.join(name)).unwrap();
        assert_eq!(master(), expected);
        let survey = own();
        let end = at(&survey, &mount.path).pipe_ends.iter().find(|end| end.process == process).unwrap();
        assert_eq!((end.fd, end.end, end.comm.as_str()), (0, End::Read, name));
    }
}

#[test]
fn a_holder_is_no_master() {
    let home = private_mount_namespace();
    let mut mount = Autofs::mount(MountType::Direct, home.join("direct"));
    let holder = reader(&mount, HOLDER_COMM);
    wait_for_exec(&holder, HOLDER_COMM);
    close_pipe(&mut mount);
    let facts = wait_until(|| {
        let facts = at(&own(), &mount.path).clone();
        (facts.master == Master::Dead).then_some(facts)
    });
    assert_eq!(facts.pipe_ends.iter().map(|end| end.process.pid).collect::<Vec<_>>(), [holder.pid()]);
}

#[test]
fn waiters_and_their_mounts() {
    let home = private_mount_namespace();
    let direct = Autofs::mount(MountType::Direct, home.join("direct"));
    let indirect = Autofs::mount(MountType::Indirect, home.join("indirect"));
    let waiting = |visitor: &Visitor| {
        let survey = own();
        let tids = |mount: &Autofs| {
            at(&survey, &mount.path).waiters.iter().map(|waiter| waiter.tid).collect::<Vec<_>>()
        };
        let of = |mount| tids(mount).contains(&visitor.pid());
        (of(&direct), of(&indirect), survey.unplaced_waiters.iter().any(|waiter| waiter.tid == visitor.pid()))
    };

    let by_path = Visitor::run("cat", &[&direct.path.join("file")]);
    direct.request();
    by_path.until_it_waits();
    assert_eq!(waiting(&by_path), (true, false, false));
    let relative = Visitor::run_as("cat", &[Path::new("indirect/key/file")], |command| {
        command.current_dir(&home);
    });
    indirect.request();
    relative.until_it_waits();
    assert_eq!(waiting(&relative), (false, true, false));
    // over a symbolic link nothing can be told but that it waits
    std::os::unix::fs::symlink(&direct.path, home.join("link")).unwrap();
    let link = Visitor::run("cat", &[&home.join("link/file")]);
    wait_until(|| waiting(&link).2.then_some(()));

    let survey = own();
    let waiter = &at(&survey, &direct.path).waiters[0];
    assert_eq!((waiter.comm.as_str(), waiter.expiring), ("cat", false));
    assert_eq!(waiter.process, ProcessId::of(by_path.pid()).unwrap());
    direct.control.make_catatonic(direct.fd.as_fd()).unwrap();
    assert!(!by_path.outcome().0.success());
    assert!(!link.outcome().0.success());
    // now there is one mount with a pipe left
    assert_eq!(waiting(&relative), (false, true, false));
}

#[test]
fn the_mounts_of_another_namespace() {
    let home = private_mount_namespace();
    let mount = Autofs::mount(MountType::Direct, home.join("direct"));
    let other =
        Visitor::run("unshare", &["--mount", "--propagation", "private", "sleep", "1000"].map(Path::new));
    wait_for_exec(&other, "sleep");
    let file = PathBuf::from(format!("/proc/{}/ns/mnt", other.pid()));
    let hidden = Autofs::mount(MountType::Direct, home.join("hidden"));

    let by_pid = survey(&Target::Process(other.pid())).unwrap();
    assert_eq!(at(&by_pid, &mount.path).dev, mount.dev);
    assert!(by_pid.mounts.iter().all(|facts| facts.path != hidden.path));
    assert_eq!(by_pid.mount_namespace, fs::metadata(&file).unwrap().ino());
    assert_eq!(survey(&Target::Namespace(file.clone())).unwrap().mounts, by_pid.mounts);

    // a namespace that only a descriptor keeps, without a process (to bind the file depends on the kernel's mood:
    // docs/kernel-notes.md)
    let keeper = fs::File::open(&file).unwrap();
    let kept = PathBuf::from(format!("/proc/self/fd/{}", keeper.as_raw_fd()));
    let pid = other.pid();
    drop(other);
    assert!(matches!(survey(&Target::Process(pid)), Err(DiscoverError::NoProcess(_))));
    let by_file = survey(&Target::Namespace(kept)).unwrap();
    assert_eq!(by_file.mount_namespace, by_pid.mount_namespace);
    assert_eq!(at(&by_file, &mount.path), at(&by_pid, &mount.path));
    let no_file = survey(&Target::Namespace(home.join("no file")));
    assert!(matches!(no_file, Err(DiscoverError::Read { errno: Errno::NOENT, .. })), "{no_file:?}");
    let no_namespace = survey(&Target::Namespace("/proc/self/ns/net".into()));
    assert!(
        matches!(no_namespace, Err(DiscoverError::Enter { errno: Errno::INVAL, .. })),
        "{no_namespace:?}"
    );
}

fn autofs_cr(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_autofs-cr")).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn list_and_check_on_the_command_line() {
    let home = private_mount_namespace();
    let (ok, table, note) = autofs_cr(&["list"]);
    assert!(ok && table.is_empty() && note.contains("no autofs mounts"), "{table}{note}");

    let mount = Autofs::mount(MountType::Indirect, home.join("my keys"));
    mount.control.set_timeout(mount.fd.as_fd(), 90).unwrap();
    fs::create_dir(mount.path.join("key")).unwrap();
    cover(&mount.path.join("key"));
    let (ok, table, _) = autofs_cr(&["list"]);
    let row = table.lines().nth(1).unwrap();
    assert!(ok && table.starts_with("PATH") && table.lines().count() == 2, "{table}");
    for expected in ["/mnt/my keys  indirect", &mount.dev.to_string(), "unknown", "1m30s", "1 key"] {
        assert!(row.contains(expected), "{expected}: {table}");
    }
    let (_, wide, _) = autofs_cr(&["list", "--wide"]);
    assert!(
        wide.contains("none on /mnt/my keys/key type tmpfs")
            || wide.contains("on /mnt/my keys/key type tmpfs"),
        "{wide}"
    );

    let (_, json, _) = autofs_cr(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["mounts"][0]["path"], "/mnt/my keys");
    assert_eq!(json["mounts"][0]["dev"]["minor"], mount.dev.minor);
    assert_eq!(json["mounts"][0]["covering"][0]["fstype"], "tmpfs");

    let (ok, report, _) = autofs_cr(&["check"]);
    assert!(ok && report.contains("nobody is stuck"), "{report}");
    mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
    let (ok, report, _) = autofs_cr(&["check"]);
    assert!(!ok && report.contains("problem  /mnt/my keys is catatonic"), "{report}");
}

#[test]
fn a_catatonic_mount_tells_who_triggered_it() {
    let home = private_mount_namespace();
    let mount = Autofs::mount(MountType::Direct, home.join("direct"));
    let requester = || {
        let (_, json, _) = autofs_cr(&["list", "--json"]);
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["mounts"][0]["requester"].clone()
    };
    let visitor = Visitor::run_as("ls", &[&mount.path], |command| {
        command.uid(1234).gid(567);
    });
    let request = mount.request();
    cover(&mount.path);
    mount.control.ready(mount.fd.as_fd(), request.token).unwrap();
    assert!(visitor.outcome().0.success());
    assert_eq!(requester(), serde_json::Value::Null);
    mount.control.make_catatonic(mount.fd.as_fd()).unwrap();
    assert_eq!(requester(), serde_json::json!({ "uid": 1234, "gid": 567 }));
    mount::unmount(&mount.path, mount::Unmount::Lazy).unwrap();
}

#[test]
fn an_owner_in_another_pid_namespace_is_not_called_dead() {
    let home = private_mount_namespace();
    let mount = Autofs::mount(MountType::Direct, home.join("direct"));
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            env!("CARGO_BIN_EXE_autofs-cr"),
            "list",
            "--json",
        ])
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["mounts"][0]["dev"]["minor"], mount.dev.minor);
    assert_eq!(json["mounts"][0]["options"]["pgrp"], 0);
    assert_eq!(json["mounts"][0]["master"]["program"], "not-visible");
}
