//! Any checkpoint survives, and is written in the same way every time.

use super::forge::Forged;
use crate::discover::escaped::escape;
use crate::discover::facts::*;
use crate::image::checkpoint::*;
use crate::image::pack::pack;
use crate::sys::DevNum;
use crate::sys::control::{Requester, Token};
use crate::sys::process::ProcessId;
use proptest::collection::{hash_set, vec};
use proptest::option::of;
use proptest::prelude::*;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

fn bytes(range: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    vec(1u8.., range)
}

fn text() -> impl Strategy<Value = String> {
    "[^\0]{0,8}".prop_map(|text| escape(text.as_bytes()))
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    bytes(1..12)
        .prop_filter("a real name", |name| !name.contains(&b'/') && !matches!(name.as_slice(), b"." | b".."))
}

fn relative() -> impl Strategy<Value = Vec<u8>> {
    vec(name(), 1..4).prop_map(|names| names.join(&b'/'))
}

fn absolute() -> impl Strategy<Value = PathBuf> {
    relative().prop_map(|path| path_of([b"/".as_slice(), &path].concat()))
}

fn process() -> impl Strategy<Value = ProcessId> {
    (1i32.., any::<u64>()).prop_map(|(pid, start_time)| ProcessId { pid, start_time })
}

fn requester() -> impl Strategy<Value = Requester> {
    any::<(u32, u32)>().prop_map(|(uid, gid)| Requester { uid, gid })
}

fn waiter() -> impl Strategy<Value = Waiter> {
    (1i32.., process(), text(), any::<bool>()).prop_map(|(tid, process, comm, expiring)| Waiter {
        tid,
        process,
        comm,
        expiring,
    })
}

fn propagation() -> impl Strategy<Value = Propagation> {
    any::<(Option<u32>, Option<u32>, bool)>().prop_map(|(shared, slave_of, unbindable)| Propagation {
        shared,
        slave_of,
        unbindable,
    })
}

fn mount_type() -> impl Strategy<Value = MountType> {
    prop_oneof![Just(MountType::Indirect), Just(MountType::Direct), Just(MountType::Offset)]
}

fn master() -> impl Strategy<Value = Master> {
    prop_oneof![
        process().prop_map(|process| Master::Automount { process }),
        process().prop_map(|process| Master::AutofsCr { process }),
        (process(), "[a-z]{1,5}").prop_map(|(process, unit)| Master::Systemd { process, unit }),
        (process(), text()).prop_map(|(process, comm)| Master::Unknown { process, comm }),
        Just(Master::Dead),
        Just(Master::NotVisible),
    ]
}

fn options() -> impl Strategy<Value = AutofsOptions> {
    let flags = (any::<bool>(), any::<bool>(), mount_type());
    let numbers = (-1i32.., 0i32.., any::<u64>(), 3u32..=5);
    let owner = (any::<Option<u32>>(), any::<Option<u32>>(), any::<Option<u64>>(), vec("[a-z=]{1,5}", 0..3));
    (flags, numbers, owner).prop_map(|(flags, numbers, (uid, gid, pipe_ino, unknown))| {
        let (strict_expire, ignore, mount_type) = flags;
        let (fd, pgrp, timeout, max_proto) = numbers;
        AutofsOptions {
            fd,
            pgrp,
            timeout,
            min_proto: 3,
            max_proto,
            mount_type,
            strict_expire,
            ignore,
            uid,
            gid,
            pipe_ino: pipe_ino.filter(|_| fd >= 0),
            unknown,
        }
    })
}

fn pipe_end() -> impl Strategy<Value = PipeEnd> {
    let end = prop_oneof![Just(End::Read), Just(End::Write)];
    (process(), text(), 0i32.., end, any::<u32>()).prop_map(|(process, comm, fd, end, flags)| PipeEnd {
        process,
        comm,
        fd,
        end,
        flags,
    })
}

/// Its path is still relative to the mount.
fn covering() -> impl Strategy<Value = CoveringMount> {
    let place = (any::<u64>(), relative(), 0u32..4096, 0u32..1 << 20, absolute());
    let options = vec(bytes(1..9).prop_map(OsString::from_vec), 0..3);
    let flags = vec("[a-z]{1,5}", 0..3);
    (place, "[a-z][a-z.]{0,5}", bytes(0..9), flags, options, propagation()).prop_map(
        |((mount_id, path, major, minor, root), fstype, source, mount_flags, super_options, propagation)| {
            CoveringMount {
                mount_id,
                path: path_of(path),
                dev: DevNum { major, minor },
                root,
                fstype,
                source: path_of(source),
                mount_flags,
                super_options,
                propagation,
            }
        },
    )
}

/// Entries, each below an earlier directory or at the top; none twice.
fn tree() -> impl Strategy<Value = Vec<TreeEntry>> {
    let owner = (0u32..=0o7777, any::<u32>(), any::<u32>());
    let entry =
        (any::<prop::sample::Index>(), name(), owner, of(bytes(1..9)), of(any::<u64>()), of(requester()));
    vec(entry, 0..8).prop_map(|entries| {
        let mut tree: Vec<TreeEntry> = Vec::new();
        let mut seen = HashSet::new();
        for (parent, name, (mode, uid, gid), symlink, timeout, requester) in entries {
            let mut parents = vec![PathBuf::new()];
            parents.extend(tree.iter().filter(|e| e.symlink.is_none()).map(|e| e.path.clone()));
            let parent = &parents[parent.index(parents.len())];
            let at_top = parent.as_os_str().is_empty();
            let path = parent.join(path_of(name));
            if seen.insert(path.clone()) {
                let is_directory = symlink.is_none();
                tree.push(TreeEntry {
                    path,
                    mode,
                    uid,
                    gid,
                    symlink: symlink.map(path_of),
                    timeout: timeout.filter(|_| at_top && is_directory),
                    requester: requester.filter(|_| is_directory),
                });
            }
        }
        tree
    })
}

fn in_flight() -> impl Strategy<Value = InFlight> {
    let packet = of((any::<u32>().prop_map(Token), relative()));
    (packet, of(waiter()), any::<bool>()).prop_map(|(packet, waiter, was_stopped)| InFlight {
        packet,
        waiter,
        was_stopped,
    })
}

fn facts() -> impl Strategy<Value = AutofsMount> {
    let place = (absolute(), absolute(), bytes(0..9), propagation());
    let people = (vec(pipe_end(), 0..3), master(), vec(covering(), 0..3), vec(waiter(), 0..2));
    (place, options(), people, vec("[a-z]{1,5}", 0..3)).prop_map(|(place, options, people, mount_flags)| {
        let (path, root, source, propagation) = place;
        let (pipe_ends, master, mut covering, waiters) = people;
        covering.iter_mut().for_each(|one| one.path = path.join(&one.path));
        AutofsMount {
            // Numbered by `checkpoint`.
            mount_id: 0,
            parent_id: 0,
            dev: DevNum::anonymous(0),
            path,
            root,
            source: path_of(source),
            catatonic: options.fd < 0,
            options,
            mount_flags,
            propagation,
            pipe_ends,
            master,
            covering,
            autofs_children: Vec::new(),
            waiters,
            hidden_by: None,
        }
    })
}

fn mount() -> impl Strategy<Value = DumpedMount> {
    let root = (0u32..=0o7777, any::<u32>(), any::<u32>(), of(requester()));
    let active = hash_set(name(), 0..3);
    (facts(), root, tree(), vec(in_flight(), 0..3), active, any::<Option<usize>>(), of(bytes(0..9))).prop_map(
        |(facts, root, mut tree, in_flight, keys, served_by, entry)| {
            let (root_mode, root_uid, root_gid, root_requester) = root;
            let indirect = facts.options.mount_type == MountType::Indirect;
            if !indirect {
                tree.iter_mut().for_each(|entry| entry.timeout = None);
            }
            let slash = |key: Vec<u8>| if indirect { key } else { [b"/".as_slice(), &key].concat() };
            let active = keys.into_iter().map(|key| ActiveKey { key: slash(key), entry: entry.clone() });
            DumpedMount {
                facts,
                root_mode,
                root_uid,
                root_gid,
                root_requester,
                tree,
                in_flight,
                served_by,
                active: active.collect(),
            }
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let entries = vec((bytes(1..9), bytes(0..9)), 0..4);
    prop_oneof![
        (absolute(), bytes(1..9), bytes(0..9), entries).prop_map(|(mount_point, map, options, entries)| {
            Service::MasterEntry { mount_point, map, options, entries }
        }),
        ("[a-z]{1,9}", absolute(), bytes(0..9), "[a-z]{0,5}", bytes(0..9), any::<u64>()).prop_map(
            |(unit, mount_point, what, fstype, options, timeout)| Service::Unit {
                unit,
                mount_point,
                what,
                fstype,
                options,
                timeout
            }
        ),
    ]
}

fn origin() -> impl Strategy<Value = Origin> {
    let left = prop_oneof![
        Just(Left::Running),
        Just(Left::Catatonic),
        process().prop_map(|holder| Left::Held { holder })
    ];
    (any::<u64>(), text(), text(), text(), any::<u64>(), left).prop_map(
        |(created, tool, kernel, boot_id, mount_namespace, left)| Origin {
            created,
            tool,
            kernel,
            boot_id,
            mount_namespace,
            left,
        },
    )
}

/// Mounts that are numbered as a kernel would: each below an earlier one or outside, no two at the
/// same place; some at a second place.
fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let place = (any::<prop::sample::Index>(), any::<bool>());
    (origin(), vec((mount(), place), 0..5), vec(service(), 0..3)).prop_map(|(origin, mounts, services)| {
        let mut done: Vec<DumpedMount> = Vec::new();
        let mut places = HashSet::new();
        for (mut mount, (parent, bind)) in mounts {
            let i = done.len();
            let parent = parent.index(i + 1);
            if !places.insert((parent, mount.facts.path.clone())) {
                continue;
            }
            mount.served_by = mount.served_by.filter(|_| !services.is_empty()).map(|n| n % services.len());
            let same_type =
                |last: &&DumpedMount| last.facts.options.mount_type == mount.facts.options.mount_type && bind;
            let other_place = done.last().filter(same_type).map(|last| last.facts.dev);
            mount.facts.dev = other_place.unwrap_or(DevNum::anonymous(i as u32 * 70_001));
            mount.facts.mount_id = 100 + i as u64;
            mount.facts.parent_id = 99 + parent as u64;
            if let Some(parent) = parent.checked_sub(1) {
                done[parent].facts.autofs_children.push(mount.facts.mount_id);
            }
            done.push(mount);
        }
        Checkpoint { origin, mounts: done, services }
    })
}

proptest! {
    #[test]
    fn every_checkpoint_survives(checkpoint in checkpoint()) {
        let packed = pack(&checkpoint).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(pack(&checkpoint).unwrap(), packed.clone());
        let read = Forged(packed).read().map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(read, checkpoint);
    }

    #[test]
    fn every_checkpoint_survives_json(checkpoint in checkpoint()) {
        let text = serde_json::to_string(&checkpoint).unwrap();
        prop_assert_eq!(serde_json::from_str::<Checkpoint>(&text).unwrap(), checkpoint);
    }

    #[test]
    fn damage_anywhere_is_survived(
        checkpoint in checkpoint(),
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let mut image = Forged(pack(&checkpoint).unwrap());
        let bytes = &mut file.get_mut(&mut image.0).bytes;
        *at.get_mut(bytes) = value;
        let _ = image.read();
        let _ = image.reseal().read();
    }

    /// Not an image at all, behind good magics and a good seal.
    #[test]
    fn any_bytes_are_survived(mut bytes: Vec<u8>, frame: bool) {
        let mut image = Forged::new(&super::samples::checkpoint());
        let file = image.file(super::forge::FIRST);
        file.truncate(8);
        if frame {
            file.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
        file.append(&mut bytes);
        let _ = image.reseal().read();
    }
}

/// What `show --json` prints: scripts read it, so it may grow but not change.
#[test]
fn the_json_form_stays() {
    let expected = include_str!("../../../tests/data/checkpoint.json");
    let text = serde_json::to_string_pretty(&super::samples::checkpoint()).unwrap();
    assert_eq!(text, expected.trim_end());
}
