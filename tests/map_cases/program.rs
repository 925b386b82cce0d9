//! Program maps: really run.

use crate::common::{Opened, Setup, site};
use std::time::{Duration, Instant};

fn program(script: &str) -> Opened {
    Setup { program: true, mount_point: "/nowhere", options: "-DMINE=1", ..Setup::default() }
        .open(&format!("#!/bin/sh\n{script}\n"))
}

#[test]
fn t73_first_line_only() {
    let opened = program("printf 'server:/one\\nserver:/two\\n'");
    assert_eq!(opened.lookup("k"), "-t nfs server:/one");
}

#[test]
fn t73_blank_lines_before_it() {
    let opened = program("printf '\\n\\n  server:/lead\\n'");
    assert_eq!(opened.lookup("k"), "-t nfs server:/lead");
}

#[test]
fn continued_lines_are_one() {
    let opened = program("printf -- '-ro \\\\\\n / server:/a \\\\\\n /b server:/b\\n'");
    assert_eq!(opened.lookup("k"), "/: -t nfs -o ro server:/a; /b: -t nfs -o ro server:/b");
}

#[test]
fn t74_failure_means_no_such_key() {
    assert_eq!(program("echo server:/x; exit 3").lookup("k"), "ENOENT");
}

#[test]
fn t74_stderr_is_only_logged() {
    assert_eq!(program("echo trouble >&2; echo server:/x").lookup("k"), "-t nfs server:/x");
}

#[test]
fn no_output_means_no_such_key() {
    assert_eq!(program("").lookup("k"), "ENOENT");
}

#[test]
fn t76_environment() {
    let opened = program(
        "echo \"s:/$AUTOFS_USER.$AUTOFS_UID.$AUTOFS_GROUP.$AUTOFS_GID$AUTOFS_HOME.$AUTOFS_SHOST/$HOST.$ARCH.$MINE/[$USER$HOME]/$1\"",
    );
    assert_eq!(opened.lookup("k"), "-t nfs s:/root.0.root.0/root.client/client.example.org.x86_64.1/[]/k");
}

#[test]
fn t76_working_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let setup = Setup { program: true, mount_point: path, ..Setup::default() };
    let opened = setup.open("#!/bin/sh\necho \"s:$PWD|$(pwd)\"\n");
    assert_eq!(opened.lookup("k"), format!("-t nfs s:{path}|{path}"));
}

#[test]
fn the_key_is_the_argument_as_it_is() {
    let opened = program("echo \"s:/$#/\\\"$1\\\"\"");
    assert_eq!(opened.lookup("$(id) ; &"), "-t nfs s:/1/$(id) ; &");
}

fn limited(script: &str, limit: Duration) -> Opened {
    let mut site = site();
    site.conf.program_wait = limit;
    Setup { program: true, mount_point: "/nowhere", site, ..Setup::default() }
        .open(&format!("#!/bin/sh\n{script}\n"))
}

#[test]
fn a_stuck_program_is_killed_with_its_children() {
    let marker = tempfile::NamedTempFile::new().unwrap();
    let path = marker.path().display();
    let opened = limited(&format!("sleep 60 & echo $! > {path}; sleep 60"), Duration::from_millis(500));
    let start = Instant::now();
    let answer = opened.lookup("k");
    assert!(answer.contains("it was killed"), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(50));
    let child = std::fs::read_to_string(marker.path()).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    let gone = (0..3000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        state().map_or(true, |stat| stat.contains(") Z "))
    });
    assert!(gone, "{:?}", state());
}

#[test]
fn a_program_that_closes_its_output_is_killed_too() {
    let answer = limited("exec >&- 2>&-; sleep 60", Duration::from_millis(300)).lookup("k");
    assert!(answer.contains("it was killed"), "{answer}");
}

#[test]
fn a_child_left_behind_is_not_waited_for() {
    let start = Instant::now();
    let opened = limited("sleep 100 & echo s:/x", Duration::from_secs(60));
    assert_eq!(opened.lookup("k"), "-t nfs s:/x");
    assert!(start.elapsed() < Duration::from_secs(50));
}

#[test]
fn endless_output_is_cut() {
    let answer = limited("exec yes", Duration::from_secs(60)).lookup("k");
    assert!(answer.contains("more than 32768 bytes of output"), "{answer}");
}

#[test]
fn a_program_that_is_none() {
    let setup = Setup { program: true, ..Setup::default() };
    let answer = setup.open("#!/no/such/interpreter\n").lookup("k");
    assert!(answer.contains("cannot run it"), "{answer}");
}
