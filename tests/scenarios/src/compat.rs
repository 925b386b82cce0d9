//! The same maps served by real automount and by autofs-cr: they mount the same, and print the same.

use crate::check::{Checks, wait_until};
use crate::files::script;
use crate::peers::{Automount, is_autofs};
use crate::process::{Process, run, run_ok};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

const LIMIT: Duration = crate::check::HANG_LIMIT;
/// autofs-cr under the name of automount.
const OURS: &str = "/tmp/ours/automount";

const MASTER: &str = "\
/ind /etc/auto.ind -DX=usr,nosuid --timeout=77
/typed file,sun:/etc/auto.ind nodev
/browse /etc/auto.browse --ghost
/- /etc/auto.direct
/- /etc/auto.direct2 ro
/prog program:/etc/auto.prog
/multi multi file:/etc/auto.one -- file:/etc/auto.browse
/named auto.one
/amd file,amd:/etc/amd.map
/gone /etc/auto.gone
/hidden -null
/hidden /etc/auto.one
+auto.more
+dir:/etc/auto.master.d
";

const MAPS: &[(&str, &str)] = &[
    ("auto.more", "/more /etc/auto.one ro\n"),
    ("auto.master.d/x.autofs", "/drop /etc/auto.one\n"),
    ("auto.one", "one -fstype=tmpfs,size=1M :one\n"),
    (
        "auto.ind",
        "plain -fstype=bind,nodev :/usr\n\
         opts -fstype=tmpfs,size=64k,mode=0711 :opts_tmpfs\n\
         variable -fstype=bind :/$X/lib\n\
         \"quoted key\" -fstype=tmpfs :a\n\
         continued -fstype=tmpfs,\\\nnoexec :c\n\
         mm / -fstype=tmpfs :/mmroot /s1 -fstype=tmpfs,ro :/s1 /s2 -fstype=bind :/usr/lib\n\
         noroot /a/b -fstype=tmpfs :/ab /c -fstype=bind :/usr\n\
         sub -fstype=autofs,-DV=share file:/etc/auto.sub\n\
         bad srv:\n\
         null -null\n\
         dup -fstype=tmpfs :first\n\
         dup -fstype=tmpfs :second\n\
         * -fstype=tmpfs :star_&_$UID\n",
    ),
    ("auto.sub", "x -fstype=bind :/usr/$V\n"),
    ("auto.browse", "g1 -fstype=tmpfs :g1\ng2 :/usr\n"),
    ("auto.direct", "/direct/one -fstype=tmpfs :d1\n/direct/two -fstype=bind :/usr\n"),
    ("auto.direct2", "/direct/one -fstype=tmpfs :not_this\n/direct/three -fstype=tmpfs :d3\n"),
    ("amd.map", "link type:=link;fs:=/usr/share\nsel host!=nobody;type:=link;fs:=/usr/lib\n"),
];

/// What is looked up: with its outcome in both.
const VISITS: &[&str] = &[
    "/ind/plain",
    "/ind/opts",
    "/ind/variable",
    "/ind/quoted key",
    "/ind/continued",
    "/ind/mm/s1",
    "/ind/mm/s2",
    "/ind/noroot/a/b",
    "/ind/noroot/c",
    "/ind/sub/x",
    "/ind/bad",
    "/ind/null",
    "/ind/dup",
    "/ind/other",
    "/typed/opts",
    "/typed/none/such",
    "/browse/g1",
    "/browse/g3",
    "/direct/one",
    "/direct/two",
    "/direct/three",
    "/prog/lib",
    "/prog/fails",
    "/multi/one",
    "/multi/g2",
    "/named/one",
    "/named/two",
    "/amd/link",
    "/amd/sel",
    "/more/one",
    "/drop/one",
    "/gone/x",
];

/// A second set for the printed form: one key in each map, so that even the order is the same.
const ONE_KEY_EACH: &str = "\
/ind /etc/auto.one -DX=1,ro,soft --timeout=30 -DY=2
/f file:/etc/auto.one ro soft
/fs file,sun:/etc/auto.one strictexpire,nobind,-DQ=1
/- /etc/auto.d1 ro
/prog program:/etc/auto.prog soft
/multi multi file:/etc/auto.one -- file:/etc/auto.d2
/named auto.one nobrowse
/gone /etc/auto.gone
/- /etc/auto.d2
";

/// The scenario.
pub fn scenario(checks: &mut Checks) -> Result<()> {
    fs::create_dir_all("/etc/auto.master.d")?;
    fs::create_dir_all("/tmp/ours")?;
    let own = run_ok(LIMIT, "sh", &["-c", "command -v autofs-cr"])?;
    symlink(own.trim(), OURS)?;
    // The packages of the laboratory's other peers may have put their services there.
    let switch = fs::read_to_string("/etc/nsswitch.conf")?;
    let others: String = switch
        .lines()
        .filter(|line| !line.starts_with("automount"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write("/etc/nsswitch.conf", others + "automount: files\n")?;
    for (name, text) in MAPS {
        fs::write(format!("/etc/{name}"), text)?;
    }
    script("/etc/auto.prog", "#!/bin/sh\n[ \"$1\" = lib ] && echo \"-fstype=bind :/usr/$1\"\n")?;
    dumps(checks)?;
    fs::write("/etc/auto.master", MASTER)?;
    mounts(checks)
}

fn dumps(checks: &mut Checks) -> Result<()> {
    fs::write("/etc/auto.d1", "/d/one :/usr\n")?;
    fs::write("/etc/auto.d2", "/d/two -ro :/bin\n")?;
    fs::write("/etc/auto.master", ONE_KEY_EACH)?;
    let both = |args: &[&str]| Ok::<_, anyhow::Error>((dump(OURS, args)?, dump("automount", args)?));
    let (ours, theirs) = both(&["-m"])?;
    // `-DX=1,ro -DY=2`: variables come first here, there they stand as on the line.
    let theirs = theirs.replace("-DX=1 ro soft -DY=2", "-DX=1 -DY=2 ro soft");
    same_text(checks, "--dumpmaps prints byte for byte the same", &ours, &theirs);
    let (ours, theirs) = both(&["-m", "-O", "nosuid,ro", "/etc/auto.master"])?;
    checks.equal("global options as well", ours.lines().nth(4), theirs.lines().nth(4));
    checks.equal("and what they do", ours.lines().nth(5), theirs.lines().nth(5));
    let (ours, theirs) = both(&["-m", "file", "/etc/auto.d2"])?;
    same_text(checks, "--dumpmaps of one map", &ours, &theirs);

    fs::write("/etc/auto.master", MASTER)?;
    let (ours, theirs) = both(&["-m"])?;
    same_text(checks, "maps with many keys, in any order", &sorted(&ours), &sorted(&theirs));
    Ok(())
}

/// Stdout; blanks at the ends of entries do not count.
fn dump(program: &str, args: &[&str]) -> Result<String> {
    let output = run(LIMIT, program, args)?;
    let text = String::from_utf8_lossy(&output.stdout);
    // What automount says on stdout when it may not have as many open files as it wants.
    let text = text.replace("automount: can't increase open file limit - continuing", "");
    Ok(text
        .lines()
        .map(|line| if line.contains(" | ") { line.trim_end() } else { line })
        .fold(String::new(), |all, line| all + line + "\n"))
}

/// Which line is the first that differs?
fn same_text(checks: &mut Checks, what: &str, ours: &str, theirs: &str) {
    let lines = |text: &str| text.lines().map(str::to_owned).chain(["(end)".to_owned()]).collect::<Vec<_>>();
    let pairs = lines(ours).into_iter().zip(lines(theirs));
    checks.equal(what, pairs.into_iter().find(|(ours, theirs)| ours != theirs), None);
}

/// The lines of each mount point, sorted.
fn sorted(dump: &str) -> String {
    let blocks = dump.split("\nMount point: ").map(|block| {
        // A key that two maps of a multi map have is there twice with automount.
        let mut lines: Vec<&str> = block.lines().collect();
        lines.sort_unstable();
        lines.dedup();
        lines.join("\n")
    });
    blocks.collect::<Vec<_>>().join("\n")
}

fn mounts(checks: &mut Checks) -> Result<()> {
    let points = ["/ind", "/direct/one", "/direct/three", "/drop"];
    let mut theirs = Automount::start(&points)?;
    let expected = visit_all()?;
    theirs.signal(nix::sys::signal::Signal::SIGTERM)?;
    if !wait_until(|| theirs.ended()) {
        bail!("automount does not end");
    }
    // Seen in one of seven runs: automount ends before a submount of its own has, and leaves that and what is above.
    for point in points.iter().filter(|point| is_autofs(point)) {
        println!("  automount has left {point}");
        run(LIMIT, "umount", &["--recursive", "--lazy", point])?;
    }
    ensure!(!points.iter().any(|point| is_autofs(point)), "what automount left is still there");
    let left = directories();

    let pid_file = "/run/ours.pid";
    let log = run(LIMIT, OURS, &["--pid-file", pid_file])?;
    checks.that("called automount it goes to the background when it is ready", log.status.success());
    checks.that("and all mount points are there", points.iter().all(|point| is_autofs(point)));
    let pid: i32 = fs::read_to_string(pid_file).context("no pid file")?.trim().parse()?;
    let again = run(LIMIT, OURS, &[])?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    checks.that("a second one does not start", !again.status.success() && said.contains("runs already"));

    let found = visit_all()?;
    checks.equal("listings are the same", &found.listed, &expected.listed);
    for (path, expected) in &expected.outcomes {
        checks.equal(&format!("{path} ends as with automount"), found.outcomes.get(path), Some(expected));
    }
    for (path, expected) in &expected.table {
        checks.equal(&format!("mounts at {path}"), found.table.get(path), Some(expected));
    }
    let more: Vec<&str> =
        found.table.keys().map(String::as_str).filter(|path| !expected.table.contains_key(*path)).collect();
    checks.equal(
        "nothing else is mounted, but for a root where an entry has none",
        more,
        vec!["/ind/noroot"],
    );

    explained(checks, &found)?;
    run_ok(LIMIT, OURS, &["-l", "debug", "/ind", "/browse,/prog"])?;
    let levels = run_ok(LIMIT, "autofs-cr", &["ctl", "log"])?;
    checks.that(
        "the level of mounts is set",
        ["/ind", "/browse", "/prog"].iter().all(|path| levels.contains(path)),
    );

    Process::signal_pid(pid, nix::sys::signal::Signal::SIGTERM)?;
    checks.soon("it ends on TERM", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    checks.that("and takes its pid file with it", !std::path::Path::new(pid_file).exists());
    checks.that("and its mounts", !points.iter().any(|point| is_autofs(point)));
    checks.equal("directories of mount points are made and removed alike", directories(), left);

    run_ok(LIMIT, OURS, &["--pid-file", pid_file])?;
    let pid: i32 = fs::read_to_string(pid_file).context("no pid file")?.trim().parse()?;
    let busy = fs::File::open("/ind/opts")?;
    Process::signal_pid(pid, nix::sys::signal::Signal::SIGKILL)?;
    checks.soon("it is killed", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    run_ok(LIMIT, OURS, &["--force-exit"])?;
    checks.that("--force-exit detaches what a dead one left", !points.iter().any(|point| is_autofs(point)));
    drop(busy);
    Ok(())
}

/// `explain` told before what is mounted now.
fn explained(checks: &mut Checks, found: &Seen) -> Result<()> {
    for (path, outcome) in &found.outcomes {
        let output = run(LIMIT, "autofs-cr", &["explain", "--json", path])?;
        let told = output.status.success();
        let lines = String::from_utf8(output.stdout)?;
        let mut there = true;
        for line in lines.lines().filter(|_| told) {
            let line: serde_json::Value = serde_json::from_str(line)?;
            let point = line["mountpoint"].as_str().context("no mountpoint")?.replace(' ', "\\040");
            there &= found.table.contains_key(&point);
        }
        checks.that(&format!("{path} is as explain tells"), there && (told || outcome.is_empty()));
    }
    Ok(())
}

/// What was seen after all visits.
struct Seen {
    /// What is listed, without anything being mounted: browsed maps show their keys.
    listed: Vec<String>,
    /// Of each visit: could it be looked up, and is it a link?
    outcomes: BTreeMap<String, String>,
    /// Of each mount point of ours: type, source and options of what is mounted there, lowest first.
    table: BTreeMap<String, Vec<String>>,
}

fn visit_all() -> Result<Seen> {
    let listed =
        run_ok(LIMIT, "ls", &["-1", "/browse", "/ind", "/amd"])?.lines().map(str::to_owned).collect();
    let mut outcomes = BTreeMap::new();
    for path in VISITS {
        let output = run(LIMIT, "stat", &["-c", "%F", &format!("{path}/.")])?;
        outcomes.insert((*path).to_owned(), String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let mut table: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let (left, right) = line.split_once(" - ").context("a line without a dash")?;
        let (left, right): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        let ours = MASTER
            .lines()
            .filter_map(|line| line.split(' ').next())
            .any(|point| point.len() > 2 && (left[4] == point || left[4].starts_with(&format!("{point}/"))));
        if ours || ["/direct/", "/more", "/drop"].iter().any(|point| left[4].starts_with(point)) {
            let own: Vec<&str> = right[2].split(',').filter(|option| !of_the_daemon(option)).collect();
            // Of a multi map automount shows the type of the first one.
            let source = if left[4] == "/multi" { "-" } else { right[1] };
            let text = format!("{} {source} {} {} {}", right[0], left[3], left[5], own.join(","));
            table.entry(left[4].to_owned()).or_default().push(text);
        }
    }
    Ok(Seen { listed, outcomes, table })
}

/// Which of the mount points' directories exist.
fn directories() -> Vec<&'static str> {
    let points = ["/ind", "/browse", "/direct", "/direct/one", "/prog", "/drop", "/gone", "/hidden"];
    points.into_iter().filter(|point| std::path::Path::new(point).exists()).collect()
}

/// Options of autofs mounts that differ from daemon to daemon.
fn of_the_daemon(option: &str) -> bool {
    ["fd=", "pgrp=", "pipe_ino="].iter().any(|name| option.starts_with(name))
}
