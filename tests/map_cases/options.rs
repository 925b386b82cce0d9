//! Options of entries and of the master map.

use crate::cases;
use crate::common::{Setup, site};
use autofs_cr::engine::maps::{Site, conf::Conf};

fn replacing() -> Site {
    Site { conf: Conf { append_options: false, ..Conf::default() }, ..site() }
}

cases! {
    t34_dashes: "a -ro -soft server:/x\nb -rw,-soft server:/x\n", {
        "a" => "-t nfs -o ro,soft server:/x",
        "b" => "-t nfs -o rw,-soft server:/x",
    }
    t35_lone_dash: "a - server:/x\n", {
        "a" => "-t nfs server:/x",
    }
    /// automount drops every option that begins like one of its own words: `bgx=1` as well.
    t37_words_are_whole: "a -fstype=foo,bg,rw,bgx=1 :/dev/x\nb -fstype=foo,nofg,nonstrict,rw :/dev/x\n", {
        "a" => "-t foo -o rw,bgx=1 /dev/x",
        "b" => "-t foo -o rw /dev/x",
    }
    t38_words_of_submounts: "a -fstype=foo,timeout=5,browse,rw :/dev/x\n", {
        "a" => "-t foo -o rw /dev/x",
    }
    t40_appended: "a -rw server:/x\nb server:/x\n",
        with Setup { options: "ro,hard", ..Setup::default() }, {
        "a" => "-t nfs -o ro,hard,rw server:/x",
        "b" => "-t nfs -o ro,hard server:/x",
    }
    t40_replaced: "a -rw server:/x\nb server:/x\n",
        with Setup { options: "ro,hard", site: replacing(), ..Setup::default() }, {
        "a" => "-t nfs -o rw server:/x",
        "b" => "-t nfs -o ro,hard server:/x",
    }
    t41_not_twice: "c -hard,rw server:/z\n",
        with Setup { options: "rw", ..Setup::default() }, {
        "c" => "-t nfs -o hard,rw server:/z",
    }
    /// automount compares text: `ro` would vanish because `errors=continue` contains it.
    t41_compares_options_not_text: "c -errors=continue server:/z\n",
        with Setup { options: "ro", ..Setup::default() }, {
        "c" => "-t nfs -o ro,errors=continue server:/z",
    }
    t43_global_options_replaced: "b server:/y\n",
        with Setup {
            options: "ro,hard",
            site: Site { options: vec![b"nosuid".to_vec(), b"intr".to_vec()], ..replacing() },
            ..Setup::default()
        }, {
        "b" => "-t nfs -o ro,hard server:/y",
    }
    global_options_come_first: "b -rw server:/y\n",
        with Setup {
            options: "hard",
            site: Site { options: vec![b"nosuid".to_vec()], ..site() },
            ..Setup::default()
        }, {
        "b" => "-t nfs -o nosuid,hard,rw server:/y",
    }
    type_of_the_master_map: "a ://srv/a\nb -fstype=foo :/dev/b\n",
        with Setup { options: "-fstype=cifs,credentials=/etc/cred", ..Setup::default() }, {
        "a" => "-t cifs -o credentials=/etc/cred //srv/a",
        "b" => "-t foo -o credentials=/etc/cred /dev/b",
    }
    by_weight: "a -use-weight-only s1(2),s2:/x\nb -no-use-weight-only s1,s2:/x\n",
        with Setup { options: "-w", ..Setup::default() }, {
        "a" => "-t nfs s1:/x(2) | s2:/x by weight",
        "b" => "-t nfs s1:/x | s2:/x",
    }
}
