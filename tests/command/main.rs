//! The command as people meet it: what it says when something is wrong, and what it shows on a terminal and elsewhere.
//!
//! Everything runs in a mount namespace of its own. Terminals are made by script(1).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Instant;

/// A directory that is the same for every user, and the program in it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::Builder::new().prefix("autofs-cr-command-").tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("autofs-cr");
        std::fs::copy(env!("CARGO_BIN_EXE_autofs-cr"), program).unwrap();
        Self { directory }
    }

    /// By how much [`Self::run`] shortens every path.
    fn cut(&self) -> usize {
        self.directory.path().as_os_str().len() - "DIR".len()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.path(name), text).unwrap();
        self
    }

    /// Run a script in the directory. `t ARGUMENTS` there runs the program and tells what it says, `pty COMMAND` gives a
    /// command a terminal.
    fn run(&self, script: &str) -> String {
        const PRELUDE: &str = r#"
            set -u
            mount -t tmpfs run /run
            t() { echo "\$ autofs-cr $*"; ./autofs-cr "$@" 2>&1; echo "exit $?"; echo; }
            nobody() { echo "nobody\$ autofs-cr $*"; setpriv --reuid=65534 --clear-groups ./autofs-cr "$@" 2>&1; echo "exit $?"; echo; }
            pty() { script --quiet --return --command "$1" /dev/null </dev/null; }
        "#;
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "300", "unshare", "--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("{PRELUDE}{script}")).current_dir(self.directory.path());
        for name in ["NO_COLOR", "COLUMNS", "RUST_LOG"] {
            command.env_remove(name);
        }
        let Output { status, stdout, stderr } = command.env("TERM", "xterm").output().unwrap();
        let text = String::from_utf8(stdout).unwrap();
        assert!(status.success(), "{status}: {text}{}", String::from_utf8_lossy(&stderr));
        text.replace(&*self.directory.path().to_string_lossy(), "DIR")
    }
}

/// With an engine that serves one map below the directory.
fn served(place: &Place, script: &str) -> String {
    let here = place.directory.path().display();
    place.write("master", &format!("{here}/served {here}/map\n")).write("map", "key :/usr\n");
    let begin = "
        ./autofs-cr automount --socket ./socket ./master >log 2>&1 &
        engine=$!
        trap 'kill $engine; wait $engine' EXIT
        tries=0
        until grep -q /served /proc/self/mounts; do
            sleep 0.05; tries=$((tries + 1)); [ $tries -lt 2400 ] || { cat log; exit 1; }
        done
        ls served/key >/dev/null
    ";
    place.run(&format!("{begin}{script}"))
}

/// Numbers of processes differ from run to run.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for part in text.split_inclusive(|c: char| !c.is_ascii_digit()) {
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
        match digits.len() {
            3.. => out += &part.replace(digits, "N"),
            _ => out += part,
        }
    }
    out
}

#[test]
fn mistakes_in_the_wording() {
    let text = Place::new().run(
        "t list --nope
         t dump
         t restore -D image --serve --master 1
         t top --delay 0
         t explain
         t explain --as root /x
         t automount --metrics 0.0.0.0:9300
         t automount -D novalue
         t maps check --kind solaris file
         t criu dump -D images",
    );
    insta::assert_snapshot!(text);
}

#[test]
fn nobody_is_not_root() {
    let place = Place::new();
    place.write("master", "/nowhere /etc/map\n");
    insta::assert_snapshot!(place.run(
        "nobody check | grep CAP_
         nobody dump -D image
         nobody restore -D image
         nobody automount ./master
         nobody ctl status
         nobody criu dump --tree 1 -D images"
    ));
}

#[test]
fn what_is_no_image() {
    let place = Place::new();
    place.write("file", "");
    insta::assert_snapshot!(place.run(
        "mkdir -m 700 empty; mkdir -m 777 open; chmod 777 open
         mkdir -m 700 damaged; echo rubbish >damaged/autofs-cr-inventory.img; chmod 600 damaged/*
         for image in missing file empty open damaged; do t restore -D $image; done
         t show damaged"
    ));
}

#[test]
fn where_nothing_is() {
    let place = Place::new();
    place.write("master", "/ind DIR/map\n/broken\n");
    insta::assert_snapshot!(place.run(
        "t ctl status
         t ctl --socket ./none status
         t busy /nowhere
         t list --tree 4194304
         t list --mount-namespace /nowhere
         t explain --master ./none /ind/key
         t explain --master ./master /ind/key
         t explain --master ./master /else
         t automount ./none
         t automount ./master
         t maps check ./none
         t criu dump --tree 1 -D images --criu ./none
         t criu restore -D images --criu ./none"
    ));
}

#[test]
fn mistakes_beside_an_engine() {
    let place = Place::new();
    let text = served(
        &place,
        "t dump -D image /usr
         t dump -D image $PWD/served/key
         t dump -D image $PWD/served >/dev/null
         t dump -D image $PWD/served
         t restore -D image --root relative
         t restore -D image /nowhere
         t restore -D image --master 4194304
         t ctl --socket ./socket expire /nowhere
         t ctl --socket ./socket log loud
         t ctl --socket ./socket log info --mount relative
         nobody ctl --socket ./socket status
         t automount -C --socket ./socket ./master
         t automount ./master",
    );
    insta::assert_snapshot!(without_numbers(&text));
}

#[test]
fn colours_only_on_a_terminal_that_wants_them() {
    let place = Place::new();
    place.write("map", "key \"open server:/\n");
    let check = "./autofs-cr maps check --kind indirect map";
    let coloured = |script: &str| place.run(&format!("{script}; true")).contains('\x1b');
    assert!(coloured(&format!("pty '{check}'")));
    assert!(coloured(&format!("NO_COLOR= pty '{check}'")));
    for script in [
        check,
        &format!("NO_COLOR=1 pty '{check}'"),
        &format!("TERM=dumb pty '{check}'"),
        &format!("pty '{check} | cat'"),
    ] {
        assert!(!coloured(script), "{script}");
    }
}

#[test]
fn a_table_fits_where_it_is_shown() {
    let place = Place::new();
    let list =
        "./autofs-cr list | cat; echo; COLUMNS=80 pty './autofs-cr list'; echo; COLUMNS=80 ./autofs-cr list";
    let text = served(&place, list);
    let [piped, narrow, not_a_terminal, ..] = &text.split("\n\n").collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    assert!(
        piped.contains("ENDS")
            && piped.lines().any(|line| line.contains("/served") && line.len() + place.cut() > 80),
        "{text}"
    );
    assert!(
        !narrow.contains("ENDS") && narrow.lines().all(|line| plain(line).chars().count() <= 80),
        "{text}"
    );
    assert!(not_a_terminal.contains("ENDS"), "{text}");
}

/// Without colours and the carriage return of a terminal.
fn plain(line: &str) -> String {
    let parts = line.trim_end_matches('\r').split('\x1b');
    parts.enumerate().map(|(n, part)| if n == 0 { part } else { part.split_once('m').unwrap().1 }).collect()
}

#[test]
fn what_takes_long_says_so_on_a_terminal() {
    let place = Place::new();
    let slow = place.path("slow");
    place.write("slow", "#!/bin/sh\nsleep 2.5\necho :/usr\n");
    place.write("master", &format!("/prog program:{}\n", slow.display()));
    let explain = "chmod +x slow; ./autofs-cr explain --master ./master /prog/key";
    let shown = place.run(&format!("pty '{explain}'"));
    assert!(
        ["1 s", "2 s", "3 s"].iter().any(|time| shown.contains(&format!("\r\x1b[K{time}  asking the maps"))),
        "{shown:?}"
    );
    let (_, end) = shown.rsplit_once("\r\x1b[K").unwrap();
    assert!(end.starts_with("MOUNT POINT") || plain(end).starts_with("MOUNT POINT"), "{shown:?}");
    assert!(!place.run(&format!("{explain} 2>&1")).contains("asking"));
    // What takes less than a second does not. On a busy machine it may take longer, now and then.
    place.write("slow", "#!/bin/sh\necho :/usr\n");
    let quick = (0..100).map(|_| (Instant::now(), place.run(&format!("pty '{explain}'")), Instant::now()));
    let (_, shown, _) =
        quick.into_iter().find(|(begin, _, end)| end.duration_since(*begin).as_secs() == 0).unwrap();
    assert!(!shown.contains("asking"), "{shown:?}");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let place = Place::new();
    place.write("map", &"key\n".repeat(100_000));
    let text =
        place.run("{ ./autofs-cr maps check --kind indirect map 2>&1; echo $? >code; } | head -1; cat code");
    assert_eq!(text.lines().collect::<Vec<_>>(), ["error: key key has no entry", "0"]);
}

/// Every command tells by examples how it is used.
#[test]
fn help_teaches_by_example() {
    let place = Place::new();
    let commands = [
        "list",
        "check",
        "dump",
        "restore",
        "show",
        "automount",
        "explain",
        "maps check",
        "ctl",
        "busy",
        "top",
    ];
    for command in commands.into_iter().chain(["criu"]) {
        let text = place.run(&format!("./autofs-cr {command} --help"));
        assert!(text.contains("\nExamples:\n  autofs-cr "), "{command}: {text}");
    }
}
