//! Multi-mounts and submounts.

use crate::cases;
use crate::common::{Fake, Setup, root, site};

cases! {
    t58_options_of_offsets: "k -ro / -rw server:/a /s1 server:/b\n", {
        "k" => "/: -t nfs -o ro,rw server:/a; /s1: -t nfs -o ro server:/b",
    }
    t59_options_after_a_location: "k /s1 server:/b -rw /s2 server:/c\n", {
        "k" => "error: @/map:1:17: options -rw follow a location; they must stand before it, in the entry of key k",
    }
    t61_last_offset_counts: "k /s1 :/dev/1 /s1 :/dev/2\n",
        with Setup { options: "fstype=foo", ..Setup::default() }, {
        "k" => "/s1: -t foo /dev/2",
    }
    t62_root_first: "k /b server:/b /a server:/a / server:/\n", {
        "k" => "/: -t nfs server:/; /a: -t nfs server:/a; /b: -t nfs server:/b",
    }
    /// Only the first works in automount.
    t64_blanks_in_offsets: "a \"/a b\" \"server:/x y\" \"/c d\" \"server:/z w\"\n\
                            b /a\\ b server:/x\\ y /c\\ d server:/z\\ w\n\
                            c \"/a b\" server:\"/x y\" \"/c d\" server:\"/z w\"\n", {
        "a" => "/a b: -t nfs server:/x y; /c d: -t nfs server:/z w",
        "b" => "/a b: -t nfs server:/x y; /c d: -t nfs server:/z w",
        "c" => "/a b: -t nfs server:/x y; /c d: -t nfs server:/z w",
    }
    t65_nested: "nest /a server:/a /a/b server:/ab /a/b/c server:/abc\n", {
        "nest" => "/a: -t nfs server:/a; /a/b: -t nfs server:/ab; /a/b/c: -t nfs server:/abc",
    }
    t67_submounts_as_offsets: "g2 /s1 -fstype=autofs :/etc/m /s2 -fstype=autofs :/etc/m\n\
                               g4 -fstype=autofs /s1 :/etc/m /s2 :/etc/m\n", {
        "g2" => "/s1: automount /etc/m; /s2: automount /etc/m",
        "g4" => "/s1: automount /etc/m; /s2: automount /etc/m",
    }
    t68_submounts_below_a_mount: "g4b -fstype=autofs / -fstype=nfs server:/x /s1 :/etc/m /s2 :/etc/m\n", {
        "g4b" => "/: -t nfs server:/x; /s1: automount /etc/m; /s2: automount /etc/m",
    }
    t70_hosts: "hm -fstype=autofs -hosts\nhm2 -fstype=autofs,hosts :x\n", {
        "hm" => "automount -hosts",
        "hm2" => "automount -hosts",
    }
    root_without_a_slash: "k server:/a /s1 server:/b\n", {
        "k" => "/: -t nfs server:/a; /s1: -t nfs server:/b",
    }
    offsets_that_cannot_be: "a /s1 server:/a /s2\nb / /s1 server:/b\nc /../x server:/c\n", {
        "a" => "error: @/map:1:17: offset /s2 has no location, in the entry of key a",
        "b" => "error: @/map:2:3: offset / has no location, in the entry of key b",
        "c" => "error: @/map:3:3: offset /../x is not a path below the key: it has a . or .. component, \
                in the entry of key c",
    }
    options_of_a_submount: "s -fstype=autofs,timeout=5,browse,ro :/etc/m\n", {
        "s" => "automount /etc/m -o ro,timeout=5,browse",
    }
    no_location: "a -fstype=foo\nb #c server:/x\n", {
        "a" => "error: @/map:1:14: the entry has no location, in the entry of key a",
        "b" => "ENOENT",
    }
    strict_is_no_mount_option: "a -strict / s:/a /b s:/b\n", {
        "a" => "/: -t nfs s:/a; /b: -t nfs s:/b",
    }
}

#[test]
fn t61_is_warned_about() {
    let (_, warnings) = Setup::default().open("k /s1 s:/1 /s1 s:/2\n").lookup_warned("k");
    assert_eq!(warnings[0].message, "offset /s1 stands here again: the last one counts");
    assert_eq!(warnings[0].at.to_string(), "1:12");
}

#[test]
fn t71_definitions_are_inherited() {
    let files = [("m3", "x server:/sub/$SV/&\n")];
    let setup = Setup { options: "-DMV=q", files: &files, ..Setup::default() };
    let above = setup.open("sub -fstype=autofs,-DSV=zz file:@/m3\n");
    assert_eq!(above.submount("sub", site()).lookup("x"), "-t nfs server:/sub/zz/x");
}

#[test]
fn t71_mount_options_are_inherited() {
    let files = [("m3", "x server:/sub/$SV/$MV\n")];
    let setup = Setup { options: "ro,-DMV=q", files: &files, ..Setup::default() };
    let above = setup.open("sub -fstype=autofs,soft,-DSV=zz file:@/m3\n");
    assert_eq!(above.lookup("sub"), "automount file:@/m3 -o ro,soft,-DMV=q,-DSV=zz");
    assert_eq!(above.submount("sub", site()).lookup("x"), "-t nfs -o ro,soft server:/sub/zz/q");
}

#[test]
fn t71_values_with_commas_and_blanks_are_inherited() {
    let files = [("m3", "x $L\n")];
    let setup = Setup { options: "-DL=\"-ro,soft server:/l\"", files: &files, ..Setup::default() };
    let above = setup.open("sub -fstype=autofs file:@/m3\n");
    assert_eq!(above.submount("sub", site()).lookup("x"), "-t nfs -o ro,soft server:/l");
}

#[test]
fn timeouts_are_inherited_or_own() {
    let files = [("m3", "x server:/x\n")];
    let setup = Setup { options: "--timeout=7", files: &files, ..Setup::default() };
    let above = setup.open("a -fstype=autofs file:@/m3\nb -fstype=autofs,timeout=9,browse file:@/m3\n");
    let seconds = |key| above.submount(key, site()).map.entry.options.timeout.unwrap().as_secs();
    assert_eq!((seconds("a"), seconds("b")), (7, 9));
    assert_eq!(above.submount("b", site()).map.entry.options.browse, Some(true));
}

#[test]
fn strict_entries() {
    let strict = |options, entry: &str| {
        let opened = Setup { options, ..Setup::default() }.open(&format!("k {entry}\n"));
        opened.map.lookup_as(b"k", &root(), &Fake, &mut Vec::new()).unwrap().unwrap().strict
    };
    assert!(!strict("", "/a s:/a /b s:/b"));
    assert!(strict("", "-strict /a s:/a /b s:/b"));
    assert!(strict("-strict", "/a s:/a /b s:/b"));
    assert!(!strict("-strict", "-nonstrict /a s:/a /b s:/b"));
    assert!(strict("", "/a s:/a /b -strict s:/b"));
}
