//! Dumps and restores that fail half-way, at every fault point of the plugin: the container goes on, and the images stay
//! good. Then a CRIU that the plugin does not know, another plugin beside it, and a restore without it.

use super::container::{Container, Criu};
use super::{Fillers, exports, program};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::peers::mount_table;
use crate::process::{self, run_ok};
use anyhow::{Context, Result, ensure};
use autofs_cr::faults::CONTAINER;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// What a CRIU that is killed there keeps: copies of descriptors that it has taken away from the master.
const NO_KILL: &str = "container.parked";

pub fn run(checks: &mut Checks) -> Result<()> {
    let keys: Vec<String> = (0..20).map(|number| format!("k{number}")).collect();
    exports(&keys.iter().map(String::as_str).chain(["d"]).collect::<Vec<_>>())?;
    let mut keys = keys.iter();
    let mut next = || keys.next().context("no more keys");
    let (program, mounts) = (program()?, ["indirect:/mnt/i", "direct:/mnt/d:keep-fd"]);
    let start = ["catatonit", "--", &program, "master"];
    let below = Fillers::high()?;
    let container = Container::start(&[&start[..], &mounts].concat())?;
    ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no master");
    // Covered, with a descriptor of the master's.
    read(&container, "/mnt/d/d")?;

    let criu = Criu::with_plugin("faults")?;
    let restores = |point: &&&str| matches!(**point, "container.claimed" | "container.made");
    for point in CONTAINER.iter().filter(|point| !restores(point)) {
        for how in ["error", "kill"].iter().filter(|how| **how == "error" || *point != NO_KILL) {
            let dumped = criu.and_fault(&format!("{point}:{how}"))?.dump(&container);
            checks.that(&format!("{point}, {how}: the dump fails"), dumped.is_err() && !container.ended());
            let key = next()?;
            checks.step("a new key is served", read(&container, &format!("/mnt/i/{key}/{key}")));
            container.enter(&["umount", "/mnt/d"])?;
            checks.step("by descriptors, too", read(&container, "/mnt/d/d"));
        }
    }
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop((container, below));
    for point in CONTAINER.iter().filter(restores) {
        for how in ["error", "kill"] {
            let restored = criu.and_fault(&format!("{point}:{how}"))?.restore();
            checks.that(&format!("{point}, {how}: the restore fails"), restored.is_err());
        }
    }
    let container = criu.restore()?;
    checks.that("no number is held any more", !criu.log("restore").contains("cannot be kept"));
    let key = next()?;
    checks.step("the images are good: served", read(&container, &format!("/mnt/i/{key}/{key}")));
    container.enter(&["umount", "/mnt/d"])?;
    checks.step("by descriptors, too", read(&container, "/mnt/d/d"));
    drop(container);
    nothing_left(checks, "after all of them");
    unknown_criu(checks)?;
    beside_another(checks)?;
    images_that_stay(checks)?;
    without_plugin(checks)
}

/// A container with one live mount.
fn simple() -> Result<Container> {
    let container = Container::start(&["catatonit", "--", &program()?, "master", "indirect:/mnt/i"])?;
    ensure!(wait_until(|| container.enter(&["test", "-e", "/run/ready"]).is_ok()), "no master");
    read(&container, "/mnt/i/k0/k0")?;
    Ok(container)
}

/// Dump, end, restore; a busy key and a new one are there.
fn carry(criu: &Criu) -> Result<Container> {
    let (container, same_number) = bring_over(criu)?;
    ensure!(same_number, "the mount has another device number");
    goes_on(&container)?;
    Ok(container)
}

/// The restored container, and whether its mount has the number that it had.
fn bring_over(criu: &Criu) -> Result<(Container, bool)> {
    let number = |container: &Container| container.autofs("/mnt/i").map(|mount| mount.dev);
    let container = simple()?;
    let was = number(&container);
    criu.dump(&container)?;
    ensure!(wait_until(|| container.ended()), "the dump left the container running");
    drop(container);
    let container = criu.restore()?;
    let same = number(&container) == was;
    Ok((container, same))
}

fn goes_on(container: &Container) -> Result<()> {
    read(container, "/mnt/i/k0/k0")?;
    read(container, "/mnt/i/k1/k1")
}

/// As [`carry`], by a CRIU on its own. What is mounted is there; but it keeps no device number, and where the mount has another one
/// its master cannot answer for a new key.
fn carry_alone(criu: &Criu) -> Result<()> {
    let (container, same_number) = bring_over(criu)?;
    if same_number { goes_on(&container) } else { read(&container, "/mnt/i/k0/k0") }
}

/// The real program, with a symbol that the plugin needs under another name: of autofs, or of what came with CRIU 4.1. CRIU's own
/// support stays.
fn unknown_criu(checks: &mut Checks) -> Result<()> {
    const ODD: &str = "/tmp/criu-odd";
    for symbol in ["add_inventory_plugin", "autofs_mount"] {
        without_symbol(symbol, ODD)?;
        let odd = Criu::of_program(ODD, symbol)?;
        checks.step(&format!("a CRIU without {symbol}: as without the plugin"), carry_alone(&odd));
        for action in ["dump", "restore"] {
            let why = format!("CRIU's own support of autofs stays: CRIU does not export {symbol}");
            checks.that(&format!("{action}: its log says so"), odd.log(action).contains(&why));
            let hooks = odd.log(action).contains("\"autofs-cr\" (version 512 hooks 0)");
            checks.that("no hook is declared, of which an older one has fewer", hooks);
        }
    }
    // It cannot restore what needs the plugin, and says so before anything is made.
    let known = Criu::with_plugin("odd.known")?;
    let container = simple()?;
    known.dump(&container)?;
    drop(container);
    let restored = Criu::of_program(ODD, "odd.known")?.restore();
    checks.that("it refuses the images of a CRIU that has all symbols", restored.is_err());
    nothing_left(checks, "after that");
    checks.step("which are good", known.restore().map(drop));
    Ok(())
}

fn without_symbol(symbol: &str, program: &str) -> Result<()> {
    // Of another suite: a script sets the path of its libraries.
    const APART: &str = "/opt/criu/usr/sbin/criu";
    let criu = run_ok(HANG_LIMIT, "sh", &["-c", "command -v criu"])?;
    let mut bytes = fs::read(criu.trim())?;
    let mut odd = program.to_owned();
    if bytes.starts_with(b"#!") {
        odd += ".bin";
        fs::write(program, String::from_utf8(bytes)?.replace(APART, &odd))?;
        fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
        bytes = fs::read(APART)?;
    }
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let places: Vec<_> = (0..bytes.len() - name.len()).filter(|&at| bytes[at..].starts_with(&name)).collect();
    ensure!(!places.is_empty(), "criu does not export {symbol}");
    places.iter().for_each(|&at| bytes[at + 1] = b'X');
    fs::write(&odd, bytes)?;
    Ok(fs::set_permissions(odd, fs::Permissions::from_mode(0o755))?)
}

/// Another plugin takes the same hooks; CRIU calls plugins in the order of the directory, so under a first and a last name.
fn beside_another(checks: &mut Checks) -> Result<()> {
    let other = std::env::current_exe()?.with_file_name("libother_plugin.so");
    for name in ["aaa.so", "zzz.so"] {
        let criu = Criu::with_plugin(&format!("beside.{name}"))?;
        let place = std::path::Path::new("/tmp/libdir").join(name);
        fs::copy(&other, &place).with_context(|| other.display().to_string())?;
        let _ = fs::remove_file("/tmp/other-plugin.log");
        let carried = carry(&criu).map(drop);
        fs::remove_file(place)?;
        checks.step(&format!("beside another plugin ({name})"), carried);
        let log = fs::read_to_string("/tmp/other-plugin.log").unwrap_or_default();
        for hook in ["init", "pause", "checkpoint", "resume", "exit"] {
            checks.that(&format!("its hook {hook} was called"), log.lines().any(|line| line == hook));
        }
    }
    Ok(())
}

/// Images of an earlier dump, if they cannot be removed, would be read at a restore.
fn images_that_stay(checks: &mut Checks) -> Result<()> {
    let criu = Criu::with_plugin("stay")?;
    fs::create_dir(Criu::images_of("stay").join("autofs-cr-parked.img"))?;
    let container = simple()?;
    let dumped = criu.dump(&container);
    checks.that("old images that stay: the dump fails", dumped.is_err() && !container.ended());
    checks.that("and says why", criu.log("dump").contains("images of an earlier dump cannot be removed"));
    checks.step("the container goes on", goes_on(&container));
    Ok(())
}

/// A restore by a CRIU that has no such plugin.
fn without_plugin(checks: &mut Checks) -> Result<()> {
    let criu = Criu::with_plugin("without")?;
    let container = simple()?;
    criu.dump(&container)?;
    drop(container);
    checks.that("a restore without the plugin fails", criu.and_stock()?.restore().is_err());
    checks.that("and says why", criu.log("restore").contains("Missing required plugin: autofs-cr"));
    nothing_left(checks, "after it");
    checks.step("with it the images are good", criu.restore().map(drop));
    Ok(())
}

/// No process of CRIU or of the plugin, and no mount.
fn nothing_left(checks: &mut Checks, when: &str) {
    no_process_left(checks, when);
    let mounts = mount_table().into_iter().filter(|(path, fstype, _)| {
        fstype == "autofs" || path.contains(".criu") || path.contains("autofs-cr")
    });
    checks.equal(&format!("{when}: no mount is left"), mounts.collect(), Vec::new());
}

/// No process of CRIU or of the plugin.
pub fn no_process_left(checks: &mut Checks, when: &str) {
    let processes = || process::run(HANG_LIMIT, "pgrep", &["-x", "criu|criu-odd|autofs-cr-relay"]);
    let left = || processes().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    checks.soon(&format!("{when}: no process is left"), || left().is_ok_and(|left| left.is_empty()));
}

fn read(container: &Container, path: &str) -> Result<()> {
    let text = container.enter(&["cat", path])?;
    ensure!(path.ends_with(text.trim()), "{path} holds {text:?}");
    Ok(())
}
