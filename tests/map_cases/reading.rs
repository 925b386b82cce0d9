//! How a file map is cut into keys and entries.

use crate::cases;
use crate::common::Setup;

cases! {
    /// automount drops `good1` and `stray`.
    t01_indented_line: "good1 server:/g1\n   stray server:/stray\ngood2 server:/g2\n", {
        "good1" => "-t nfs server:/g1",
        "stray" => "-t nfs server:/stray",
        "good2" => "-t nfs server:/g2",
    }
    t02_comment_goes_on: "# comment \\\neaten server:/eaten\nafter server:/after\n", {
        "eaten" => "ENOENT",
        "after" => "-t nfs server:/after",
    }
    t04_lines_join_without_blank: "cont2 -fstype=foo,\\\nrw :/dev/c\n", {
        "cont2" => "-t foo -o rw /dev/c",
    }
    t05_quoted_and_escaped_blanks: "\"q sp\" server:\"/exp/q sp\"\nsp\\ ace server:/exp/sp\\ ace\n", {
        "q sp" => "-t nfs server:/exp/q sp",
        "sp ace" => "-t nfs server:/exp/sp ace",
    }
    t07_star_with_more: "*foo server:/x\n", {
        "*foo" => "ENOENT",
        "foo" => "ENOENT",
    }
    t08_unmatched_quote: "bad \"unterminated server:/x\nafter server:/a\n", {
        "bad" => "ENOENT",
        "after" => "-t nfs server:/a",
    }
    t10_first_of_two_counts: "dup server:/first\ndup server:/second\n", {
        "dup" => "-t nfs server:/first",
    }
    t11_dos_line_ends: "crlf -ro server:/c2 \r\nnext server:/n\r\n", {
        "crlf" => "-t nfs -o ro server:/c2",
        "next" => "-t nfs server:/n",
    }
    t14_comment_after_a_blank: "hash server:/exp/a#b\nhash2 server:/exp/a #c server:/b\n", {
        "hash" => "-t nfs server:/exp/a#b",
        "hash2" => "-t nfs server:/exp/a",
    }
    t16_null_key: "nul -null\n* server:/&\n", {
        "nul" => "ENOENT",
        "other" => "-t nfs server:/other",
    }
    t17_slash_in_an_indirect_key: "a/b server:/ab\nc server:/c\n", {
        "a/b" => "ENOENT",
        "c" => "-t nfs server:/c",
    }
    t17_relative_key_in_a_direct_map: "rel server:/x\n/d server:/d\n",
        with Setup { mount_point: "/-", ..Setup::default() }, {
        "rel" => "ENOENT",
        "/d" => "-t nfs server:/d",
    }
    wildcard_comes_last: "* server:/any/&\nexact server:/exact\n", {
        "exact" => "-t nfs server:/exact",
        "foo" => "-t nfs server:/any/foo",
    }
    included_entries_stand_at_their_place: "a server:/a1\n+@/inc\na server:/a3\nb server:/b3\nc server:/c3\n",
        with Setup { files: &[("inc", "a server:/a2\nb server:/b2\n")], ..Setup::default() }, {
        "a" => "-t nfs server:/a1",
        "b" => "-t nfs server:/b2",
        "c" => "-t nfs server:/c3",
    }
    /// As automount does: `z` is not reached.
    included_wildcards_stand_at_their_place: "a server:/a1\n* server:/own/&\n+@/inc\nz server:/z3\n",
        with Setup { files: &[("inc", "* server:/inc/&\nb server:/b2\n")], ..Setup::default() }, {
        "a" => "-t nfs server:/a1",
        "b" => "-t nfs server:/b2",
        "z" => "-t nfs server:/inc/z",
    }
    dots_are_no_keys: "\"\" server:/x\n. server:/x\n.. server:/x\n.a server:/a\n", {
        "" => "ENOENT",
        "." => "ENOENT",
        ".." => "ENOENT",
        ".a" => "-t nfs server:/a",
    }
    dots_are_no_direct_keys: "/a/../b server:/x\n/c/. server:/x\n",
        with Setup { mount_point: "/-", ..Setup::default() }, {
        "/a/../b" => "ENOENT",
        "/c/." => "ENOENT",
    }
    lone_keys_are_none: "lone\n* server:/any/&\n", {
        "lone" => "-t nfs server:/any/lone",
    }
}

#[test]
fn t01_is_warned_about() {
    let opened = Setup::default().open("good1 server:/g1\n   stray server:/stray\n");
    let text = "2:4: the line is indented: automount ignores it, and the entry before it as well";
    assert_eq!(opened.warnings(), [text]);
}

#[test]
fn t08_is_warned_about() {
    let opened = Setup::default().open("bad \"unterminated server:/x\nafter server:/a\n");
    assert_eq!(opened.warnings(), ["1:5: unmatched \": key bad is left out"]);
    assert_eq!(opened.keys(), ["after"]);
}

#[test]
fn t10_lists_a_key_once() {
    let opened = Setup::default().open("dup server:/first\ndup server:/second\n* server:/&\n");
    assert_eq!(opened.keys(), ["dup"]);
    assert_eq!(opened.warnings(), ["2:1: key dup is there already: the first entry counts"]);
}

#[test]
fn t13_limits() {
    let key = "k".repeat(256);
    let fits = "f".repeat(255);
    let long = format!("server:/{}", "x".repeat(16384));
    let map = format!("{key} server:/key\n{fits} server:/fits\nlong {long}\nafter server:/after\n");
    let opened = Setup::default().open(&map);
    assert_eq!(opened.lookup(&key), "ENOENT");
    assert_eq!(opened.lookup(&fits), "-t nfs server:/fits");
    assert_eq!(opened.lookup("long"), "ENOENT");
    assert_eq!(opened.lookup("after"), "-t nfs server:/after");
    assert_eq!(opened.warnings().len(), 2);
}
