//! amd maps: file systems with a place of their own, which keys share; also after an engine was killed.

use super::Daemon;
use crate::check::Checks;
use crate::peers::{is_autofs, is_mounted, mount_table};
use crate::programs::read_file;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;

const MAP: &str = "\
first type:=lofs;rfs:=/srv/data/one;fs:=/a/one
second type:=lofs;rfs:=/srv/data/one;fs:=/a/one
inner type:=lofs;rfs:=/srv/data;fs:=/a/all;sublink:=two
run type:=program;fs:=/a/run;mount:=\"/bin/mount mount --bind /srv/data/two ${fs}\";unmount:=\"/bin/umount umount ${fs}\"
fails type:=program;fs:=/a/fails;mount:=\"/bin/false false\"
";

pub fn run(checks: &mut Checks) -> Result<()> {
    for name in ["one", "two"] {
        let dir = Path::new("/srv/data").join(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), format!("{name}\n"))?;
    }
    fs::write("/etc/autofs.conf", "[ autofs ]\nnegative_timeout = 1\n[ /links ]\nautofs_use_lofs = no\n")?;
    fs::write("/etc/auto.master", "/amd file,amd:/etc/amd.map\n/links file,amd:/etc/amd.map\n")?;
    fs::write("/etc/amd.map", MAP)?;
    let mut engine = Daemon::start(&[], &["/amd", "/links"])?;
    for key in ["/amd/first/one", "/amd/second/one", "/links/first/one", "/links/inner/two", "/amd/run/two"] {
        checks.step(&format!("{key} is read"), read_file(key));
    }
    checks.equal("three keys, one place", count("/a/one"), 1);
    checks.that("a program mounted", is_mounted("/a/run"));
    checks.equal("a key is a link", fs::read_link("/links/inner")?.as_path(), Path::new("/a/all/two"));
    let failed = crate::process::run(crate::check::HANG_LIMIT, "cat", &["/amd/fails/x"])?;
    checks.that("a command that fails is an error", !failed.status.success());
    checks.that("and leaves no directory", !Path::new("/a/fails").exists());

    expire_but(checks, &engine, "/links/first", "/a/run")?;
    checks.that("a place in use stays", is_mounted("/a/one"));
    checks.step("another key may come again", read_file("/amd/second/one"));

    engine.kill9()?;
    drop(engine);
    checks.that("killed: the mounts stay", is_mounted("/a/one") && is_mounted("/amd/second"));
    engine = Daemon::start(&[], &["/amd", "/links"])?;
    checks.step("the next engine knows who uses what", read_file("/links/first/one"));
    checks.soon("when all keys are gone the places are, too", || {
        let sent = engine.signal(Signal::SIGUSR1).is_ok();
        std::thread::sleep(std::time::Duration::from_millis(100));
        sent && mount_table().iter().all(|(path, ..)| !path.starts_with("/a/"))
    });
    checks.that("with the directories that were made for them", !Path::new("/a/one").exists());
    checks.that("the engine ends", engine.stop()?);
    checks.that("nothing is left", !is_autofs("/amd") && !is_autofs("/links"));
    Ok(())
}

/// Expire until `gone` is unmounted; `kept`, a link, is used all the time.
fn expire_but(checks: &mut Checks, engine: &Daemon, kept: &str, gone: &str) -> Result<()> {
    let _inside = fs::File::open(format!("{kept}/one"))?;
    checks.soon("a place without keys goes", || {
        let sent = engine.signal(Signal::SIGUSR1).is_ok();
        std::thread::sleep(std::time::Duration::from_millis(100));
        sent && !is_mounted(gone)
    });
    Ok(())
}

fn count(path: &str) -> usize {
    mount_table().iter().filter(|(at, ..)| at == path).count()
}
