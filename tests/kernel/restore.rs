//! `autofs-cr restore` as a user calls it, on images that are made here.

use crate::attach::{Holder, Owned};
use crate::common::{LIMIT, Visitor, private_mount_namespace, tmpfs, wait_until};
use autofs_cr::discover::facts::{AutofsMount, AutofsOptions, Master, MountType, Propagation, TreeEntry};
use autofs_cr::image::checkpoint::{ActiveKey, Checkpoint, DumpedMount, Left, Origin, Service};
use autofs_cr::image::{self, Existing};
use autofs_cr::restore::claim::Claims;
use autofs_cr::restore::create;
use autofs_cr::restore::plan::{Action, Attach, Number, RestorePlan, Step};
use autofs_cr::sys::DevNum;
use autofs_cr::sys::control::{Control, Requester};
use autofs_cr::sys::mount::{self, AutofsParams, MountError, MountFlags, Placeholder};
use autofs_cr::sys::mountns::Space;
use autofs_cr::sys::process::ProcessId;
use rustix::fs::CWD;
use rustix::process::Signal;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Run the program; fails the test when it takes too long.
pub fn autofs_cr(arguments: &[&str], fault: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autofs-cr"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.envs(fault.map(|fault| ("AUTOFS_CR_FAULT", fault)));
    let child = command.spawn().unwrap();
    let id = ProcessId::of(child.id() as i32).unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    receive.recv_timeout(LIMIT).map(Result::unwrap).unwrap_or_else(|_| {
        id.signal(Signal::KILL).unwrap();
        panic!("autofs-cr {arguments:?} took too long");
    })
}

/// It succeeds; what it printed as JSON.
pub fn restore(arguments: &[&str]) -> serde_json::Value {
    let output = autofs_cr(&[&["restore", "--json"], arguments].concat(), None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A free minor, well above those in use.
pub fn origin(left: Left) -> Origin {
    Origin {
        created: 1,
        tool: "test".into(),
        kernel: "6".into(),
        boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().into(),
        mount_namespace: 1,
        left,
    }
}

pub fn dumped(path: &Path, minor: u32, mount_type: MountType) -> DumpedMount {
    let facts = AutofsMount {
        mount_id: minor.into(),
        parent_id: 1,
        dev: DevNum::anonymous(minor),
        path: path.into(),
        root: "/".into(),
        source: "/etc/auto.x".into(),
        options: AutofsOptions::parse(
            format!("fd=5,pgrp=1,timeout=300,minproto=5,maxproto=5,{mount_type},pipe_ino=1").as_bytes(),
        ),
        mount_flags: vec!["rw".into(), "relatime".into()],
        propagation: Propagation::default(),
        catatonic: false,
        pipe_ends: vec![],
        master: Master::Dead,
        covering: vec![],
        autofs_children: vec![],
        waiters: vec![],
        hidden_by: None,
    };
    DumpedMount { root_mode: 0o755, ..DumpedMount::of(facts) }
}

pub fn write_image(dir: &Path, mounts: Vec<DumpedMount>) {
    write_served(dir, mounts, vec![]);
}

pub fn write_served(dir: &Path, mounts: Vec<DumpedMount>, services: Vec<Service>) {
    let checkpoint = Checkpoint { origin: origin(Left::Running), mounts, services };
    image::write(dir, &checkpoint, Existing::Replace).unwrap();
}

/// A map whose every key is a tmpfs.
pub fn tmpfs_map(mount_point: &Path, keys: &[&Path]) -> Service {
    let entry = |key: &&Path| (key.as_os_str().as_bytes().to_vec(), b"-fstype=tmpfs :tmpfs".to_vec());
    Service::MasterEntry {
        mount_point: mount_point.into(),
        map: b"file:/nonexistent/auto.x".to_vec(),
        options: vec![],
        entries: keys.iter().map(entry).collect(),
    }
}

/// An engine that a restore started, ended with the test.
pub struct Engine(ProcessId);

impl Engine {
    pub fn of(report: &serde_json::Value) -> Self {
        Self(ProcessId::of(report["master"].as_i64().unwrap() as i32).unwrap())
    }

    pub fn end(self) {
        self.0.signal(Signal::TERM).unwrap();
        wait_until(|| (!self.0.is_alive()).then_some(()));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.0.signal(Signal::KILL);
    }
}

fn entry(path: &str, mode: u32) -> TreeEntry {
    TreeEntry { path: path.into(), mode, uid: 0, gid: 0, symlink: None, timeout: None, requester: None }
}

#[test]
fn everything_inside_a_mount_comes_back() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let who = Some(Requester { uid: 1234, gid: 77 });
    let mut direct = dumped(&home.join("data"), 300, MountType::Direct);
    direct.facts.options.strict_expire = true;
    direct.facts.options.ignore = true;
    direct.facts.mount_flags = vec!["rw".into(), "nosuid".into(), "noatime".into()];
    direct.facts.propagation.shared = Some(1);
    (direct.root_uid, direct.root_gid, direct.root_mode) = (10, 20, 0o711);
    (direct.facts.options.uid, direct.facts.options.gid) = (Some(10), Some(20));
    direct.root_requester = who;
    direct.tree = vec![entry("sub", 0o2750)];
    let mut indirect = dumped(&home.join("deep/er/mnt"), 299, MountType::Indirect);
    indirect.tree = vec![
        TreeEntry { requester: who, timeout: Some(17), ..entry("key", 0o700) },
        TreeEntry { uid: 5, gid: 6, ..entry("key/sub", 0o1777) },
        entry("key/sub/deeper", 0o755),
        TreeEntry { symlink: Some("/srv/x y".into()), ..entry("link", 0o555) },
    ];
    write_image(&image, vec![direct, indirect]);

    let report = restore(&["-D", image.to_str().unwrap()]);
    let dev = |index: usize| {
        let mount = &report["mounts"][index];
        assert_eq!(mount["how"], "created");
        assert_eq!(mount["differences"], serde_json::json!([]));
        serde_json::from_value::<DevNum>(mount["now"]["dev"].clone()).unwrap()
    };
    let data = fs::metadata(home.join("data")).unwrap();
    assert_eq!((data.mode() & 0o7777, data.uid(), data.gid()), (0o711, 10, 20));
    assert_eq!(fs::metadata(home.join("data/sub")).unwrap().mode() & 0o7777, 0o2750);
    let mnt = home.join("deep/er/mnt");
    assert_eq!(fs::metadata(mnt.join("key")).unwrap().mode() & 0o7777, 0o700);
    let sub = fs::metadata(mnt.join("key/sub")).unwrap();
    assert_eq!((sub.mode() & 0o7777, sub.uid(), sub.gid()), (0o1777, 5, 6));
    assert!(mnt.join("key/sub/deeper").is_dir());
    assert_eq!(fs::read_link(mnt.join("link")).unwrap(), PathBuf::from("/srv/x y"));

    let control = Control::open().unwrap();
    let root = control.open_mount(&home.join("data"), dev(0)).unwrap();
    assert_eq!(Some(control.requester(root.as_fd(), &home.join("data")).unwrap()), who);
    let root = control.open_mount(&mnt, dev(1)).unwrap();
    assert_eq!(control.set_dentry_timeout(root.as_fd(), b"key", Some(1)).unwrap(), 17);
}

/// What only a master can ask for (requesters, timeouts of keys) is not in it: there is none.
#[test]
fn a_dump_of_what_was_restored_is_the_same() {
    let home = private_mount_namespace();
    let [first, second] = ["first", "second"].map(|name| home.join(name));
    let mut direct = dumped(&home.join("data"), HIGH + 10, MountType::Direct);
    direct.facts.options.strict_expire = true;
    direct.facts.mount_flags = vec!["rw".into(), "nosuid".into(), "noatime".into()];
    (direct.root_uid, direct.root_gid, direct.root_mode) = (10, 20, 0o711);
    (direct.facts.options.uid, direct.facts.options.gid) = (Some(10), Some(20));
    let mut indirect = dumped(&home.join("mnt"), HIGH + 11, MountType::Indirect);
    indirect.facts.options.timeout = 7;
    indirect.tree = vec![
        TreeEntry { uid: 5, gid: 6, ..entry("key", 0o1777) },
        entry("key/sub", 0o755),
        TreeEntry { symlink: Some("/srv/x y".into()), ..entry("link", 0o555) },
    ];
    write_image(&first, vec![direct, indirect]);
    let report = restore(&["-D", first.to_str().unwrap()]);
    let now = |index: usize| &report["mounts"][index]["now"]["dev"];
    let paths = ["data", "mnt"].map(|name| home.join(name).to_str().unwrap().to_owned());
    let output = autofs_cr(&["dump", "-D", second.to_str().unwrap(), &paths[0], &paths[1]], None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mounts = [first, second].map(|dir| image::read(&dir).unwrap().mounts);
    assert_eq!(mounts[0].len(), mounts[1].len());
    for (index, (one, other)) in mounts[0].iter().zip(&mounts[1]).enumerate() {
        let same = |mount: &DumpedMount| {
            let DumpedMount { facts, root_mode, root_uid, root_gid, tree, .. } = mount.clone();
            let o = facts.options;
            let options =
                (o.mount_type, o.timeout, o.strict_expire, o.ignore, o.uid, o.gid, o.min_proto, o.max_proto);
            (
                facts.path,
                facts.root,
                facts.source,
                options,
                facts.mount_flags,
                root_mode,
                root_uid,
                root_gid,
                tree,
            )
        };
        assert_eq!(same(one), same(other));
        // The number is kept where it was free.
        assert_eq!(serde_json::from_value::<DevNum>(now(index).clone()).unwrap(), other.facts.dev);
    }
}

/// The mounts here, as text.
fn mount_table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

fn fails(arguments: &[&str], fault: Option<&str>) -> String {
    let output = autofs_cr(&[&["restore"], arguments].concat(), fault);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    error
}

/// A number that no test beside this one gets by chance.
const HIGH: u32 = 30_000;

/// A number, and the id of a mount, that no mount beside it in an image has by chance.
const APART: u32 = 9_000;

#[test]
fn numbers_that_are_taken() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let dir = image.to_str().unwrap();
    // One that this namespace shows, and one that it does not.
    fs::create_dir(home.join("taken")).unwrap();
    let shown = tmpfs();
    shown.attach(rustix::fs::CWD, &home.join("taken")).unwrap();
    let hidden = tmpfs();
    let (shown, hidden_minor) = (shown.dev().unwrap().minor, hidden.dev().unwrap().minor);
    write_image(
        &image,
        vec![
            dumped(&home.join("a"), shown, MountType::Direct),
            dumped(&home.join("b"), hidden_minor, MountType::Indirect),
            dumped(&home.join("c"), HIGH, MountType::Indirect),
        ],
    );
    let before = mount_table();
    let error = fails(&["-D", dir, "--require-devid"], None);
    assert!(error.contains(&format!("0:{shown} is taken by tmpfs at ")), "{error}");
    assert_eq!(mount_table(), before);

    write_image(&image, vec![dumped(&home.join("b"), hidden_minor, MountType::Indirect)]);
    let error = fails(&["-D", dir, "--require-devid"], None);
    assert!(error.contains(&format!("device number 0:{hidden_minor} cannot be had")), "{error}");
    assert_eq!(mount_table(), before);
    assert!(!home.join("b").exists());

    write_image(
        &image,
        vec![
            dumped(&home.join("a"), shown, MountType::Direct),
            dumped(&home.join("b"), hidden_minor, MountType::Indirect),
            dumped(&home.join("c"), HIGH, MountType::Indirect),
        ],
    );
    let report = restore(&["-D", dir]);
    let minor = |index: usize| report["mounts"][index]["now"]["dev"]["minor"].as_u64().unwrap();
    assert_ne!(minor(0), u64::from(shown));
    assert_ne!(minor(1), u64::from(hidden_minor));
    assert_eq!(minor(2), u64::from(HIGH));
    assert!(report["mounts"][0]["taken_by"].as_str().unwrap().starts_with("tmpfs at "));
}

/// A lower number becomes free while superblocks are made: each that follows would have the one before its own.
#[test]
fn numbers_that_somebody_shifts() {
    const FIRST: u32 = 20_100;
    let home = private_mount_namespace();
    let low = tmpfs();
    let mounts = (FIRST..FIRST + 5).map(|minor| dumped(&home.join("a"), minor, MountType::Direct)).collect();
    let image = Checkpoint { origin: origin(Left::Running), mounts, services: vec![] };
    let mut steps: Vec<_> = (0..5)
        .map(|mount| Step {
            mount,
            path: home.join("a"),
            action: Action::Create { number: Number::Must(image.mounts[mount].facts.dev), in_tree: false },
            attach: Attach::Nobody,
        })
        .collect();
    let others = RestorePlan { steps: steps.split_off(1), ..RestorePlan::default() };
    let first = RestorePlan { steps, ..RestorePlan::default() };
    let mut claims = Claims::new();
    assert_eq!(claims.hold(image.mounts.iter().map(|mount| mount.facts.dev)).unwrap(), []);

    let first = create::configure(&image, &first).unwrap().create(&mut claims).unwrap();
    drop(low);
    let others = create::configure(&image, &others).unwrap().create(&mut claims).unwrap();
    let mut found = Vec::new();
    for created in [first, others] {
        let mounts = created.finish(&mut claims).unwrap().into_mounts();
        found.extend(mounts.map(|mount| mount.dev().unwrap().minor).collect::<Vec<_>>());
    }
    assert_eq!(found, (FIRST..FIRST + 5).collect::<Vec<_>>());
}

/// A lower number becomes free when all below the wanted one seemed taken: what gets it must not keep it from the next filler.
#[test]
fn a_number_below_that_somebody_gives_back() {
    const WANTED: u32 = 20_200;
    private_mount_namespace();
    let mut low = Some(tmpfs());
    let mut tries = 0;
    let before = mount_table();
    let made = Claims::new().superblock::<_, MountError>(DevNum::anonymous(WANTED), || {
        tries += 1;
        drop(low.take());
        let placeholder = Placeholder::new()?;
        Ok((placeholder.mount()?, placeholder))
    });
    let (mount, _placeholder) = made.unwrap().unwrap();
    assert_eq!(mount.dev().unwrap().minor, WANTED);
    assert!(tries > 1);
    // What filled up the numbers below has ended before others have their turn.
    assert_eq!(mount_table(), before);
}

#[test]
fn a_number_out_of_reach() {
    let home = private_mount_namespace();
    let image = home.join("image");
    write_image(&image, vec![dumped(&home.join("a"), 0xf_ffff, MountType::Direct)]);
    let error = fails(&["-D", image.to_str().unwrap(), "--require-devid"], None);
    assert!(error.contains("too many free numbers"), "{error}");
}

#[test]
fn a_symbolic_link_on_the_way_is_refused() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let root = home.join("root");
    let outside = home.join("outside");
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    std::os::unix::fs::symlink("..", root.join("up")).unwrap();
    for path in ["/link", "/link/x", "/up/outside/x"] {
        write_image(
            &image,
            vec![
                dumped(Path::new("/first"), 300, MountType::Direct),
                dumped(Path::new(path), 301, MountType::Direct),
            ],
        );
        let before = mount_table();
        let error = fails(&["-D", image.to_str().unwrap(), "--root", root.to_str().unwrap()], None);
        assert!(error.contains(&format!("{}{path}: a symbolic link", root.display())), "{error}");
        assert_eq!(mount_table(), before);
        assert!(!root.join("first").exists());
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn copies_and_nested_mounts() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let mut whole = dumped(&home.join("mnt"), 300, MountType::Indirect);
    whole.tree = vec![entry("key", 0o755), entry("key/x", 0o755), entry("part", 0o700)];
    let mut child = dumped(&home.join("mnt/key/x"), 301, MountType::Offset);
    child.facts.parent_id = 300;
    let mut copy = dumped(&home.join("copy"), 300, MountType::Indirect);
    copy.facts.mount_id = 900;
    let mut part = dumped(&home.join("part"), 300, MountType::Indirect);
    (part.facts.mount_id, part.facts.root) = (901, "/part".into());
    write_image(&image, vec![whole, child, copy, part]);
    let dir = image.to_str().unwrap();
    let report = restore(&["-D", dir]);
    let how = |report: &serde_json::Value| {
        let mounts = report["mounts"].as_array().unwrap().iter();
        mounts.map(|mount| mount["how"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(how(&report), ["created", "created", "bound", "bound"]);
    assert_eq!(fs::metadata(home.join("copy/part")).unwrap().mode() & 0o7777, 0o700);
    let inode = |path: &str| fs::metadata(home.join(path)).map(|file| file.ino()).unwrap();
    assert_eq!(inode("part"), inode("mnt/part"));

    // The same again: it is all there.
    let before = mount_table();
    let report = restore(&["-D", dir]);
    assert_eq!(how(&report), ["adopted", "adopted", "skipped", "skipped"]);
    assert_eq!(mount_table(), before);
}

#[test]
fn a_fault_before_anything_is_attached_leaves_everything_as_it_was() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let mut direct = dumped(&home.join("deep/data"), 300, MountType::Direct);
    direct.root_requester = Some(Requester { uid: 1, gid: 1 });
    let mut indirect = dumped(&home.join("mnt"), 301, MountType::Indirect);
    indirect.tree = vec![entry("key", 0o755)];
    write_image(&image, vec![direct, indirect]);
    let dir = image.to_str().unwrap();
    let before = mount_table();
    for point in [
        "restore.image-read",
        "restore.planned",
        "restore.superblocks-made",
        "restore.requesters-replayed",
        "restore.mounts-prepared",
        "restore.first-attached",
        "restore.all-attached",
    ] {
        let error = fails(&["-D", dir], Some(point));
        assert!(error.contains(point), "{error}");
        assert_eq!(mount_table(), before, "{point}");
        assert!(!home.join("deep").exists() && !home.join("mnt").exists(), "{point}");
    }
}

#[test]
fn after_a_kill_a_second_restore_finishes() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let dir = image.to_str().unwrap();
    for (round, point) in
        ["superblocks-made", "requesters-replayed", "mounts-prepared", "first-attached", "all-attached"]
            .iter()
            .enumerate()
    {
        let top = home.join(format!("{round}"));
        let mut indirect = dumped(&top.join("mnt"), 300 + 3 * round as u32, MountType::Indirect);
        indirect.tree = vec![entry("key", 0o755), entry("key/x", 0o755)];
        let mut child = dumped(&top.join("mnt/key/x"), 301 + 3 * round as u32, MountType::Offset);
        child.facts.parent_id = indirect.facts.mount_id;
        let direct = dumped(&top.join("data"), 302 + 3 * round as u32, MountType::Direct);
        write_image(&image, vec![indirect, child, direct]);
        let before = mount_table();
        autofs_cr(&["restore", "-D", dir], Some(&format!("restore.{point}:kill")));
        if round < 3 {
            assert_eq!(mount_table(), before, "{point}");
        }
        let report = restore(&["-D", dir]);
        for mount in report["mounts"].as_array().unwrap() {
            assert_eq!(mount["differences"], serde_json::json!([]), "{point}: {mount:#}");
        }
    }
}

/// What `stat -f` says of a path, by a program that may wait.
fn fstype(path: &Path) -> String {
    let (status, text) = Visitor::run("stat", &[Path::new("-fc%T"), &path.join(".")]).outcome();
    if status.success() { text.trim().to_owned() } else { format!("error: {text}") }
}

#[test]
fn the_engine_serves_what_was_made_and_what_was_taken_over() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let old = Owned::new(home.join("old"), MountType::Direct);
    let waiter = old.waiter();
    let mut adopted = dumped(&old.target.path, old.target.dev.minor, MountType::Direct);
    adopted.facts.options.timeout = 0;
    let mut direct = dumped(&home.join("data"), APART, MountType::Direct);
    let mut indirect = dumped(&home.join("mnt"), APART + 1, MountType::Indirect);
    (adopted.served_by, direct.served_by, indirect.served_by) = (Some(0), Some(0), Some(1));
    indirect.tree = vec![TreeEntry { requester: Some(Requester { uid: 7, gid: 8 }), ..entry("a", 0o755) }];
    indirect.active = vec![ActiveKey { key: b"a".to_vec(), entry: None }];
    let services = vec![
        tmpfs_map(Path::new("/-"), &[&home.join("data"), &old.target.path]),
        tmpfs_map(&home.join("mnt"), &[Path::new("a"), Path::new("b")]),
    ];
    write_served(&image, vec![adopted, direct, indirect], services);
    let report = restore(&["-D", image.to_str().unwrap(), "--serve", "--remount-active"]);
    let engine = Engine::of(&report);
    let (status, text) = waiter.outcome();
    assert!(status.success(), "{text}");
    assert_eq!(text, "tmpfs\n");
    assert_eq!(report["waiters"], 1);
    assert_eq!(report["remounted"], 1);
    for mount in report["mounts"].as_array().unwrap() {
        assert_eq!(mount["differences"], serde_json::json!([]));
    }
    let before = mount_table();
    assert!(before.contains(&format!("{}/a ", home.join("mnt").display())));
    for path in ["data", "mnt/b"] {
        assert_eq!(fstype(&home.join(path)), "tmpfs");
    }
    assert!(fstype(&home.join("mnt/none")).starts_with("error"));
    engine.end();
    assert!(!mount_table().contains(" autofs "), "{}", mount_table());
}

/// An image of a mount as it is now, for its own master.
fn image_of(dir: &Path, mounts: &[&Owned]) {
    let dumped_now = |owned: &&Owned| {
        let facts = owned.facts();
        DumpedMount { facts, ..dumped(&owned.target.path, 1, MountType::Direct) }
    };
    write_image(dir, mounts.iter().map(dumped_now).collect());
}

#[test]
fn a_master_gets_back_what_was_taken_from_it() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let mounts = [
        Owned::new(home.join("direct"), MountType::Direct),
        Owned::new(home.join("indirect"), MountType::Indirect),
    ];
    image_of(&image, &[&mounts[0], &mounts[1]]);
    crate::attach::take_away(&mounts[0].target);
    let pid = mounts[0].master.pid().to_string();
    let report = restore(&["-D", image.to_str().unwrap(), "--master", &pid]);
    assert!(mounts[0].is_own_masters(), "{report:#}");
    // The other one is somebody else's: its descriptor is none of this process's business, but the pipe is that
    // of the process that the user named.
    assert_eq!(report["mounts"][0]["differences"], serde_json::json!([]));
}

/// Where mounts change hands, an error leaves everything with the old master, and nobody who waits sees it.
#[test]
fn a_fault_while_mounts_change_hands_gives_them_back() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let dir = image.to_str().unwrap();
    let mounts =
        [Owned::new(home.join("one"), MountType::Direct), Owned::new(home.join("two"), MountType::Indirect)];
    let mut images: Vec<_> = mounts
        .iter()
        .map(|owned| DumpedMount {
            facts: owned.facts(),
            served_by: Some(0),
            ..dumped(&owned.target.path, 1, MountType::Direct)
        })
        .collect();
    images.push(DumpedMount { served_by: Some(0), ..dumped(&home.join("made"), APART, MountType::Direct) });
    images[1].served_by = Some(1);
    let services = vec![
        tmpfs_map(Path::new("/-"), &[&home.join("one"), &home.join("made")]),
        tmpfs_map(&home.join("two"), &[Path::new("key")]),
    ];
    write_served(&image, images, services);
    let waiter = mounts[0].waiter();
    let before = mount_table();
    let descriptors = || mounts.iter().map(|owned| owned.master.descriptors()).collect::<Vec<_>>();
    let had = descriptors();
    for point in ["visitors-held", "first-catatonic", "all-catatonic", "waiters-restarting", "pipes-set"] {
        let point = format!("restore.{point}");
        let error = fails(&["-D", dir, "--serve"], Some(&point));
        assert!(error.contains(&point), "{error}");
        assert!(!error.contains("could not"), "{error}");
        for owned in &mounts {
            assert!(owned.is_own_masters(), "{point}");
        }
        assert_eq!(descriptors(), had, "{point}");
        assert!(!home.join("made").exists(), "{point}");
        wait_until(|| mounts[0].requests().then_some(()));
        let stable = |table: &str| {
            // The number of the pipe's descriptor is that of whoever set it last.
            let lines =
                table.lines().map(|line| line.split(",fd=").next().unwrap().split(" rw,fd=").next().unwrap());
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(stable(&mount_table()), stable(&before), "{point}");
    }
    let engine = Engine::of(&restore(&["-D", dir, "--serve"]));
    let (status, text) = waiter.outcome();
    assert!(status.success(), "{text}");
    assert_eq!(text, "tmpfs\n");
    drop(engine);
}

/// Killed in the middle: a second restore repairs it, and whoever waits gets its answer from that.
#[test]
fn a_kill_while_mounts_change_hands_is_repaired_by_a_second_restore() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let dir = image.to_str().unwrap();
    for point in ["visitors-held", "first-catatonic", "all-catatonic", "waiters-restarting", "pipes-set"] {
        let owned = Owned::new(home.join(point), MountType::Direct);
        let dumped = DumpedMount {
            facts: owned.facts(),
            served_by: Some(0),
            ..dumped(&owned.target.path, 1, MountType::Direct)
        };
        write_served(&image, vec![dumped], vec![tmpfs_map(Path::new("/-"), &[&owned.target.path])]);
        let output = autofs_cr(&["restore", "-D", dir, "--serve"], Some(&format!("restore.{point}:kill")));
        assert!(!output.status.success());
        let engine = Engine::of(&restore(&["-D", dir, "--serve"]));
        assert_eq!(fstype(&owned.target.path), "tmpfs", "{point}");
        drop(engine);
    }
}

/// A container: its own mount and pid namespace. The mount belongs to a process in it, and a visitor in it waits.
#[test]
fn into_a_container() {
    let home = private_mount_namespace();
    let image = home.join("image");
    let (outer, write) = Holder::running(
        "unshare",
        &["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "setsid", "sleep", "1000"],
    );
    let inner = outer.only_child("sleep");
    let in_container = |program: &str, arguments: &[&Path]| {
        let pid = inner.to_string();
        let enter = ["-t", &pid, "-m", "-p", "--", program].map(Path::new);
        Visitor::run("nsenter", &[&enter, arguments].concat())
    };
    let path = home.join("data");
    let space = Space::of_process(inner).unwrap();
    let dev = space
        .run(|| {
            fs::create_dir_all(&path).unwrap();
            let params =
                AutofsParams { pgrp: Some(inner), ..AutofsParams::new(write.as_fd(), MountType::Direct) };
            let mount = mount::autofs(&params, Path::new("test"), MountFlags::empty()).unwrap();
            mount.attach(CWD, &path).unwrap();
            mount.dev().unwrap()
        })
        .unwrap();
    let waiter = in_container("stat", &[Path::new("-fc%T"), &path.join(".")]);
    let read = autofs_cr::sys::process::copy_fd(inner, 0).unwrap();
    wait_until(|| {
        let mut fds = [rustix::event::PollFd::new(&read, rustix::event::PollFlags::IN)];
        (rustix::event::poll(&mut fds, Some(&Default::default())).unwrap() == 1).then_some(())
    });
    let mut adopted = dumped(&path, dev.minor, MountType::Direct);
    adopted.facts.options.timeout = 0;
    let mut made = dumped(&home.join("made"), APART, MountType::Indirect);
    (adopted.served_by, made.served_by) = (Some(0), Some(1));
    let services =
        vec![tmpfs_map(Path::new("/-"), &[&path]), tmpfs_map(&home.join("made"), &[Path::new("key")])];
    write_served(&image, vec![adopted, made], services);
    let report = restore(&["-D", image.to_str().unwrap(), "--tree", &inner.to_string(), "--serve"]);
    let engine = Engine::of(&report);
    let (status, text) = waiter.outcome();
    assert!(status.success(), "{text}");
    assert_eq!(text, "tmpfs\n");
    assert_eq!(report["waiters"], 1);
    for mount in report["mounts"].as_array().unwrap() {
        assert_eq!(mount["differences"], serde_json::json!([]));
    }
    let (status, text) = in_container("stat", &[Path::new("-fc%T"), &home.join("made/key/.")]).outcome();
    assert!(status.success(), "{text}");
    assert!(!mount_table().contains(" autofs "));
    engine.end();
}
