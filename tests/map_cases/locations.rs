//! Locations and replicated servers. The choice among servers is made at mount time.

use crate::cases;
use crate::common::Setup;

cases! {
    t44_colon_without_a_path: "np server:\ntilde server:~/x\n", {
        "np" => "error: @/map:1:4: expected colon delimiter not found in location server:: it is HOST:/PATH or :/PATH, \
                 in the entry of key np",
        "tilde" => "error: @/map:2:7: expected colon delimiter not found in location server:~/x: it is HOST:/PATH or :/PATH, \
                    in the entry of key tilde",
    }
    t46_no_colon: "nocolon -fstype=foo justname\n", {
        "nocolon" => "-t foo justname",
    }
    /// AFS is mounted as a whole somewhere else.
    afs_is_a_link: "a -fstype=afs :/afs/example.org/a\n", {
        "a" => "symlink /afs/example.org/a",
    }
    t47_blanks_between_hosts: "two srv1 srv2:/x\nrpsp srv1 (2):/p\n", {
        "two" => "error: @/map:1:5: invalid character \" \" in location srv1; a location is HOST:/PATH or :/PATH, \
                  in the entry of key two",
        "rpsp" => "error: @/map:2:6: invalid character \" \" in location srv1; a location is HOST:/PATH or :/PATH, \
                   in the entry of key rpsp",
    }
    t49_ipv6: "a -fstype=foo [fe80::1%eth0]:/exp\nb -fstype=foo fd00::1:/exp\nc [fe80::1%eth0]:/exp\n", {
        "a" => "-t foo [fe80::1%eth0]:/exp",
        "b" => "-t foo fd00::1:/exp",
        "c" => "-t nfs [fe80::1%eth0]:/exp",
    }
    t50_weights: "rpw -fstype=nfs4 srv1(5),srv2(0):/p\n", {
        "rpw" => "-t nfs4 srv1:/p(5) | srv2:/p",
    }
    t52_candidates: "rpfar -fstype=nfs4 far1,srv3:/p\n", {
        "rpfar" => "-t nfs4 far1:/p | srv3:/p",
    }
    t53_candidates: "a nosuchhost,srv1:/p\nb srvdead,srv2:/p\n", {
        "a" => "-t nfs nosuchhost:/p | srv1:/p",
        "b" => "-t nfs srvdead:/p | srv2:/p",
    }
    t55_this_machine: "a client:/usr\nb -port=2049 client:/usr\nc :/usr\nd -nobind client:/usr\ne -ro,port=2049 :/usr\n", {
        "a" => "-t nfs client:/usr (here /usr)",
        "b" => "-t nfs -o port=2049 client:/usr (here /usr)",
        "c" => "-t bind /usr",
        "d" => "-t nfs client:/usr",
        "e" => "-t bind -o ro /usr",
    }
    t55_nobind_in_the_master_map: "a client:/usr\nc :/usr\n",
        with Setup { options: "nobind", ..Setup::default() }, {
        "a" => "-t nfs client:/usr",
        "c" => "error: @/map:2:3: expected colon delimiter not found in location /usr: it is HOST:/PATH or :/PATH, \
                in the entry of key c",
    }
    t56_symlink: "lnk -fstype=bind,symlink :/usr\n", {
        "lnk" => "symlink /usr",
    }
    symlink_in_the_master_map: "a client:/usr\nb :/usr\nc -fstype=bind :/usr\nd server:/usr\n",
        with Setup { options: "symlink", ..Setup::default() }, {
        "a" => "symlink /usr",
        "b" => "symlink /usr",
        "c" => "symlink /usr",
        "d" => "-t nfs server:/usr",
    }
    no_symlinks_in_direct_maps: "/lnk -fstype=bind,symlink :/usr\n",
        with Setup { mount_point: "/-", ..Setup::default() }, {
        "/lnk" => "-t bind /usr",
    }
    different_paths: "a srv1:/a srv2,srv3(1):/b\n", {
        "a" => "-t nfs srv1:/a | srv2:/b | srv3:/b(1)",
    }
    bad_weights: "a srv1(x):/p\nb srv1(1:/p\nc (1):/p\n", {
        "a" => "error: @/map:1:3: host srv1(x): a weight is a number in parentheses right after the host, \
                in the entry of key a",
        "b" => "error: @/map:2:3: host srv1(1: a weight is a number in parentheses right after the host, \
                in the entry of key b",
        "c" => "error: @/map:3:3: host (1): a weight is a number in parentheses right after the host, \
                in the entry of key c",
    }
    /// As automount does.
    blanks_without_quotes: "a -fstype=cifs ://srv/two  words\nb -fstype=foo just two\nc -fstype=foo s1 s2:/x\n", {
        "a" => "-t cifs //srv/two words",
        "b" => "-t foo just two",
        "c" => "error: @/map:3:15: invalid character \" \" in location s1; a location is HOST:/PATH or :/PATH, \
                in the entry of key c",
    }
    nfs_paths_are_absolute: "a :x\nb :sshfs\\#u@h\\:/\n", {
        "a" => "error: @/map:1:3: expected colon delimiter not found in location :x: it is HOST:/PATH or :/PATH, \
                in the entry of key a",
        "b" => "error: @/map:2:3: expected colon delimiter not found in location :sshfs#u@h:/: it is HOST:/PATH or :/PATH, \
                in the entry of key b",
    }
    /// automount gives mount(8) both words as one.
    several_locations_of_other_types: "a -fstype=cifs ://s1/x ://s2/x\n", {
        "a" => "-t cifs //s1/x | //s2/x",
    }
}

/// `userdir:NAME`: users and their home directories.
#[test]
fn home_directories() {
    let opened = Setup { kind: "userdir:", ..Setup::default() }.open("");
    let home = nix::unistd::User::from_uid(0.into()).unwrap().unwrap().dir;
    assert_eq!(opened.lookup("root"), format!("symlink {}", home.display()));
    assert_eq!(opened.lookup("no-such-user"), "ENOENT");
    assert_eq!(opened.map.keys().unwrap(), None);
}
