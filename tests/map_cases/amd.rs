//! Maps in amd format.

use crate::common::{Opened, Setup, site};
use autofs_cr::engine::maps::conf::Conf;
use autofs_cr::engine::maps::master::{Master, entry};

const DEFAULTS: &str = "/defaults type:=nfs;rhost:=server\n";

fn open(text: &str, conf: &str) -> Opened {
    let mut site = site();
    let mut warnings = Vec::new();
    site.conf.apply(conf.as_bytes(), &mut warnings);
    assert!(warnings.is_empty(), "{warnings:?}");
    site.configure();
    Setup { mount_point: "/amd", kind: "file,amd:", site, ..Setup::default() }.open(text)
}

macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident: $map:expr $(, with $conf:expr)? => { $($key:expr => $expected:expr),* $(,)? })*) => {$(
        $(#[$doc])*
        #[test]
        #[allow(unused_mut, unused_assignments)]
        fn $name() {
            let mut conf = "";
            $(conf = $conf;)?
            let opened = open(&[DEFAULTS, $map].concat(), conf);
            $(assert_eq!(opened.lookup($key), $expected, "key {}", $key);)*
        }
    )*};
}

cases! {
    t94_external_mounts: "apps rfs:=/autofs\n" => {
        "apps" => "-t nfs server:/autofs /a/server/autofs, then -t bind /a/server/autofs",
    }
    everything_of_a_host: "all type:=host;rhost:=exporter;opts:=ro\nnone type:=host;rhost:=silent\n" => {
        "all" => "/a: -t nfs -o ro,nosuid,nodev exporter:/a; /b/c: -t nfs -o ro,nosuid,nodev exporter:/b/c",
        "none" => "error: @/map:3:6: silent exports nothing, or does not say what, in the entry of key none",
    }
    t95_not_from_left_to_right: "ord fs:=${autodir}/${rhost}${rfs};type:=nfs;rhost:=srv3;rfs:=/q\n" => {
        "ord" => "-t nfs srv3:/q /a/srv3/q, then -t bind /a/srv3/q",
    }
    /// automount fails: these have no value unless it is configured.
    t97_values_of_uname: "sel arch==x86_64;type:=link;fs:=/usr\n\
                          os os==linux;karch==x86_64;osver==6.12.0;type:=link;fs:=/usr\n" => {
        "sel" => "-t bind /usr",
        "os" => "-t bind /usr",
    }
    t97_values_of_the_configuration: "sel arch==pdp11;os==unix;type:=link;fs:=/usr\n",
        with "[ amd ]\narch = pdp11\nos = unix\n" => {
        "sel" => "-t bind /usr",
    }
    t98_negation: "neg !exists(/etc/passwd);type:=link;fs:=/bad type:=link;fs:=/etc\n" => {
        "neg" => "-t bind /etc",
    }
    t100_slashes: "a type:=link;fs:=//usr//share\nb type:=link;fs:=/usr\\//share\n" => {
        "a" => "-t bind //usr/share",
        "b" => "-t bind /usr//share",
    }
    t101_merged_options: "k rfs:=/a;opts:=rw,hard;addopts:=nosuid,soft;fs:=${path}\n" => {
        "k" => "-t nfs -o rw,nosuid,soft server:/a",
    }
    t103_keys_with_a_prefix: "sub type:=auto;fs:=${map};pref:=${key}/\nsub/one type:=link;fs:=/one\n\
                              sub/* type:=link;fs:=/any/${key}\n* type:=link;fs:=/top/${key}\n" => {
        "sub" => "automount file,amd:@/map -o --prefix=sub/",
        "sub/one" => "-t bind /one",
        "other" => "-t bind /top/other",
    }
    cut: "a host==other;type:=link;fs:=/l || type:=link;fs:=/r\nb host==client;type:=link;fs:=/l || type:=link;fs:=/r\n" => {
        "a" => "-t bind /r",
        "b" => "-t bind /l",
    }
    several_are_tried_in_order: "a rhost:=srv1;rfs:=/a;fs:=${path} rhost:=srv2;rfs:=/b;fs:=${path} host==no;fs:=/x\n" => {
        "a" => "-t nfs srv1:/a || -t nfs srv2:/b",
    }
    defaults_of_an_entry: "a -type:=link;fs:=/usr fs:=/etc\nb -type:=link;fs:=/usr\nc -opts:=rw rfs:=/c;fs:=${path}\n" => {
        "a" => "-t bind /etc",
        "b" => "-t bind /usr",
        "c" => "-t nfs -o rw server:/c",
    }
    selectors: "host host==client;hostd==client.example.org;domain==example.org;type:=link;fs:=/y\n\
                not host!=client;type:=link;fs:=/n type:=link;fs:=/y\n\
                ids uid==0;gid==0;type:=link;fs:=/y\n\
                names key==names;path==/amd/names;autodir==/a;byte==little;type:=link;fs:=/y\n\
                nets in_network(10.1.0.0/24);network(10.1.0.0);!netnumber(10.9.0.0);type:=link;fs:=/y\n\
                xhost xhost(client.example.org);xhost(client);!xhost(server);type:=link;fs:=/y\n\
                truth true();!false();true(x);type:=link;fs:=/y\n\
                groups netgrp(clients);netgrpd(clients);!netgrp(clients,server);type:=link;fs:=/y\n\
                vendor vendor==unknown;cluster==example.org;type:=link;fs:=/y\n\
                none false();type:=link;fs:=/n\n" => {
        "host" => "-t bind /y",
        "not" => "-t bind /y",
        "ids" => "-t bind /y",
        "names" => "-t bind /y",
        "nets" => "-t bind /y",
        "xhost" => "-t bind /y",
        "truth" => "-t bind /y",
        "groups" => "-t bind /y",
        "vendor" => "-t bind /y",
        "none" => "error: @/map:11:6: the selectors choose no location, in the entry of key none",
    }
    variables: "a type:=link;fs:=/x/${key}/${/path}/${path/}/${/map}\nb type:=link;fs:=/x/${.hostd}/${hostd.}/${.host}x\n\
                c type:=link;fs:=/x/${nosuch}/${dollar}/$host\nd type:=link;fs:=/x/${\n\
                e type:=link;fs:=/${rfs};rfs:=${fs}\n" => {
        "a" => "-t bind /x/a/a//amd/map",
        "b" => "-t bind /x/example.org/client/x",
        "c" => "-t bind /x/${nosuch}/$/$host",
        "d" => "error: @/map:5:3: a variable that begins with ${ has no } at its end, in the entry of key d",
        "e" => "error: @/map:6:3: option fs needs its own value, in the entry of key e",
    }
    types: "link type:=link;fs:=/usr;sublink:=share\nabs type:=link;fs:=/usr;sublink:=/share\n\
            linkx type:=linkx;fs:=/no/such || type:=link;fs:=/usr\nlofs type:=lofs;rfs:=/usr\n\
            ext type:=ext4;dev:=/dev/sdb1\ncd type:=cdfs;dev:=/dev/cdrom;fs:=/cd;sublink:=sub\nufs type:=ufs;dev:=/dev/c;fs:=/u\n\
            nfs rfs:=/shared;sublink:=local\nself rhost:=client;rfs:=/srv\n\
            nfsl type:=nfsl;rhost:=client;rfs:=/srv;fs:=/etc\nnfsl2 type:=nfsl;rfs:=/srv;fs:=/etc\n\
            none rhost:=x;type:=\nother type:=nfsx;rfs:=/a\ndev type:=ext4\n" => {
        "link" => "-t bind /usr/share",
        "abs" => "-t bind /share",
        "linkx" => "error: @/map:4:7: /no/such does not exist, in the entry of key linkx",
        "lofs" => "-t bind /usr",
        "ext" => "-t ext4 /dev/sdb1 /a/server/amd/ext, then -t bind /a/server/amd/ext",
        "cd" => "-t iso9660 /dev/cdrom /cd, then -t bind /cd/sub",
        "ufs" => "-t ext3 /dev/c /u, then -t bind /u",
        "nfs" => "-t nfs server:/shared /a/server/shared, then -t bind /a/server/shared/local",
        "self" => "-t nfs client:/srv (here /srv) /a/client/srv, then -t bind /a/client/srv",
        "nfsl" => "-t bind /etc",
        "nfsl2" => "-t nfs server:/srv /etc, then -t bind /etc",
        "other" => "error: @/map:14:7: locations of type nfsx are not supported, in the entry of key other",
        "dev" => "error: @/map:15:5: a location of type ext4 needs the option dev, in the entry of key dev",
    }
    options: "dash rfs:=/a;opts:=-;fs:=${path}\nfar rhost:=far1;rfs:=/a;opts:=rw;remopts:=ro;fs:=${path}\n\
              near rfs:=/a;opts:=rw;remopts:=ro;fs:=${path}\namd rfs:=/a;opts:=rw,nounmount,utimeout=5;fs:=${path}\n\
              quoted rfs:=/a;opts:=\"context=\\\"a\\\"\";fs:=${path}\n" => {
        "dash" => "-t nfs server:/a",
        "far" => "-t nfs -o ro far1:/a",
        "near" => "-t nfs -o rw server:/a",
        "amd" => "-t nfs -o rw server:/a",
    }
    submaps: "a type:=auto;fs:=/etc/m;opts:=browsable\nb type:=auto;maptype:=exec;fs:=/etc/p\n" => {
        "a" => "automount file,amd:/etc/m -o browse",
        "b" => "automount exec,amd:/etc/p",
    }
    wrong_places: "a rfs:=/a;fs:=rel\nb rfs:=/../b\nc type:=link;fs:=rel\n" => {
        "a" => "error: @/map:2:3: fs:=rel is not an absolute path without . and .., in the entry of key a",
        "b" => "error: @/map:3:3: fs:=/a/server/../b is not an absolute path without . and .., in the entry of key b",
        "c" => "error: @/map:4:3: fs:=rel is not an absolute path without . and .., in the entry of key c",
    }
    wrong_text: "a foo:=bar\nb foo==bar;fs:=/x\nc type:=link:fs\nd foo(bar)\ne TYPE:=link\nf !type:=link\n" => {
        "a" => "error: @/map:2:3: unknown option foo, in the entry of key a",
        "b" => "error: @/map:3:3: unknown selector foo, in the entry of key b",
        "d" => "error: @/map:5:3: unknown selector foo, in the entry of key d",
        "e" => "error: @/map:6:3: unknown option TYPE, in the entry of key e",
    }
    links: "a type:=link;fs:=/usr\n", with "[ amd ]\nautofs_use_lofs = no\n" => {
        "a" => "symlink /usr",
    }
    slashes_as_they_are: "a type:=link;fs:=/usr//share\n", with "[ amd ]\nnormalize_slashes = no\n" => {
        "a" => "-t bind /usr//share",
    }
    /// The machine is client.example.org.
    domains_are_stripped: "a type:=nfs;rfs:=/x;fs:=/a/${rhost};rhost:=srv.example.org\n\
         b type:=nfs;rfs:=/x;fs:=/a/${rhost};rhost:=srv.example.com\n", with "" => {
        "a" => "-t nfs srv:/x /a/srv, then -t bind /a/srv",
        "b" => "-t nfs srv.example.com:/x /a/srv.example.com, then -t bind /a/srv.example.com",
    }
    domains_are_kept: "a type:=nfs;rfs:=/x;fs:=/a/${rhost};rhost:=srv.example.org\n", with "[ amd ]\ndomain_strip = no\n" => {
        "a" => "-t nfs srv.example.org:/x /a/srv.example.org, then -t bind /a/srv.example.org",
    }
    configured_defaults: "a fs:=/usr\n", with "[ amd ]\nmap_defaults = type:=link\n" => {
        "a" => "-t bind /usr",
    }
}

#[test]
fn t103_in_the_submount() {
    let opened = open(
        "sub type:=auto;fs:=${map};pref:=${key}/\nsub/one type:=link;fs:=/one\n\
         sub/* type:=link;fs:=/any/${key}\n* type:=link;fs:=/top/${key}\n",
        "",
    );
    assert_eq!(opened.keys(), ["sub"]);
    let below = opened.submount("sub", site());
    assert_eq!(below.lookup("one"), "-t bind /one");
    assert_eq!(below.lookup("zzz"), "-t bind /any/zzz");
    assert_eq!(below.keys(), ["one"]);
}

#[test]
fn defaults_with_selectors() {
    let map = "/defaults host==other;type:=nfs host==client;type:=link\na fs:=/usr\n";
    assert_eq!(open(map, "[ amd ]\nselectors_in_defaults = yes\n").lookup("a"), "-t bind /usr");
}

#[test]
fn a_section_of_the_configuration_makes_a_map_amd() {
    let mut site = site();
    site.conf = Conf::default();
    site.conf.apply(b"[ amd ]\n[ /amd ]\nautofs_use_lofs = no\n", &mut Vec::new());
    let opened = Setup { mount_point: "/amd", site, ..Setup::default() }.open("a type:=link;fs:=/usr\n");
    assert_eq!(opened.lookup("a"), "symlink /usr");
}

#[test]
fn programs_write_the_key_too() {
    let opened = Setup { mount_point: "/nowhere", kind: "program,amd:", program: true, ..Setup::default() }
        .open("#!/bin/sh\n[ $1 = /defaults ] && exit 1\necho \"$1 type:=link;fs:=/p/$1\"\n");
    assert_eq!(opened.lookup("k"), "-t bind /p/k");
}

#[test]
fn sections_of_the_configuration_are_entries() {
    let mut conf = Conf::default();
    let text = b"[ amd ]\nmap_type = file\n[ /one ]\nmap_name = /etc/amd.one\ndismount_interval = 60\n\
                 browsable_dirs = yes\n[ /two ]\nmap_name = amd.two\nmap_type = nis\n[ /three ]\n";
    conf.apply(text, &mut Vec::new());
    let known = entry(Some("/one".into()), b"/etc/other", b"").unwrap();
    let mut master = Master { entries: vec![known], ..Master::default() };
    assert_eq!(master.add_amd_sections(&conf), Vec::<String>::new());
    let names: Vec<String> = master.entries.iter().map(|entry| entry.map.to_string()).collect();
    assert_eq!(names, ["/etc/other", "yp,amd:amd.two"]);

    let mut master = Master::default();
    assert_eq!(master.add_amd_sections(&conf), Vec::<String>::new());
    let one = &master.entries[0];
    assert_eq!(one.map.to_string(), "file,amd:/etc/amd.one");
    assert_eq!((one.options.timeout.unwrap().as_secs(), one.options.browse), (60, Some(true)));
}

#[test]
fn submounts_inherit() {
    let setup = Setup { mount_point: "/amd", kind: "file,amd:", options: "nosuid,-DX=y", ..Setup::default() };
    let opened = setup.open("a type:=auto;fs:=/etc/m\n");
    assert_eq!(opened.lookup("a"), "automount file,amd:/etc/m -o nosuid,-DX=y");
}

#[test]
fn a_map_is_looked_for_in_the_search_path() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("found"), "k type:=link;fs:=/usr\n").unwrap();
    let mut site = site();
    let conf = format!("[ amd ]\nsearch_path = /nowhere:{}\n", directory.path().display());
    site.conf.apply(conf.as_bytes(), &mut Vec::new());
    let item = autofs_cr::engine::maps::master::parse(b"/amd file,amd:found", &mut Vec::new()).pop();
    let Some(autofs_cr::engine::maps::master::Item::Entry(entry)) = item else { panic!() };
    let map = autofs_cr::engine::maps::Map::open(*entry, std::sync::Arc::new(site)).unwrap();
    assert_eq!(map.keys().unwrap(), Some(vec![b"k".to_vec()]));
}

/// automount puts variables into commands although they are in quotes.
#[test]
fn programs_mount() {
    let text = "p type:=program;fs:=/a/p;mount:=\"/bin/m m -x ${fs}\";umount:=\"/bin/u u ${fs}\"\n\
                none type:=program;fs:=/a/p\n";
    let opened = open(text, "");
    let found = opened.lookup("p");
    assert!(found.contains("run /bin/m m -x /a/p, then /bin/u u /a/p"), "{found}");
    assert!(opened.lookup("none").contains("needs the option mount"), "{}", opened.lookup("none"));
}

#[test]
fn hosts_have_their_canonical_names() {
    let text = "a rhost:=alias;rfs:=/x;fs:=${path}\nb rhost:=other;rfs:=/x;fs:=${path}\n";
    let conf = "[ amd ]\nnormalize_hostnames = yes\n";
    let opened = open(&[DEFAULTS, text].concat(), conf);
    assert_eq!(opened.lookup("a"), "-t nfs real.example.com:/x");
    assert_eq!(opened.lookup("b"), "-t nfs other:/x");
}
