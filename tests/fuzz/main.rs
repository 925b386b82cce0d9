//! Everything that reads what others write, with inputs that nobody would write. `scripts/fuzz MINUTES` does it for longer.
//!
//! A target is a function that must not panic, and that checks what holds for every input.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod mutate;

use autofs_cr::discover::facts::AutofsOptions;
use autofs_cr::discover::mountinfo;
use autofs_cr::engine::maps::check::{FileKind, check, guess};
use autofs_cr::engine::maps::conf::Conf;
use autofs_cr::engine::maps::local::Nowhere;
use autofs_cr::engine::maps::master::{self, Item, MapName};
use autofs_cr::engine::maps::text::{Lines, is_blank};
use autofs_cr::engine::maps::vars::Requester;
use autofs_cr::engine::maps::{Credentials, Map, Severity, Site, What, options, unit};
use autofs_cr::engine::mount::options::Options;
use autofs_cr::sys::packet::Packet;
use mutate::fuzz;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;

const MASTER: &[&str] = &[
    "/- ",
    "-hosts",
    "-null",
    "+dir:",
    "multi ",
    " -- ",
    "file,amd:",
    "program:/",
    "--timeout=",
    "-t",
    " 5",
    "--mode=0",
    "-D",
    "X=\"a b\"",
    "browse",
    "nobrowse",
    "symlink",
    "--prefix=",
    "strictexpire",
    "\\\n",
    " # ",
    "\"/a b\"",
    "ldap:",
    "//s/d",
    "ro,",
];
const SUN: &[&str] = &[
    "-fstype=",
    "autofs",
    "bind",
    "nfs4",
    "afs",
    "\\\n",
    " / ",
    " /a/b ",
    ":/",
    "srv1,srv2(3):/",
    "[::1]:/",
    "${HOST}",
    "$UID",
    "${",
    "&",
    "* ",
    "\"",
    "\\ ",
    "-null",
    "+auto.x",
    "-hosts",
    "hosts",
    "-Dx=y",
    "strict",
    "timeout=3",
    "#",
];
const AMD: &[&str] = &[
    "/defaults ",
    "type:=",
    "nfs",
    "nfsl",
    "link",
    "linkx",
    "auto",
    "lofs",
    "ext4",
    ";",
    ":=",
    "==",
    "!=",
    "!",
    "exists(",
    "true()",
    "fs:=",
    "rfs:=",
    "rhost:=",
    "opts:=",
    "addopts:=",
    "remopts:=",
    "sublink:=",
    "pref:=",
    "dev:=",
    "${",
    "}",
    "${/key}",
    "${key/}",
    "${.hostd}",
    "||",
    "-",
    "host==",
    "/*",
    "${fs}",
    "${rfs}",
];
const CONF: &[&str] = &[
    "[ autofs ]",
    "[ amd ]",
    "[ /a ]",
    " = ",
    "yes",
    "no",
    "-1",
    "timeout",
    "ldap_uri",
    "map_attribute",
    "map_name",
    "#",
    "\"",
];

#[test]
fn of_the_master_map() {
    fuzz("master", Vec::new(), MASTER, |input| {
        for item in master::parse(input, &mut Vec::new()) {
            let Item::Entry(entry) = item else { continue };
            // Kept in a checkpoint as it is written, and read again there.
            let (map, options) = &entry.written;
            let again = master::entry(entry.mount_point.clone(), map, options).unwrap();
            assert_eq!((&again.map, &again.options), (&entry.map, &entry.options));
            // What is printed is the same map.
            let printed = entry.map.to_string();
            if std::str::from_utf8(entry.map.name.as_bytes()).is_ok()
                && !matches!(entry.map.kind, master::MapKind::Multi(_))
            {
                assert_eq!(MapName::parse(printed.as_bytes()).unwrap(), entry.map, "{printed}");
            }
        }
        guess(Path::new("x"), input);
    });
}

/// A map in a file: it can be checked, and every key that is listed is found.
fn map_file(target: &str, kind: FileKind, words: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("map");
    let site = Arc::new(Site::default());
    fuzz(target, Vec::new(), words, |input| {
        // An include of a file of this machine would be another test in each place.
        if input.contains(&b'+') {
            return;
        }
        std::fs::write(&path, input).unwrap();
        let found = check(&path, kind, &site).unwrap();
        let lines = input.split(|byte| *byte == b'\n').count() as u32;
        for (_, warning) in &found {
            assert!(warning.at.line <= lines && warning.at.column >= 1, "{warning:?}");
            assert!(warning.severity <= Severity::Differs && !warning.message.is_empty());
        }
    });
}

#[test]
fn of_sun_maps() {
    map_file("sun", FileKind::Indirect, SUN);
}

/// What a record names is what is mounted, whatever is in it.
#[test]
fn of_hesiod_records() {
    let site = Arc::new(Site::default());
    let root = Requester::new(Credentials { uid: 0, gid: 0 });
    let words = &[
        "NFS ", "AFS ", "ERR ", "ext4 ", "/a", " host", " w ", " r", "&", "$HOST", "\\", "\"", "#", ":", ",",
        "(1)", "-",
    ];
    fuzz("hesiod", Vec::new(), words, |input| {
        let entry = master::entry(Some("/m".into()), b"file,hesiod:/map", b"").unwrap();
        let map = Map::listed(entry, &[(b"k".to_vec(), input.to_vec())], site.clone()).unwrap();
        let Ok(Some(resolved)) = map.lookup_as(b"k", &root, &Nowhere, &mut Vec::new()) else { return };
        let words: Vec<&[u8]> = input.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty()).collect();
        let path = match &resolved.mounts[0].what {
            What::Mount { sources, .. } if sources.len() > 1 => return,
            What::Mount { sources, .. } => sources[0].source.as_bytes(),
            What::Symlink(target) => target.as_os_str().as_bytes(),
            What::Submount { map, .. } => map.as_bytes(),
            What::External { .. } | What::Command { .. } => panic!("{resolved:?}"),
        };
        assert!(path.ends_with(words[1]), "{resolved:?}");
        assert_eq!(resolved.mounts.len(), 1);
    });
}

#[test]
fn of_direct_maps() {
    map_file("direct", FileKind::Direct, SUN);
}

#[test]
fn of_amd_maps() {
    map_file("amd", FileKind::Amd, AMD);
}

#[test]
fn of_the_configuration() {
    fuzz("conf", Vec::new(), CONF, |input| {
        let mut conf = Conf::default();
        conf.apply(input, &mut Vec::new());
        conf.apply_environment(input);
        // The same again changes nothing but lists.
        let once = conf.timeout;
        conf.apply(input, &mut Vec::new());
        conf.apply_environment(input);
        assert_eq!(conf.timeout, once);
        master::Master::default().add_amd_sections(&conf);
    });
}

#[test]
fn of_options() {
    fuzz(
        "options",
        Vec::new(),
        &["ro", "context=\"a:b,c\"", "bind", "fd=5", "pgrp=-1", "timeout=", "indirect", ",,", "\"", "="],
        |input| {
            let text = OsStr::from_bytes(input);
            let all: Vec<&OsStr> = options::split(text).collect();
            // An open quote at the end of one would take in those behind it.
            if input.iter().filter(|byte| **byte == b'"').count() % 2 == 0 {
                let joined = options::join(all.iter().map(|option| option.as_bytes()));
                assert_eq!(options::split(&joined).collect::<Vec<_>>(), all);
            }
            let bound = options::for_bind(text);
            assert!(options::split(&bound).all(|option| all.contains(&option)));
            Options::parse(text).parameters();
            AutofsOptions::parse(input);
            unit::resolve(input, "", input);
        },
    );
}

#[test]
fn of_mount_tables() {
    fuzz(
        "mountinfo",
        Vec::new(),
        &["\\040", "\\134", " - ", "shared:1", "autofs", "4294967296", "0:", "/", "\n"],
        |input| {
            if let Ok(entries) = mountinfo::parse(input) {
                for entry in entries {
                    let path = mountinfo::path(entry.mount_point);
                    assert!(path.as_os_str().len() <= entry.mount_point.len());
                    if entry.is_autofs() {
                        AutofsOptions::parse(entry.super_options);
                    }
                }
            }
        },
    );
}

#[test]
fn of_packets() {
    fuzz("packet", Vec::new(), &[], |input| {
        let _ = Packet::parse(input);
    });
}

/// What a program map writes: its first logical line is an entry.
#[test]
fn of_program_output() {
    let site = Arc::new(Site::default());
    fuzz("program", Vec::new(), SUN, |input| {
        let Some(line) = Lines::new(input).next() else { return };
        let entry = master::entry(Some("/m".into()), b"/map", b"").unwrap();
        let pairs = [(b"k".to_vec(), line.text.bytes().to_vec())];
        let map = Map::listed(entry, &pairs, site.clone()).unwrap();
        map.check().unwrap();
        let name = OsString::from_vec(input.to_vec());
        options::name_value(&name);
    });
}
