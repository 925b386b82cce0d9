//! What `explain` tells about a lookup.

use autofs_cr::engine::config::Given;
use autofs_cr::engine::explain::explain;
use autofs_cr::engine::maps::Credentials;
use autofs_cr::engine::maps::master::MapName;
use std::path::Path;

/// A master map with its maps; `@` stands for their directory.
const FILES: &[(&str, &str)] = &[
    ("conf", "[ autofs ]\nappend_options = no\n"),
    (
        "master",
        "/ind @/ind ro --timeout=5\n/ind/deep @/sub\n/- @/direct\n/amd file,amd:@/amd\n/none @/none\n/prog program:@/prog\n",
    ),
    (
        "ind",
        "a -soft localhost:/usr\nb srv1(2),192.0.2.1:/x\nm -ro / -rw 192.0.2.1:/a /s1 192.0.2.1:/b /s1/deep :/tmp\n\
         n /s1 :/tmp /s2 :/usr\nsub -fstype=autofs,-DV=7 file:@/sub\nbad srv:\nlnk -fstype=bind,symlink :/usr\n\
         * -fstype=tmpfs :tmpfs_$UID.$GID\n",
    ),
    ("sub", "x -fstype=bind :/usr/$V\n"),
    ("direct", "/d/one -fstype=ext4 :/dev/sda1\n/d/one/two -fstype=ext4 :/dev/sda2\n"),
    ("amd", "/defaults type:=nfs;rhost:=192.0.2.1\napps rfs:=/autofs\nl type:=link;fs:=/usr\n"),
];

fn lookup(given: &Given, path: &str, here: &str) -> String {
    let who = Credentials { uid: 5, gid: 6 };
    let text = match explain(given, Path::new(path), who) {
        Err(error) => format!("error: {error}"),
        Ok(lookup) => {
            let steps = lookup.steps.iter().map(|step| {
                let (options, source) = (step.options.to_str().unwrap(), step.source.to_str().unwrap());
                format!("{} {} [{options}] {source}", step.mount_point.display(), step.fstype)
            });
            let later = lookup.later.iter().map(|path| format!("later {}", path.display()));
            steps.chain(later).collect::<Vec<_>>().join("; ")
        }
    };
    text.replace(here, "@")
}

#[test]
fn a_lookup_is_told_and_nothing_is_mounted() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().to_str().unwrap();
    for (name, text) in FILES {
        std::fs::write(directory.path().join(name), text.replace('@', here)).unwrap();
    }
    let master = Some(MapName::file(directory.path().join("master")));
    let given = Given { master, ..Given::default() };
    for (path, expected) in [
        ("/ind/a", "/ind/a bind [ro] /usr"),
        ("/ind/a/below/it", "/ind/a bind [ro] /usr"),
        ("/ind/b", "/ind/b nfs [ro] srv1:/x"),
        ("/ind/m", "/ind/m nfs [ro,rw] 192.0.2.1:/a; later /ind/m/s1; later /ind/m/s1/deep"),
        (
            "/ind/m/s1/deep",
            "/ind/m nfs [ro,rw] 192.0.2.1:/a; /ind/m/s1 nfs [ro] 192.0.2.1:/b; /ind/m/s1/deep bind [ro] /tmp",
        ),
        ("/ind/n", "later /ind/n/s1; later /ind/n/s2"),
        ("/ind/n/s2/", "/ind/n/s2 bind [ro] /usr"),
        ("/ind/sub", "/ind/sub autofs [ro,-DV=7] file:@/sub"),
        ("/ind/sub/x", "/ind/sub autofs [ro,-DV=7] file:@/sub; /ind/sub/x bind [ro] /usr/7"),
        ("/ind/deep/x", "/ind/deep/x bind [] /usr/"),
        ("/ind/lnk", "/ind/lnk symlink [] /usr"),
        ("/ind/any", "/ind/any tmpfs [ro] tmpfs_5.6"),
        ("/d/one/file", "/d/one ext4 [] /dev/sda1"),
        ("/d/one/two/file", "/d/one/two ext4 [] /dev/sda2"),
        ("/amd/apps", "/a/192.0.2.1/autofs nfs [] 192.0.2.1:/autofs; /amd/apps bind [] /a/192.0.2.1/autofs"),
        ("/amd/l", "/amd/l bind [] /usr"),
        ("/amd/zz", "error: map file,amd:@/amd has no key zz"),
        ("/ind", "error: /ind is the mount point of map @/ind; give a key below it"),
        (
            "/indigo/x",
            "error: /indigo/x: no map of the master map serves this path; `autofs-cr automount --dumpmaps` prints what is served",
        ),
        ("/none/x", "error: map @/none: No such file or directory (os error 2)"),
        ("rel", "error: rel: give an absolute path without . and .."),
        (
            "/ind/bad",
            "error: @/ind:6:5: expected colon delimiter not found in location srv:: it is HOST:/PATH or :/PATH, in the entry of key bad",
        ),
    ] {
        assert_eq!(lookup(&given, path, here), expected, "{path}");
    }

    let given = Given { conf: Some(directory.path().join("conf")), ..given };
    let steps = lookup(&given, "/ind/m/s1", here);
    assert_eq!(steps, "/ind/m nfs [rw] 192.0.2.1:/a; /ind/m/s1 nfs [ro] 192.0.2.1:/b; later /ind/m/s1/deep");
    let given = Given { conf: Some("/no/such/file".into()), ..given };
    assert!(lookup(&given, "/ind/a", here).starts_with("error: configuration file /no/such/file"));
}
