//! `maps check`: what is wrong, where, and what automount 5.1.9 makes of it.

use autofs_cr::engine::maps::Site;
use autofs_cr::engine::maps::check::{FileKind, check};
use std::sync::Arc;

/// What is found in a file, as `SEVERITY LINE:COLUMN MESSAGE`.
fn found(kind: FileKind, text: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, text.replace('@', here)).unwrap();
    std::fs::write(directory.path().join("other"), "k srv:/x\nbad srv:\n").unwrap();
    std::fs::write(directory.path().join("records"), "a NFS /x srv w /y\nbad ERR no\n").unwrap();
    let site = Arc::new(Site { environment: crate::common::environment(), ..Site::default() });
    let all = check(&path, kind, &site).unwrap();
    all.iter()
        .map(|(file, warning)| {
            let name = file.file_name().unwrap().to_string_lossy();
            let other = if *file == path { String::new() } else { format!("{name}:") };
            let severity = format!("{:?}", warning.severity).to_lowercase();
            format!("{severity} {other}{} {}", warning.at, warning.message).replace(here, "@")
        })
        .collect()
}

macro_rules! checks {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $text:expr => [$($expected:expr),* $(,)?];)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            let found = found(FileKind::$kind, $text);
            let expected: &[&str] = &[$($expected),*];
            assert_eq!(found.len(), expected.len(), "{found:#?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{found}\nis not\n{expected}");
            }
        }
    )*};
}

checks! {
    records_of_hesiod: Master "/a hesiod:x\n/c file,hesiod:@/records\n" => ["error records:2:5 the entry does not count: the record is an error: no"];
    maps_that_nobody_serves: Master "/b nisplus:y\n" => ["error 1:1 map nisplus:y: maps of NIS+ are not served"];
    nothing_is_wrong: Indirect
        "a -ro,soft srv:/x\n\"b c\" / srv:/x \"/d e\" \"srv:/y z\"\nm -fstype=cifs,username=x ://win/share\n* srv1,srv2(3):/&\n" => [];
    t01_indented_line: Indirect "a srv:/a\n  b srv:/b\n" => ["differs 2:3 the line is indented: automount ignores it"];
    t08_unmatched_quote: Indirect "a srv:/a\nb \"srv:/b\nc srv:/c\n" => ["error 2:3 unmatched \": key b"];
    t10_duplicate_key: Indirect "a srv:/a\na srv:/b\n" => ["warning 2:1 key a is there already"];
    t22_undefined_variable: Indirect "a srv:/${NOPE}/x\n" => ["warning 1:8 variable NOPE is not defined"];
    t23_unclosed_brace: Indirect "a srv:/x${HOST\n" =>
        ["error 1:9 the entry does not count: a variable that begins with ${", "differs 1:9 automount mounts what"];
    t37_options_that_begin_like_own: Indirect "a -fstype=foo,bgx=1,bg,rw :/dev/x\n" =>
        ["differs 1:3 automount drops the option bgx=1"];
    t44_no_path: Indirect "ok srv:/x\nnp -ro srv:\n" => ["error 2:8 the entry does not count: expected colon delimiter"];
    t47_space_in_a_server_list: Indirect "a srv1 (2):/p\n" => ["error 1:3 the entry does not count: invalid character"];
    t59_options_after_a_location: Indirect "a /s1 srv:/b -rw /s2 srv:/c\n" =>
        ["error 1:14 the entry does not count: options -rw follow"];
    t61_duplicate_offset: Indirect "a /s1 :/dev/1 /s1 :/dev/2\n" => ["warning 1:15 offset /s1 stands here again"];
    t64_escaped_blank: Indirect "a /a\\ b srv:/x /c srv:/y\n" => ["differs 1:5 automount splits the offsets"];
    t64_quote_behind_the_colon: Indirect "a \"/a b\" srv:\"/x y\" /c srv:/y\n" =>
        ["differs 1:13 automount does not see this location"];
    an_offset_behind_a_bare_name: Indirect "a / -fstype=tmpfs :x /s -fstype=tmpfs :/y\n" => ["differs 1:22 automount does not see an offset"];
    a_place_after_a_continued_line: Indirect "a -ro,\\\nsoft srv:/x \\\n  /b\n" =>
        ["error 3:3 the entry does not count: offset /b has no location"];
    colons_in_options: Indirect "a -fstype=overlay,lowerdir=/a:/b:/c :overlay\n" => ["differs 1:3 automount makes a colon of lowerdir"];
    quoted_commas: Indirect "a -context=\"a:b:c0,c1\" srv:/x\n" => ["differs 1:3 automount removes the quotes of context"];
    bind_without_options: Indirect "a -nodev,soft :/usr\n" => ["differs 1:15 automount binds it without the options nodev"];
    two_locations_of_one_type: Indirect "a -fstype=ext4 :/dev/a :/dev/b\n" => ["differs 1:24 automount gives all locations"];
    a_location_with_a_blank: Indirect "a -fstype=cifs ://srv/two words\n" => ["warning 1:27 a blank in a location"];
    an_entry_without_a_location: Indirect "a -ro\n" => ["error 1:6 the entry does not count: the entry has no location"];
    an_escaped_blank_at_the_end: Indirect "a :/a\\ \n" => ["differs 1:6 automount drops a blank"];
    an_escaped_star: Indirect "\\*k srv:/x\n" => ["differs 1:1 automount does not find a key"];
    a_relative_direct_key: Direct "/ok srv:/x\nrel srv:/x\n* srv:/x\n" =>
        ["error 2:1 key rel of a direct map is not an absolute path", "error 3:1 a direct map has no wildcard"];
    an_include_that_is_not_there: Indirect "+/no/such/map\na srv:/x\n" => ["warning 1:1 included map /no/such/map cannot be read"];

    t77_slash_in_a_master_option: Master "/c3 @/other credentials=/etc/cred\n" =>
        ["differs 1:", "error other:2:5"];
    t79_comment: Master "/d1 -null # comment\n" => ["differs 1:11 the rest of the line is a comment here"];
    t80_empty_option: Master "/d6 /etc/m ro,,soft\n" => ["error 1:12 this line does not count: there is an empty option"];
    t85_null: Master "/b7 -null\n/b7 /etc/m1\n" => ["warning 2:1 /b7 is not served"];
    t88_relative_mount_point: Master "e3 /etc/m\n" => ["error 1:1 this line does not count: mount point e3"];
    master_options_that_differ: Master
        "/a -hosts timeout=60\n/b -hosts use-weight-only\n/c -hosts --gost\n\"/d e\" -hosts\n/.. -hosts\n" => [
        "differs 1:11 automount does not read this as the timeout", "differs 2:11 automount takes this for a mount option",
        "warning 3:11 --gost is no option of a map", "differs 4:1 automount does not take a mount point with quotes",
        "error 5:1 this line does not count: mount point /..",
    ];
    t41_options_of_the_master_map: Master "/a @/t41 ro\n" => ["error 1:1 map @/t41: No such file"];
    maps_of_a_master_map: Master "/a @/other\n/b program:@/other\n/c nosuchmap\n" => [
        "error 2:1 program map @/other: it may not be executed", "error 3:1 map /etc/nosuchmap: No such file", "error other:2:5",
    ];

    settings: Conf "[ autofs ]\ntimeout = 5\nnope = 1\n browse_mode = maybe\nx\n[ amd\n[ amd ]\nfoo = 1\ntag = x\narch = y\n" => [
        "error 3:1 unknown setting nope", "error 4:2 browse_mode needs yes or no, not maybe", "error 5:1 a setting is NAME = VALUE",
        "error 6:1 a section name ends with ]", "error 8:1 unknown setting foo of an amd section", "warning 9:1 tag means nothing",
    ];

    amd_is_fine: Amd "/defaults type:=nfs;rhost:=srv\napps rfs:=/autofs\nl host==x;type:=link;fs:=/usr || type:=link;fs:=/bin\n" => [];
    t97_arch: Amd "s arch==x86_64;type:=link;fs:=/usr\n" => ["differs 1:3 automount gives arch no value"];
    amd_errors: Amd "a type:=foo\nb nope==1;type:=link;fs:=/x\nc type:=link;fs:=rel\nd rfs=/x\ne type:=link;fs:=/${key\nf bad:=1\n" => [
        "error 1:3 the entry does not count: locations of type foo are not supported",
        "error 2:3 the entry does not count: unknown selector nope",
        "error 3:3 the entry does not count: fs:=rel is not an absolute path",
        "error 4:3 the entry does not count: rfs=/x is neither",
        "error 5:3 the entry does not count: a variable that begins",
        "error 6:3 the entry does not count: unknown option bad",
    ];
    amd_differs: Amd "a uid==0;type:=link;fs:=/usr\nb true();type:=lofs;rfs:=/usr\nc type:=link;fs:=/${hostd.}\nd opts:=ro,nounmount;type:=nfs\n" => [
        "differs 1:3 with automount uid never has a value", "differs 2:3 automount wants an argument: write true(1)",
        "differs 2:3 automount gives the type lofs", "differs 3:3 automount fails at a part of a host name",
        "differs 4:3 automount gives nounmount to mount(8)",
    ];
}

/// The master map's options decide what an entry's mean to automount.
#[test]
fn t41_options_that_automount_does_not_add() {
    let directory = tempfile::tempdir().unwrap();
    let (master, map) = (directory.path().join("master"), directory.path().join("map"));
    std::fs::write(&master, format!("/a {} ro\n", map.display())).unwrap();
    std::fs::write(&map, "a -errors=continue srv:/x\nb -hard srv:/x\nc -ro srv:/x\n").unwrap();
    let found = check(&master, FileKind::Master, &Arc::new(Site::default())).unwrap();
    let shown: Vec<_> =
        found.iter().map(|(_, warning)| (warning.at.line, warning.message.as_str())).collect();
    assert_eq!(shown, [(1, "automount does not add ro of the master map here")]);
}
