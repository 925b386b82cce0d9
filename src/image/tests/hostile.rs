//! Images that someone made to do harm: well-formed and sealed, refused for what they say.

use super::forge::{FIRST, Forged, first_mount};
use super::samples::{self, directory};
use crate::discover::facts::TreeEntry;
use crate::image::checkpoint::{Checkpoint, Left};
use crate::image::error::ImageError;
use crate::image::framing::{Frames, SERVICES_MAGIC, Writer};
use crate::image::{When, convert::Wire, files, wire};
use crate::sys::DevNum;
use crate::sys::process::ProcessId;
use prost::Message;
use std::path::PathBuf;

/// Reading the sample after `change` fails like this.
#[track_caller]
fn refused(change: impl FnOnce(&mut Checkpoint), expected: &str) {
    let mut checkpoint = samples::checkpoint();
    change(&mut checkpoint);
    let error = Forged::new(&checkpoint).read().expect_err("accepted");
    assert_eq!(error.to_string(), expected);
}

/// Reading the sample, its first mount's message changed, fails like this.
#[track_caller]
fn refused_message(change: impl FnOnce(&mut wire::AutofsEntry), expected: &str) {
    let mut message = first_mount();
    change(&mut message);
    let image = Forged::new(&samples::checkpoint()).with_mounts(FIRST, &[message]);
    assert_eq!(image.read().expect_err("accepted").to_string(), expected);
}

fn tree(paths: &[&str]) -> Vec<TreeEntry> {
    paths.iter().map(|path| directory(path)).collect()
}

#[test]
fn dot_dot_in_a_mount_path() {
    refused(
        |c| c.mounts[0].facts.path = "/data/../etc".into(),
        "autofs-57.img: mounts[0].path: path with an empty, `.` or `..` component: \"/data/../etc\"",
    );
}

#[test]
fn dot_dot_in_a_tree() {
    refused(
        |c| c.mounts[0].tree = tree(&["a", "a/../../../etc"]),
        "autofs-57.img: mounts[0].tree[1].path: path with an empty, `.` or `..` component: \"a/../../../etc\"",
    );
}

#[test]
fn absolute_path_in_a_tree() {
    refused(
        |c| c.mounts[0].tree = tree(&["/etc/cron.d"]),
        "autofs-57.img: mounts[0].tree[0].path: not a relative path: \"/etc/cron.d\"",
    );
}

#[test]
fn other_spellings_of_a_path() {
    for path in ["//data", "/data/", "/./data", "/data//x", "/data/."] {
        refused(
            |c| c.mounts[0].facts.path = path.into(),
            &format!("autofs-57.img: mounts[0].path: path with an empty, `.` or `..` component: {path:?}"),
        );
    }
    refused(
        |c| c.mounts[0].facts.path = "data".into(),
        "autofs-57.img: mounts[0].path: not an absolute path: \"data\"",
    );
    refused(
        |c| c.mounts[0].facts.path = "".into(),
        "autofs-57.img: mounts[0].path: not an absolute path: \"\"",
    );
}

#[test]
fn nul_in_a_path() {
    refused(
        |c| c.mounts[0].facts.path = "/data\0/x".into(),
        "autofs-57.img: mounts[0].path: contains a NUL byte",
    );
}

#[test]
fn a_path_that_is_too_long() {
    refused(
        |c| c.mounts[0].facts.path = PathBuf::from("/x".repeat(3000)),
        "autofs-57.img: mounts[0].path: 5999 bytes exceed the limit of 4095",
    );
    refused(
        |c| c.mounts[0].tree = tree(&[&"x".repeat(256)]),
        "autofs-57.img: mounts[0].tree[0].path: 256 bytes exceed the limit of 255",
    );
}

#[test]
fn a_path_through_a_symlink() {
    refused(
        |c| {
            let link = TreeEntry { symlink: Some("/etc".into()), ..directory("link") };
            c.mounts[0].tree = vec![link, directory("link/cron.d")];
        },
        "autofs-57.img: mounts[0].tree[1].path: no directory \"link\" before it",
    );
}

#[test]
fn a_child_before_its_parent_in_a_tree() {
    refused(
        |c| c.mounts[0].tree = tree(&["a/b", "a"]),
        "autofs-57.img: mounts[0].tree[0].path: no directory \"a\" before it",
    );
}

#[test]
fn the_same_path_twice_in_a_tree() {
    refused(
        |c| c.mounts[0].tree = tree(&["a", "a"]),
        "autofs-57.img: mounts[0].tree[1].path: duplicate: \"a\"",
    );
}

/// A target may be anything: nobody follows it, and a restore only makes the link again.
#[test]
fn a_symlinks_target_is_only_data() {
    let mut checkpoint = samples::checkpoint();
    let link = TreeEntry { symlink: Some("/../../etc/shadow".into()), ..directory("link") };
    checkpoint.mounts[0].tree = vec![link];
    assert_eq!(Forged::new(&checkpoint).read().unwrap(), checkpoint);
    refused(
        |c| c.mounts[0].tree = vec![TreeEntry { symlink: Some("".into()), ..directory("link") }],
        "autofs-57.img: mounts[0].tree[0].symlink: empty",
    );
}

#[test]
fn mode_bits_that_are_no_permissions() {
    refused(
        |c| c.mounts[0].tree = vec![TreeEntry { mode: 0o60755, ..directory("disk") }],
        "autofs-57.img: mounts[0].tree[0].mode: 25069 is out of range (permission bits: 0 to 07777)",
    );
}

#[test]
fn a_timeout_where_the_kernel_keeps_none() {
    refused(
        |c| c.mounts[0].tree = vec![directory("a"), TreeEntry { timeout: Some(1), ..directory("a/b") }],
        "autofs-57.img: mounts[0].tree[1].timeout: not allowed here: only keys of indirect mounts have one",
    );
}

#[test]
fn a_child_mount_before_its_parent() {
    refused(
        |c| {
            c.mounts[1].facts.parent_id = 40;
            c.mounts.swap(0, 1);
        },
        "autofs-74565.img: mounts[0].parent_id: stands before its parent, mount 40",
    );
    refused(
        |c| c.mounts.swap(0, 1),
        "autofs-57.img: mounts[1].autofs_children[0]: stands before its parent, mount 40",
    );
}

#[test]
fn a_mount_that_is_its_own_parent_or_child() {
    refused(
        |c| c.mounts[0].facts.parent_id = 40,
        "autofs-57.img: mounts[0].parent_id: stands before its parent, mount 40",
    );
    refused(
        |c| c.mounts[0].facts.autofs_children = vec![40],
        "autofs-57.img: mounts[0].autofs_children[0]: stands before its parent, mount 40",
    );
}

#[test]
fn the_same_mount_twice() {
    refused(|c| c.mounts[2].facts.mount_id = 40, "autofs-58.img: mounts[2].mount_id: duplicate: 40");
    refused(
        |c| c.mounts[2].facts.path = "/data".into(),
        "autofs-58.img: mounts[2].path: duplicate: \"/data\"",
    );
}

#[test]
fn one_superblock_with_two_types() {
    refused(
        |c| c.mounts[2].facts.dev = c.mounts[0].facts.dev,
        "autofs-57.img: mounts[2].mode: inconsistent: the same superblock has another type elsewhere",
    );
}

#[test]
fn device_numbers_that_no_kernel_has() {
    refused(
        |c| c.mounts[0].facts.dev = DevNum { major: 8, minor: 1 },
        "autofs-8388609.img: mounts[0].dev_major: 8 is out of range (autofs has major 0)",
    );
    refused_message(
        |m| m.dev_minor = Some(1 << 20),
        "autofs-57.img: dev_minor: inconsistent: not the device number in the file's name",
    );
    refused(
        |c| c.mounts[0].facts.covering[0].dev.minor = 1 << 20,
        "autofs-57.img: mounts[0].covering[0].dev_minor: 1048576 is out of range (20 bits)",
    );
}

#[test]
fn a_key_that_is_more_than_a_name() {
    for key in ["../../etc", "a/b"] {
        refused(
            |c| c.mounts[0].active[0].key = key.into(),
            &format!("autofs-57.img: mounts[0].active[0].key: not a single path component: {key:?}"),
        );
    }
    refused(
        |c| c.mounts[0].active[0].key = b"..".to_vec(),
        "autofs-57.img: mounts[0].active[0].key: path with an empty, `.` or `..` component: \"..\"",
    );
    refused(
        |c| c.mounts[0].in_flight[0].packet.as_mut().unwrap().1 = b"../x".to_vec(),
        "autofs-57.img: mounts[0].in_flight[0].key: path with an empty, `.` or `..` component: \"../x\"",
    );
}

#[test]
fn the_same_key_twice() {
    refused(
        |c| c.mounts[0].active = vec![c.mounts[0].active[0].clone(); 2],
        "autofs-57.img: mounts[0].active[1].key: duplicate: \"src\"",
    );
}

#[test]
fn a_covering_mount_elsewhere() {
    refused(
        |c| c.mounts[0].facts.covering[0].path = "/database".into(),
        "autofs-57.img: mounts[0].covering[0].path: \"/database\" is not below \"/data\"",
    );
    refused(
        |c| c.mounts[0].facts.covering[0].root = "/a/../../b".into(),
        "autofs-57.img: mounts[0].covering[0].root: path with an empty, `.` or `..` component: \"/a/../../b\"",
    );
}

#[test]
fn a_file_system_type_that_is_a_path_or_an_option() {
    refused(
        |c| c.mounts[0].facts.covering[0].fstype = "../../tmp/evil".into(),
        "autofs-57.img: mounts[0].covering[0].fstype: not a single path component: \"../../tmp/evil\"",
    );
    refused(
        |c| c.mounts[0].facts.covering[0].fstype = "-oexec".into(),
        "autofs-57.img: mounts[0].covering[0].fstype: not allowed here: a leading dash",
    );
}

#[test]
fn text_that_deceives_a_terminal() {
    refused(
        |c| c.mounts[0].facts.pipe_ends[0].comm = "\u{1b}[2Jautomount".into(),
        "autofs-57.img: mounts[0].pipe_ends[0].comm: contains a character that cannot be printed: \
         \"\\u{1b}[2Jautomount\"",
    );
}

#[test]
fn an_index_that_points_nowhere() {
    refused(
        |c| c.mounts[0].served_by = Some(2),
        "autofs-57.img: mounts[0].served_by: points to entry 2 of 2",
    );
}

#[test]
fn processes_that_cannot_be() {
    let process = ProcessId { pid: 0, start_time: 1 };
    refused(
        |c| c.origin.left = Left::Held { holder: process },
        "autofs-cr-inventory.img: origin.holder.pid: 0 is out of range (1 and up)",
    );
    refused(
        |c| c.mounts[0].facts.waiters[0].tid = -1,
        "autofs-57.img: mounts[0].waiters[0].tid: -1 is out of range (1 and up)",
    );
    refused(
        |c| c.mounts[0].facts.pipe_ends[0].process = process,
        "autofs-57.img: mounts[0].pipe_ends[0].process.pid: 0 is out of range (1 and up)",
    );
}

#[test]
fn options_that_contradict_each_other() {
    refused(
        |c| c.mounts[0].facts.catatonic = true,
        "autofs-57.img: mounts[0].catatonic: inconsistent: a mount is catatonic exactly when its fd is -1",
    );
    refused(
        |c| c.mounts[2].facts.options.pipe_ino = Some(1),
        "autofs-58.img: mounts[2].pipe_ino: not allowed here: a catatonic mount has no pipe",
    );
    refused(
        |c| c.mounts[0].facts.options.min_proto = 6,
        "autofs-57.img: mounts[0].maxproto: inconsistent: minproto <= maxproto <= 255 does not hold",
    );
    refused_message(
        |m| m.timeout_seconds = Some(5),
        "autofs-57.img: timeout_seconds: inconsistent: differs from the stock field timeout",
    );
    refused_message(|m| m.timeout = Some(-1), "autofs-57.img: timeout: -1 is out of range (0 and up)");
}

#[test]
fn option_text_that_would_add_options() {
    refused(
        |c| c.mounts[0].facts.mount_flags[0] = "ro,suid".into(),
        "autofs-57.img: mounts[0].mount_flags[0]: not allowed here: a comma",
    );
}

#[test]
fn missing_and_unknown_values() {
    refused_message(|m| m.path = None, "autofs-57.img: path: missing");
    refused_message(|m| m.mode = Some(3), "autofs-57.img: mode: unknown value 3");
    refused_message(|m| m.master.as_mut().unwrap().process = None, "autofs-57.img: master.process: missing");
    refused_message(
        |m| m.master.as_mut().unwrap().program = Some(99),
        "autofs-57.img: master.program: unknown value 99",
    );
    refused_message(|m| m.in_flight[0].key = None, "autofs-57.img: in_flight[0].key: missing");
    let image = Forged::new(&samples::checkpoint()).with_services(&[wire::Service::default()]);
    let error = image.read().unwrap_err();
    assert_eq!(error.to_string(), "autofs-cr-services.img: services[0].kind: missing");
}

#[test]
fn positions_that_leave_a_hole() {
    refused_message(
        |m| m.position = Some(u32::MAX),
        "autofs-74565.img: position: inconsistent: the positions of all mounts are not 0, 1, 2 ...",
    );
}

#[test]
fn a_string_that_is_too_long() {
    refused(
        |c| c.mounts[0].facts.source = PathBuf::from("x".repeat(65537)),
        "autofs-57.img: mounts[0].source: 65537 bytes exceed the limit of 65536",
    );
}

/// A program map is data. Who serves the maps has to ask what that would run.
#[test]
fn a_program_map_is_reported_and_not_run() {
    let mut checkpoint = samples::checkpoint();
    if let crate::image::checkpoint::Service::MasterEntry { map, .. } = &mut checkpoint.services[0] {
        *map = b"program:/tmp/evil.sh".to_vec();
    }
    let read = Forged::new(&checkpoint).read().unwrap();
    let commands = read.commands();
    assert_eq!(commands.len(), 1);
    assert_eq!(commands[0].program, PathBuf::from("/tmp/evil.sh"));
    assert_eq!(commands[0].mount_point, PathBuf::from("/data"));
    assert_eq!(commands[0].when, When::Always);
}

#[test]
fn the_inventory_names_a_file_elsewhere() {
    for name in
        ["../../etc/shadow", "/etc/shadow", "autofs-cr-inventory.img", "autofs-057.img", "autofs-+1.img"]
    {
        let mut image = Forged::new(&samples::checkpoint());
        image.0[1].name = name.to_owned();
        let error = image.reseal().read().unwrap_err().to_string();
        let expected =
            "autofs-cr-inventory.img: files[1].name: not allowed here: not the name of an image file";
        assert_eq!(error, expected);
    }
}

#[test]
fn the_inventory_names_a_file_twice() {
    let mut image = Forged::new(&samples::checkpoint());
    image.0.insert(1, image.0[1].clone());
    let error = image.reseal().read().unwrap_err().to_string();
    assert_eq!(error, "autofs-cr-inventory.img: files[2].name: duplicate: autofs-57.img");
}

/// The sample's inventory, lengths as told.
fn with_lengths(length: u64) -> ImageError {
    let origin = samples::checkpoint().origin.encode();
    let file = |minor: u32| wire::File {
        name: Some(files::mount(DevNum::anonymous(minor))),
        length: Some(length),
        crc32: Some(0),
    };
    let inventory = wire::Inventory {
        major: Some(1),
        minor: Some(0),
        origin: Some(origin),
        files: (0..3).map(file).collect(),
    };
    let mut image = Forged::new(&samples::checkpoint());
    let mut writer = Writer::new(crate::image::INVENTORY_MAGIC);
    writer.push(&inventory);
    writer.push(&wire::Seal { crc32: Some(crc32fast::hash(writer.bytes())) });
    *image.file(files::INVENTORY) = writer.finish();
    image.read().unwrap_err()
}

#[test]
fn lengths_beyond_every_limit() {
    for (length, file) in [(u64::MAX, "autofs-0.img"), (100 << 20, "autofs-2.img")] {
        let error = with_lengths(length).to_string();
        assert!(error.starts_with(file) && error.ends_with("exceed the limit of 268435456"), "{error}");
    }
}

#[test]
fn a_frame_of_four_gigabytes() {
    let mut image = Forged::new(&samples::checkpoint());
    image.file(FIRST)[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = image.reseal().read().unwrap_err().to_string();
    assert!(error.starts_with("autofs-57.img is cut off: 4294967295 bytes wanted at byte 12"), "{error}");
}

/// Three bytes on the wire for an entry, fifty times that in memory: counted before it is decoded.
#[test]
fn a_billion_entries() {
    let tree = [0x82, 0x07, 0].repeat(3 << 20);
    too_many([first_mount().encode_to_vec(), tree].concat());

    let super_options = [0x4a, 0].repeat(3 << 20);
    let mut covering = vec![0xc2, 0x08];
    prost::encode_length_delimiter(super_options.len(), &mut covering).unwrap();
    too_many([first_mount().encode_to_vec(), covering, super_options].concat());
}

#[track_caller]
fn too_many(message: Vec<u8>) {
    let mut image = Forged::new(&samples::checkpoint());
    let file = image.file(FIRST);
    file.truncate(8);
    file.extend_from_slice(&(message.len() as u32).to_le_bytes());
    file.extend_from_slice(&message);
    let error = image.reseal().read().unwrap_err().to_string();
    assert_eq!(error, "autofs-57.img: more than 2097152 entries (at byte 12)");
}

#[test]
fn many_entries_over_many_messages() {
    let mut file = Writer::new(SERVICES_MAGIC);
    let service = wire::Service { kind: None, entries: vec![wire::MapEntry::default(); 70] };
    (0..3).for_each(|_| file.push(&service));
    let bytes = file.finish();
    // Of 70 fields each 64 are free.
    let mut budget = 15;
    let mut decoded =
        Frames::open("x", &bytes, SERVICES_MAGIC).unwrap().map(|frame| frame?.decode(&[], &mut budget));
    let mut next = || decoded.next().unwrap().map(|service: wire::Service| service.entries.len());
    assert!(matches!((next(), next()), (Ok(70), Ok(70))));
    assert!(matches!(next(), Err(ImageError::TooMany { .. })));
}
