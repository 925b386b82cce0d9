use super::*;
use crate::discover::facts::{AutofsOptions, CoveringMount, End, PipeEnd, Propagation, TreeEntry};
use crate::image::When;
use crate::image::checkpoint::{ActiveKey, Left, Origin, Service};
use crate::sys::process::ProcessId;
use proptest::prelude::*;

const DAEMON: ProcessId = ProcessId { pid: 100, start_time: 5 };

fn options(mount_type: MountType) -> AutofsOptions {
    AutofsOptions::parse(format!("fd=5,pgrp=100,minproto=5,maxproto=5,{mount_type},pipe_ino=77").as_bytes())
}

/// A mount of automount's with mount id = its device number.
fn mount(path: &str, minor: u32, mount_type: MountType) -> AutofsMount {
    AutofsMount {
        mount_id: minor.into(),
        parent_id: 1,
        dev: DevNum::anonymous(minor),
        path: path.into(),
        root: "/".into(),
        source: "/etc/auto.x".into(),
        options: options(mount_type),
        mount_flags: vec![],
        propagation: Propagation::default(),
        catatonic: false,
        pipe_ends: vec![PipeEnd {
            process: DAEMON,
            comm: "automount".into(),
            fd: 7,
            end: End::Read,
            flags: 0,
        }],
        master: Master::Automount { process: DAEMON },
        covering: vec![],
        autofs_children: vec![],
        waiters: vec![],
        hidden_by: None,
    }
}

fn below_of(parent: &AutofsMount, path: &str, minor: u32) -> AutofsMount {
    AutofsMount { parent_id: parent.mount_id, ..mount(path, minor, MountType::Offset) }
}

fn covering(path: &str, id: u64) -> CoveringMount {
    CoveringMount {
        mount_id: id,
        path: path.into(),
        dev: DevNum::anonymous(900),
        root: "/".into(),
        fstype: "tmpfs".into(),
        source: "t".into(),
        mount_flags: vec![],
        super_options: vec![],
        propagation: Propagation::default(),
    }
}

fn dead(mount: AutofsMount) -> AutofsMount {
    let mut options = mount.options.clone();
    (options.fd, options.pipe_ino) = (-1, None);
    AutofsMount { options, catatonic: true, pipe_ends: vec![], master: Master::Dead, ..mount }
}

/// An image; every mount is served by the one service.
fn image(mounts: Vec<AutofsMount>) -> Checkpoint {
    let dumped = |facts| DumpedMount { root_mode: 0o755, served_by: Some(0), ..DumpedMount::of(facts) };
    Checkpoint {
        origin: Origin {
            created: 0,
            tool: String::new(),
            kernel: String::new(),
            boot_id: String::new(),
            mount_namespace: 0,
            left: Left::Running,
        },
        mounts: mounts.into_iter().map(dumped).collect(),
        services: vec![Service::MasterEntry {
            mount_point: "/-".into(),
            map: b"program:/etc/auto.sh".to_vec(),
            options: vec![],
            entries: vec![],
        }],
    }
}

fn wishes(master: NewMaster) -> Wishes {
    Wishes { root: "/".into(), require_devid: false, master, remount_active: false, untrusted: vec![] }
}

/// Plan with these autofs mounts here and these other lines in mountinfo.
fn try_plan(
    image: &Checkpoint,
    here: &[AutofsMount],
    table: &str,
    wishes: &Wishes,
) -> Result<RestorePlan, Vec<Conflict>> {
    let mut table = table.to_owned();
    for mount in here {
        table += &format!("{} 1 {} / {} rw - autofs x rw\n", mount.mount_id, mount.dev, mount.path.display());
    }
    let table = mountinfo::parse(table.as_bytes()).unwrap();
    plan(image, &Now { mounts: here, table: &table, same_boot: true }, wishes).map_err(|error| error.0)
}

fn actions(plan: &RestorePlan) -> Vec<&Action> {
    plan.steps.iter().map(|step| &step.action).collect()
}

fn may(minor: u32) -> Action {
    Action::Create { number: Number::May(DevNum::anonymous(minor)), in_tree: false }
}

#[test]
fn what_is_missing_is_created_and_what_is_there_is_adopted() {
    let image = image(vec![
        mount("/data", 40, MountType::Direct),
        mount("/mnt", 41, MountType::Indirect),
        mount("/home", 42, MountType::Indirect),
    ]);
    let here = [mount("/mnt", 41, MountType::Indirect), dead(mount("/home", 42, MountType::Indirect))];
    let plan = try_plan(&image, &here, "", &wishes(NewMaster::Engine)).unwrap();
    let adopt = |minor, live| Action::Adopt { dev: DevNum::anonymous(minor), live };
    assert_eq!(actions(&plan), [&may(40), &adopt(41, true), &adopt(42, false)]);
    assert!(plan.steps.iter().all(|step| step.attach == Attach::Engine));
    assert_eq!(plan.services, BTreeSet::from([0]));
    assert!(plan.visits.is_empty());
}

#[test]
fn a_mount_that_was_restored_with_a_new_number_is_adopted_again() {
    let image = image(vec![mount("/data", 40, MountType::Direct)]);
    let other = mount("/data", 50, MountType::Direct);
    let plan = try_plan(&image, &[dead(other.clone())], "", &wishes(NewMaster::Engine)).unwrap();
    assert_eq!(actions(&plan), [&Action::Adopt { dev: other.dev, live: false }]);

    let conflicts =
        try_plan(&image, std::slice::from_ref(&other), "", &wishes(NewMaster::Engine)).unwrap_err();
    let by = "automount, process 100".into();
    assert_eq!(conflicts, [Conflict::Served { path: "/data".into(), dev: other.dev, by }]);
}

#[test]
fn of_several_mounts_at_a_path_the_one_of_the_image_is_taken() {
    let image = image(vec![mount("/data", 40, MountType::Direct)]);
    let here = [mount("/data", 40, MountType::Direct), mount("/data", 41, MountType::Direct)];
    let plan = try_plan(&image, &here, "", &wishes(NewMaster::Engine)).unwrap();
    assert_eq!(actions(&plan), [&Action::Adopt { dev: DevNum::anonymous(40), live: true }]);
}

#[test]
fn numbers_of_another_boot_mean_nothing() {
    let image = image(vec![mount("/data", 40, MountType::Direct)]);
    let here = [mount("/data", 40, MountType::Direct)];
    let now = Now { mounts: &here, table: &[], same_boot: false };
    let error = plan(&image, &now, &wishes(NewMaster::Engine)).unwrap_err();
    assert!(matches!(error.0[..], [Conflict::Served { .. }]));
}

#[test]
fn other_mounts_in_the_way() {
    let image = image(vec![mount("/data", 40, MountType::Direct), mount("/mnt", 41, MountType::Direct)]);
    let table = "9 1 8:1 / /data rw - ext4 /dev/sda1 rw\n";
    let here = [mount("/mnt", 41, MountType::Indirect)];
    let conflicts = try_plan(&image, &here, table, &wishes(NewMaster::Nobody)).unwrap_err();
    assert_eq!(
        conflicts,
        [
            Conflict::Occupied { path: "/data".into(), fstype: "ext4".into(), device: "/dev/sda1".into() },
            Conflict::Type { path: "/mnt".into(), here: MountType::Indirect, image: MountType::Direct },
        ]
    );
}

#[test]
fn a_taken_number() {
    let image = image(vec![mount("/data", 40, MountType::Indirect)]);
    let table = "9 1 0:40 / /tmp/x rw - tmpfs t rw\n";
    let plan = try_plan(&image, &[], table, &wishes(NewMaster::Engine)).unwrap();
    let number = Number::New { taken_by: "tmpfs at /tmp/x".into() };
    assert_eq!(actions(&plan), [&Action::Create { number, in_tree: false }]);

    let insist = Wishes { require_devid: true, ..wishes(NewMaster::Engine) };
    let conflicts = try_plan(&image, &[], table, &insist).unwrap_err();
    let text = PlanError(conflicts).to_string();
    assert_eq!(text, "/data: its device number 0:40 is taken by tmpfs at /tmp/x");
    let free = try_plan(&image, &[], "", &insist).unwrap();
    let number = Number::Must(DevNum::anonymous(40));
    assert_eq!(actions(&free), [&Action::Create { number, in_tree: false }]);
}

#[test]
fn what_the_old_daemons_know_their_mounts_by() {
    let mut mounts = vec![mount("/data", 40, MountType::Direct), mount("/mnt", 41, MountType::Indirect)];
    let conflicts = try_plan(&image(mounts.clone()), &[], "", &wishes(NewMaster::Process)).unwrap_err();
    assert_eq!(conflicts, [Conflict::InodeLost("/data".into())]);

    for mount in &mut mounts {
        mount.master = Master::Systemd { process: DAEMON, unit: "x.automount".into() };
    }
    let plan = try_plan(&image(mounts), &[], "", &wishes(NewMaster::Process)).unwrap();
    let must = |minor| Action::Create { number: Number::Must(DevNum::anonymous(minor)), in_tree: false };
    assert_eq!(actions(&plan), [&must(40), &must(41)]);
    assert!(plan.steps.iter().all(|step| step.attach == Attach::Process { read_fd: 7 }));
}

#[test]
fn nested_mounts_where_nothing_is_left() {
    let mut top = mount("/mnt", 40, MountType::Indirect);
    top.covering = vec![covering("/mnt/nfs", 60)];
    let in_tree = below_of(&top, "/mnt/rootless/x", 41);
    let mut in_active = mount("/mnt/nfs/y", 42, MountType::Offset);
    in_active.parent_id = 60;
    let deeper = below_of(&in_active, "/mnt/nfs/y/z", 43);
    // its parent is neither autofs nor on a trigger
    let unknown = AutofsMount { parent_id: 99, ..mount("/mnt/nfs/a/b", 44, MountType::Offset) };
    let image = image(vec![top, in_tree, in_active, deeper, unknown]);
    let plan = try_plan(&image, &[], "", &wishes(NewMaster::Engine)).unwrap();
    let skip = Action::Skip(Why::MadeOnDemand);
    let child = Action::Create { number: Number::May(DevNum::anonymous(41)), in_tree: true };
    assert_eq!(actions(&plan), [&may(40), &child, &skip, &skip, &skip]);
}

#[test]
fn nested_mounts_below_one_that_is_adopted() {
    let top = mount("/mnt", 40, MountType::Indirect);
    let child = below_of(&top, "/mnt/rootless/x", 41);
    let image = image(vec![top.clone(), child.clone()]);
    let of_child = |here: &[AutofsMount]| {
        let plan = try_plan(&image, here, "", &wishes(NewMaster::Engine)).unwrap();
        plan.steps[1].action.clone()
    };
    assert_eq!(of_child(std::slice::from_ref(&top)), Action::Skip(Why::MadeOnDemand));
    assert_eq!(of_child(&[top.clone(), child.clone()]), Action::Adopt { dev: child.dev, live: true });
    let number = Number::May(child.dev);
    assert_eq!(of_child(&[dead(top)]), Action::Create { number, in_tree: true });
}

#[test]
fn copies_of_a_superblock() {
    let mut copy = mount("/copy", 40, MountType::Indirect);
    copy.mount_id = 90;
    let mut part = copy.clone();
    (part.mount_id, part.path, part.root) = (91, "/part".into(), "/key".into());
    let whole = mount("/mnt", 40, MountType::Indirect);
    let image_of = |mounts: &[&AutofsMount]| image(mounts.iter().map(|&m| m.clone()).collect());

    let plan = try_plan(&image_of(&[&whole, &copy, &part]), &[], "", &wishes(NewMaster::Engine)).unwrap();
    assert_eq!(actions(&plan), [&may(40), &Action::Bind { of: 0 }, &Action::Bind { of: 0 }]);
    assert_eq!(plan.steps[1].attach, Attach::Nobody);

    let here = [whole.clone(), copy.clone()];
    let plan = try_plan(&image_of(&[&whole, &copy]), &here, "", &wishes(NewMaster::Engine)).unwrap();
    assert_eq!(plan.steps[1].action, Action::Skip(Why::CopyIsThere));

    let plan = try_plan(&image_of(&[&part, &whole]), &[], "", &wishes(NewMaster::Engine)).unwrap();
    assert_eq!(actions(&plan), [&Action::Skip(Why::OnlyAPart), &may(40)]);
}

#[test]
fn below_a_root() {
    let image = image(vec![mount("/data", 40, MountType::Direct)]);
    let wishes = Wishes { root: "/srv/box".into(), ..wishes(NewMaster::Engine) };
    // mounts outside are not in the way, and the root may be a mount point
    let table = "9 1 8:1 / /srv/box rw - ext4 /dev/sda1 rw\n10 1 8:2 / /data rw - ext4 /dev/sdb rw\n";
    let plan = try_plan(&image, &[], table, &wishes).unwrap();
    assert_eq!(plan.steps[0].path, PathBuf::from("/srv/box/data"));
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    for path in ["data", "/a/../etc", "/..", "/"] {
        let image = image(vec![mount(path, 40, MountType::Direct)]);
        let conflicts = try_plan(&image, &[], "", &wishes(NewMaster::Nobody)).unwrap_err();
        assert_eq!(conflicts, [Conflict::Path(path.into())], "{path}");
    }
}

#[test]
fn what_cannot_be_served() {
    let mut image = image(vec![mount("/data", 40, MountType::Direct), mount("/mnt", 41, MountType::Direct)]);
    let engine = wishes(NewMaster::Engine);
    image.mounts[0].served_by = None;
    let here = [mount("/data", 40, MountType::Direct)];
    let plan = try_plan(&image, &here, "", &engine).unwrap();
    assert_eq!(actions(&plan), [&Action::Skip(Why::NotServed), &may(41)]);
    // made all the same, but nobody gets it
    let plan = try_plan(&image, &[], "", &engine).unwrap();
    assert_eq!(plan.steps[0].action, may(40));
    assert_eq!(plan.steps[0].attach, Attach::Nobody);

    // an index out of range is as good as none
    image.mounts[1].served_by = Some(7);
    assert_eq!(try_plan(&image, &here, "", &engine).unwrap_err(), [Conflict::NothingToServe]);
    assert!(try_plan(&image, &here, "", &wishes(NewMaster::Nobody)).is_ok());
}

#[test]
fn a_program_map_needs_trust() {
    let image = image(vec![mount("/mnt", 41, MountType::Indirect)]);
    let program = Command { mount_point: "/mnt".into(), program: "/etc/auto.sh".into(), when: When::Always };
    let doubt = Wishes { untrusted: vec![program.clone()], ..wishes(NewMaster::Engine) };
    assert_eq!(try_plan(&image, &[], "", &doubt).unwrap_err(), [Conflict::Program(program)]);
    // who does not serve runs nothing
    assert!(try_plan(&image, &[], "", &Wishes { master: NewMaster::Nobody, ..doubt }).is_ok());
}

#[test]
fn active_keys_are_visited_by_who_wanted_them() {
    let mut image = image(vec![
        mount("/mnt", 40, MountType::Indirect),
        mount("/data", 41, MountType::Direct),
        mount("/data/sub", 42, MountType::Offset),
        mount("/data/idle", 43, MountType::Offset),
    ]);
    let who = Requester { uid: 1000, gid: 100 };
    let key = |key: &[u8]| ActiveKey { key: key.into(), entry: None };
    image.mounts[0].active = vec![key(b"alice"), key(b"bob")];
    image.mounts[0].tree = vec![TreeEntry {
        path: "alice".into(),
        mode: 0o755,
        uid: 0,
        gid: 0,
        symlink: None,
        timeout: None,
        requester: Some(who),
    }];
    image.mounts[1].active = vec![key(b"/data")];
    image.mounts[1].root_requester = Some(who);
    image.mounts[2].facts.covering = vec![covering("/data/sub", 61)];
    image.mounts[2].root_requester = Some(who);
    let remount = Wishes { remount_active: true, ..wishes(NewMaster::Engine) };
    let mut here = mount("/mnt", 40, MountType::Indirect);
    here.covering = vec![covering("/mnt/bob", 60)];
    let plan = try_plan(&image, &[here], "", &remount).unwrap();
    let visit = |path: &str| Visit { path: path.into(), who };
    assert_eq!(plan.visits, [visit("/mnt/alice"), visit("/data"), visit("/data/sub")]);

    let nobody = Wishes { master: NewMaster::Nobody, ..remount };
    assert_eq!(try_plan(&image, &[], "", &nobody).unwrap_err(), [Conflict::NobodyMounts]);
}

proptest! {
    /// The plan says of each mount by itself what becomes of it, and says the same each time.
    #[test]
    fn what_is_here_is_adopted_and_the_rest_created(
        mounts in prop::collection::btree_map(40u32..80, (any::<bool>(), any::<bool>()), 1..20),
    ) {
        let all: Vec<AutofsMount> = mounts.iter().map(|(minor, (direct, _))| {
            let kind = if *direct { MountType::Direct } else { MountType::Indirect };
            mount(&format!("/m{minor}"), *minor, kind)
        }).collect();
        let here: Vec<AutofsMount> =
            all.iter().zip(mounts.values()).filter(|(_, (_, is_here))| *is_here).map(|(m, _)| m.clone()).collect();
        let image = image(all.clone());
        let made = try_plan(&image, &here, "", &wishes(NewMaster::Engine)).unwrap();
        prop_assert_eq!(actions(&made).len(), all.len());
        for (mount, action) in all.iter().zip(actions(&made)) {
            let adopted = matches!(action, Action::Adopt { dev, .. } if *dev == mount.dev);
            let created = *action == may(mount.dev.minor);
            prop_assert!(if here.contains(mount) { adopted } else { created }, "{}: {action:?}", mount.path.display());
        }
        let backwards: Vec<AutofsMount> = here.iter().rev().cloned().collect();
        for here in [&here, &backwards] {
            prop_assert_eq!(&try_plan(&image, here, "", &wishes(NewMaster::Engine)).unwrap(), &made);
        }
    }
}
