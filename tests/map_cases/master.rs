//! The master map.

use autofs_cr::engine::maps::master::{Files, MapName, Master, Propagation, read};
use std::path::Path;

/// A master map of these files, the first of which is the map; `@` stands for their directory.
fn master(files: &[(&str, &str)]) -> Master {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text.replace('@', here)).unwrap();
    }
    let loader = Files { directory: directory.path().to_owned() };
    read(&MapName::file(directory.path().join(files[0].0)), &loader).unwrap()
}

/// Entries as `MOUNTPOINT MAP OPTIONS`, one line each.
fn lines(master: &Master) -> Vec<String> {
    let entry = |entry: &autofs_cr::engine::maps::master::Entry| {
        let point = entry.mount_point.as_deref().unwrap_or(Path::new("/-"));
        let options = entry.options.mount.join(&b","[..]);
        let line = format!("{} {} {}", point.display(), entry.map, String::from_utf8(options).unwrap());
        line.trim_end().to_owned()
    };
    master.entries.iter().map(entry).collect()
}

fn warnings(master: &Master) -> Vec<String> {
    master.warnings.iter().map(|(_, warning)| format!("{}: {}", warning.at, warning.message)).collect()
}

macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident: $text:expr => [$($line:expr),*], warned [$($warning:expr),*];)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            let master = master(&[("auto.master", $text)]);
            assert_eq!(lines(&master), [$($line),*] as [&str; _]);
            let found = warnings(&master);
            let expected: [&str; _] = [$($warning),*];
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.contains(expected), "{found}");
            }
        }
    )*};
}

cases! {
    /// automount rejects the line.
    t77_slash_in_a_value: "/c3 /etc/m -fstype=cifs,credentials=/etc/cred\n" =>
        ["/c3 /etc/m fstype=cifs,credentials=/etc/cred"], warned ["1:12: automount rejects a line with a slash"];
    /// automount makes `comment` a mount option.
    t79_trailing_comment: "/d1 /etc/m # comment\n/d2 /etc/m ro # comment\n" =>
        ["/d1 /etc/m", "/d2 /etc/m ro"], warned ["1:12: the rest of the line is a comment", "2:15:"];
    t80_empty_option: "/d6 /etc/m ro,,soft\n/f2 /etc/m -- /etc/m\n/ok /etc/m\n" =>
        ["/ok /etc/m"], warned ["1:12: this line does not count: there is an empty option", "2:12: this line does not count: -- "];
    t82_options_as_words: "/ml /etc/m tcp hard intr timeo=600 retrans=2 async --ghost\n" =>
        ["/ml /etc/m tcp,hard,intr,timeo=600,retrans=2,async"], warned [];
    t83_own_options_with_commas: "/x /etc/m --timeout=10,--ghost\n/y /etc/m --timeout=20,strictexpire\n" =>
        ["/x /etc/m", "/y /etc/m"], warned [];
    t85_null: "/b7 -null\n/b7 /etc/m1\n/b7 /etc/prog\n/ok /etc/m\n" =>
        ["/ok /etc/m"], warned ["2:1: /b7 is not served", "3:1: /b7 is not served"];
    t86_duplicates: "/b8 /etc/m1\n/b8 /etc/prog\n/- /etc/dd\n/- /etc/dd2\n" =>
        ["/b8 /etc/m1", "/- /etc/dd", "/- /etc/dd2"], warned ["2:1: /b8 is there already"];
    t88_slashes: "/b5/ /etc/m\n/e2//x /etc/m\ne3 /etc/m\n" =>
        ["/b5 /etc/m", "/e2//x /etc/m"], warned ["3:1: this line does not count: mount point e3 is not an absolute path"];
    t89_hosts_is_a_name: "/f1 hosts\n/net -hosts\n" =>
        ["/f1 hosts", "/net -hosts"], warned [];
    t92_colons_and_quotes: "/d9 /etc/m uid=1000,sec=krb5:sys\n/d8 /etc/m context=\"system_u:object_r:x_t:s0\"\n" =>
        ["/d9 /etc/m uid=1000,sec=krb5:sys", "/d8 /etc/m context=\"system_u:object_r:x_t:s0\""], warned [];
    sun_options: "/net -hosts -nosuid,hard\n" => ["/net -hosts nosuid,hard"], warned [];
    continued_lines: "/g \\\n  /etc/m \\\n  ro,\\\nsoft\n" => ["/g /etc/m ro,soft"], warned [];
    quotes_and_escapes: "\"/g 1\" \"/etc/m 1\" ro\n/g\\ 2 /etc/m\\ 2\n" =>
        ["/g 1 /etc/m 1 ro", "/g 2 /etc/m 2"], warned ["1:1: automount does not take", "2:1: automount does not take"];
    indented: "  /g3 /etc/m ro\n" => ["/g3 /etc/m ro"], warned [];
    types: "/a file:/etc/m\n/b file,sun:/etc/m\n/c exec:/etc/p\n/d ldap:ou=x,dc=y\n/e //srv/ou=x\n/f yp:auto.f\n/g auto.g\n" =>
        ["/a file:/etc/m", "/b file,sun:/etc/m", "/c program:/etc/p", "/d ldap:ou=x,dc=y", "/e //srv/ou=x", "/f yp:auto.f",
         "/g auto.g"], warned [];
    multi: "/a multi file:/etc/m -- program:/etc/p ro\n/b multi,sun:file:/etc/m soft -- file:/etc/n hard\n" =>
        ["/a multi file:/etc/m -- program:/etc/p ro", "/b multi,sun file,sun:/etc/m -- file,sun:/etc/n soft,hard"], warned [];
    wrong_maps: "/a foo:/etc/m\n/b file,foo:/etc/m\n/c -xfn\n/d\n/e program:auto.e\n/f multi\n/g sun:/etc/m\n" =>
        [], warned ["unknown map type foo", "unknown map format foo", "no built-in map -xfn", "/d has no map", "absolute path",
        "no name", "unknown map type sun"];
    wrong_options: "/a /etc/m -t\n/b /etc/m --timeout=x\n/c /etc/m --mode=9\n/d /etc/m -D A\n/e /etc/m 1ro\n/f /etc/m ro,\n" =>
        [], warned ["-t needs a value", "--timeout needs", "--mode needs", "-D needs", "1ro is not", "empty option"];
    unknown_long_options: "/a /etc/m --gost\n" => ["/a /etc/m gost"], warned ["--gost is no option of a map"];
    dots: "/a/../b /etc/m\n" => [], warned ["has a . or .. component"];
}

fn options(line: &str) -> autofs_cr::engine::maps::master::MapOptions {
    master(&[("auto.master", &format!("/a /etc/m {line}\n"))]).entries[0].options.clone()
}

#[test]
fn t82_t83_browse_and_timeouts() {
    assert_eq!(options("tcp --ghost").browse, Some(true));
    let both = options("--timeout=10,--ghost");
    assert_eq!((both.timeout.unwrap().as_secs(), both.browse), (10, Some(true)));
    let both = options("--timeout=20,strictexpire");
    assert_eq!((both.timeout.unwrap().as_secs(), both.strict_expire), (20, true));
}

#[test]
fn ways_to_write_a_timeout() {
    for way in ["--timeout 60", "--timeout=60", "-t 60", "-t60", "-t=60", "timeout=60", "-timeout=60"] {
        let options = options(way);
        assert_eq!(options.timeout.map(|timeout| timeout.as_secs()), Some(60), "{way}");
        assert!(options.mount.is_empty(), "{way}");
    }
    for way in ["-n 5", "--negative-timeout=5", "--negative-timeout 5"] {
        assert_eq!(options(way).negative_timeout.unwrap().as_secs(), 5, "{way}");
    }
}

#[test]
fn every_option() {
    let all = options(
        "nobrowse,nobind,symlink --mode 0750 -r -w -v --debug -DA=b -D C=d shared -strict --no-slashify-colons rw",
    );
    assert_eq!(all.browse, Some(false));
    assert!(
        all.nobind
            && all.symlink
            && all.random_replica
            && all.use_weight_only
            && all.strict
            && all.keep_colons
    );
    assert!(all.verbose && all.debug && !all.strict_expire);
    assert_eq!(all.mode, Some(0o750));
    assert_eq!(all.propagation, Propagation::Shared);
    assert_eq!(all.definitions, [("A".into(), b"b".to_vec()), ("C".into(), b"d".to_vec())]);
    assert_eq!(all.mount, [b"rw"]);
}

#[test]
fn t91_drop_ins() {
    let master = master(&[
        ("auto.master", "+dir:@/auto.master.d\n/z /etc/z\n"),
        ("auto.master.d/x.autofs", "/x /etc/x\n"),
        ("auto.master.d/a.autofs", "/a /etc/a\n"),
        ("auto.master.d/.h.autofs", "/h /etc/h\n"),
        ("auto.master.d/noext", "/n /etc/n\n"),
    ]);
    assert_eq!(lines(&master), ["/a /etc/a", "/x /etc/x", "/z /etc/z"]);
}

#[test]
fn includes_of_all_kinds() {
    let master = master(&[
        ("auto.master", "+auto.two\n+@/three\n+file:@/four\n+no.such\n+auto.master\n/a /etc/a\n"),
        ("auto_two", "/b /etc/b\n"),
        ("three", "/c /etc/c\n/a /etc/first\n"),
        ("four", "+@/auto.master\n/d /etc/d\n"),
    ]);
    assert_eq!(lines(&master), ["/b /etc/b", "/c /etc/c", "/a /etc/first", "/d /etc/d"]);
    let found = warnings(&master);
    assert!(found[0].contains("the file includes itself"), "{found:?}");
    assert!(found[1].starts_with("4:1: +no.such cannot be read"), "{found:?}");
    // `+auto.master` at its own end is how distributions write it.
    assert!(found[2].contains("/a is there already"), "{found:?}");
}

#[test]
fn null_hides_a_key_of_a_direct_map() {
    let master =
        master(&[("auto.master", "/d/x -null\n/- @/direct\n"), ("direct", "/d/x s:/x\n/d/y s:/y\n")]);
    assert!(master.entries[0].hidden.contains(Path::new("/d/x")));
}
