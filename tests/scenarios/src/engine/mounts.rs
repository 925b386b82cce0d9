//! What the engine mounts: file systems by system call, types with helpers, submounts, offsets, links, propagation.

use super::Daemon;
use crate::check::{Checks, HANG_LIMIT};
use crate::files::{export_all, script};
use crate::peers::{is_autofs, is_mounted};
use crate::process::{run, run_ok};
use crate::programs::read_file;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = crate::check::HANG_LIMIT;

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    sources()?;
    let _devices = maps()?;
    run_ok(LIMIT, "mount", &["--make-shared", "/"])?;
    let mut engine = Daemon::start(&[], &["/m", "/l", "/private", "/shared"])?;
    kernels_own(checks)?;
    unclean(checks)?;
    helpers(checks)?;
    links(checks, &engine)?;
    submount(checks, &engine)?;
    offsets(checks, &engine)?;
    propagation(checks)?;
    engine.signal(Signal::SIGUSR1)?;
    checks.that("the engine ends", engine.stop()?);
    checks.that("nothing is left", !["/m", "/l", "/private", "/shared"].iter().any(|path| is_autofs(path)));
    Ok(())
}

/// A loop device, given back when dropped: they belong to the whole machine.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run(LIMIT, "losetup", &["--detach", &self.0]);
    }
}

/// An image of a file system with a file in it.
fn image(name: &str, make: &[&str]) -> Result<String> {
    fs::create_dir_all("/srv/images")?;
    let (image, content) = (format!("/srv/images/{name}"), "/srv/content");
    run_ok(LIMIT, "truncate", &["-s", "320M", &image])?;
    run_ok(LIMIT, make[0], &[&make[1..], &[&image]].concat())?;
    fs::create_dir_all(content)?;
    run_ok(LIMIT, "mount", &["-o", "loop", &image, content])?;
    fs::write(format!("{content}/{name}"), format!("{name}\n"))?;
    run_ok(LIMIT, "umount", &[content])?;
    Ok(image)
}

fn device(name: &str, make: &[&str]) -> Result<Loop> {
    let image = image(name, make)?;
    Ok(Loop(run_ok(LIMIT, "losetup", &["--find", "--show", &image])?.trim().to_owned()))
}

fn sources() -> Result<()> {
    export_all(&["one", "top", "x", "y", "deep"])?;
    fs::create_dir_all("/srv/data/top/x/deep")?;
    fs::create_dir_all("/srv/data/x/deep")?;
    fs::create_dir_all("/srv/data/top/y")?;
    // The laboratory's own root is an overlay, which cannot hold another's upper directory.
    fs::create_dir_all("/srv/layers")?;
    run_ok(LIMIT, "mount", &["-t", "tmpfs", "layers", "/srv/layers"])?;
    fs::create_dir_all("/srv/layers/upper")?;
    fs::create_dir_all("/srv/layers/work")?;
    Ok(())
}

fn maps() -> Result<[Loop; 5]> {
    let devices = [
        device("ext4", &["mkfs.ext4", "-q"])?,
        device("ext2", &["mkfs.ext2", "-q"])?,
        device("xfs", &["mkfs.xfs", "-q"])?,
        device("unclean", &["mkfs.ext4", "-q"])?,
        device("broken", &["mkfs.ext4", "-q"])?,
    ];
    let [ext4, ext2, xfs, unclean, broken] = devices.each_ref().map(|device| device.0.as_str());
    image("file", &["mkfs.ext4", "-q"])?;
    run_ok(LIMIT, "debugfs", &["-w", "-R", "ssv state 2", unclean])?;
    // A root directory that is none: not for fsck -p to mend.
    run_ok(LIMIT, "debugfs", &["-w", "-R", "ssv state 2", broken])?;
    run_ok(LIMIT, "debugfs", &["-w", "-R", "clri <2>", broken])?;
    fs::write("/etc/autofs.conf", "[ autofs ]\nmount_wait = 15\nnegative_timeout = 1\n")?;
    fs::write(
        "/etc/auto.master",
        "/m /etc/auto.m --timeout=600\n/l /etc/auto.l --timeout=600 symlink\n\
         /private /etc/auto.l --timeout=600 private\n/shared /etc/auto.l --timeout=600 shared\n",
    )?;
    fs::write("/etc/auto.l", "* :/srv/data/&\n")?;
    fs::write("/etc/auto.sub", "* :/srv/data/&\n")?;
    fs::write(
        "/etc/auto.m",
        format!(
            "ext4 -fstype=ext4,ro,noatime :{ext4}\next2 -fstype=ext2 :{ext2}\nxfs -fstype=xfs :{xfs}\n\
             file -fstype=ext4,loop :/srv/images/file\nlabel -fstype=ext4 :LABEL=nothing\n\
             unclean -fstype=ext4 :{unclean}\nbroken -fstype=ext4 :{broken}\n\
             overlay -fstype=overlay,lowerdir=/srv/data/one,upperdir=/srv/layers/upper,workdir=/srv/layers/work :overlay\n\
             memory -fstype=tmpfs,size=1M,mode=0700 :memory\n\
             one -ro :/srv/data/one\nbehind :/m/ext4/lost+found\n\
             fuse -fstype=fuse.bindfs,ro :/srv/data/x\nstuck -fstype=stuck :nothing\ndies -fstype=dies :nothing\n\
             sub -fstype=autofs,ro,nosuid file:/etc/auto.sub\n\
             tree / :/srv/data/top /x :/srv/data/x /x/deep :/srv/data/deep /y :/srv/data/y\n"
        ),
    )?;
    Ok(devices)
}

/// Type and options of what is mounted on top at a path.
fn mounted(path: &str) -> Result<String> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(path)).context("no such mount")?;
    Ok(line.split_once(path).map_or("", |(_, rest)| rest).trim().to_owned())
}

fn kernels_own(checks: &mut Checks) -> Result<()> {
    for (key, words) in [
        ("ext4", "ro,noatime"),
        ("ext2", "- ext2"),
        ("xfs", "- xfs"),
        ("overlay", "upperdir=/srv/layers/upper"),
        ("memory", "mode=700"),
        ("one", "ro,"),
    ] {
        let _ = run(LIMIT, "ls", &[&format!("/m/{key}/.")])?;
        let found = mounted(&format!("/m/{key}")).unwrap_or_default();
        checks.that(&format!("{key} is mounted: {found}"), found.contains(words));
    }
    for file in ["/m/ext4/ext4", "/m/ext2/ext2", "/m/xfs/xfs", "/m/overlay/one", "/m/one/one"] {
        checks.step(&format!("{file} is read"), read_file(file));
    }
    checks.step("an image file: mount(8) makes the loop device", read_file("/m/file/file"));
    let label = run(LIMIT, "cat", &["/m/label/x"])?;
    checks.that("an unknown label is an error", !label.status.success());
    checks.step("a source behind another trigger is mounted first", {
        run_ok(LIMIT, "umount", &["/m/ext4"]).and_then(|_| run_ok(LIMIT, "ls", &["/m/behind/."]))
    });
    checks.that("both are there", is_mounted("/m/ext4") && is_mounted("/m/behind"));
    Ok(())
}

fn unclean(checks: &mut Checks) -> Result<()> {
    checks.step("an unclean file system is mounted", read_file("/m/unclean/unclean"));
    let device = fs::read_to_string("/etc/auto.m")?;
    let device = device.lines().find_map(|line| line.strip_prefix("unclean -fstype=ext4 :"));
    let state = run_ok(LIMIT, "dumpe2fs", &["-h", device.context("no line")?])?;
    checks.that("after fsck has mended it", state.contains("state:         clean\n"));
    let broken = run(LIMIT, "cat", &["/m/broken/broken"])?;
    let said = String::from_utf8_lossy(&broken.stderr).into_owned();
    checks.that(
        &format!("one that fsck cannot mend is refused: {}", said.trim()),
        said.contains("needs cleaning"),
    );
    Ok(())
}

/// Types with a program of their own: one that works, one that hangs, one that is killed.
fn helpers(checks: &mut Checks) -> Result<()> {
    script("/sbin/mount.stuck", "#!/bin/sh\nsleep 1234 &\nwait\n")?;
    script("/sbin/mount.dies", "#!/bin/sh\nkill -9 $PPID\nsleep 0.2\n")?;
    checks.step("a FUSE file system", read_file("/m/fuse/x"));
    checks.that("is one", mounted("/m/fuse")?.contains(" fuse"));
    let bindfs = running("bindfs").context("no bindfs runs")?;
    let status = fs::read_to_string(format!("/proc/{bindfs}/status"))?;
    checks.that("its server has no signal blocked", status.contains("SigBlk:\t0000000000000000"));

    let begin = std::time::Instant::now();
    let stuck = std::thread::spawn(|| run(HANG_LIMIT, "cat", &["/m/stuck/x"]));
    checks.soon("a helper hangs", || running("sleep\u{0}1234").is_some());
    checks.step("another key goes on meanwhile", read_file("/m/ext2/ext2"));
    let stuck = stuck.join().ok().context("a thread failed")??;
    let said = String::from_utf8_lossy(&stuck.stderr).into_owned();
    checks.that("who waits for it is told", said.contains("timed out"));
    checks.that("after its limit", (15..60).contains(&begin.elapsed().as_secs()));
    checks.soon("the helper is gone with all it started", || {
        running("sleep\u{0}1234").is_none() && running("mount.stuck").is_none()
    });
    let dies = run(LIMIT, "cat", &["/m/dies/x"])?;
    checks.that("mount(8) that is killed is an error at once", !dies.status.success());
    checks.step("and other keys go on", read_file("/m/one/one"));
    Ok(())
}

/// A process with these words in its command line.
fn running(words: &str) -> Option<i32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(words))
    })
}

fn links(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    checks.step("a key of a map with `symlink`", read_file("/l/one/one"));
    let link = fs::read_link("/l/one").unwrap_or_default();
    checks.equal("is a link", link.as_path(), Path::new("/srv/data/one"));
    checks.soon("which expires", || {
        engine.signal(Signal::SIGUSR1).is_ok() && wait_a_little() && is_empty("/l")
    });
    Ok(())
}

fn submount(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    checks.step("a key of a submount", read_file("/m/sub/one/one"));
    checks.that("the submount is an autofs mount", is_autofs("/m/sub"));
    let options = mounted("/m/sub/one")?;
    checks.that("its mounts have its options", options.contains("ro,") && options.contains("nosuid"));
    checks.soon("it expires with its last mount", || {
        engine.signal(Signal::SIGUSR1).is_ok() && wait_a_little() && !is_autofs("/m/sub")
    });
    Ok(())
}

/// A look at the link itself would make it again.
fn is_empty(dir: &str) -> bool {
    fs::read_dir(dir).is_ok_and(|mut names| names.next().is_none())
}

fn wait_a_little() -> bool {
    std::thread::sleep(Duration::from_millis(100));
    true
}

fn offsets(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    checks.step("the root of a multi-mount", read_file("/m/tree/top"));
    checks.that("its offsets are triggers", is_autofs("/m/tree/x") && is_autofs("/m/tree/y"));
    checks.that("not mounted", !is_mounted("/m/tree/x") && !is_autofs("/m/tree/x/deep"));
    checks.step("a nested offset", read_file("/m/tree/x/deep/deep"));
    checks.that("its sibling waits", is_autofs("/m/tree/y") && !is_mounted("/m/tree/y"));
    let sitter = crate::programs::Sitter::start("/m/tree/x/x")?;
    checks.soon("what is idle below expires", || {
        engine.signal(Signal::SIGUSR1).is_ok() && wait_a_little() && !is_mounted("/m/tree/x/deep")
    });
    checks.that("what is above stays", is_mounted("/m/tree/x") && is_mounted("/m/tree"));
    checks.step("and serves", read_file("/m/tree/x/deep/deep"));
    drop(sitter);
    checks.soon("then all of it goes, leaf first", || {
        engine.signal(Signal::SIGUSR1).is_ok() && wait_a_little() && !is_mounted("/m/tree")
    });
    checks.that("no trigger is left of it", !is_autofs("/m/tree/x") && !is_autofs("/m/tree/y"));
    Ok(())
}

/// Seen from another mount namespace: what goes out, by what the master map says.
fn propagation(checks: &mut Checks) -> Result<()> {
    for (dir, tags) in [("/m", [false, true]), ("/private", [false, false]), ("/shared", [true, false])] {
        let options = mounted(dir)?;
        let found = [options.contains(" shared:"), options.contains(" master:")];
        checks.that(&format!("{dir}: {options}"), found == tags || dir == "/m" && !found[0]);
        checks.step(&format!("a key of {dir}"), read_file(&format!("{dir}/one/one")));
        let options = mounted(&format!("{dir}/one"))?;
        checks.equal(&format!("{dir}/one goes to other namespaces"), options.contains(" shared:"), tags[0]);
    }
    Ok(())
}
