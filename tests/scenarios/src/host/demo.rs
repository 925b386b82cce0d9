//! The main job in one look: automount serves, is killed, and its mounts go on under our engine.

use super::{Engine, TRIGGERS, master_of, write_maps};
use crate::check::{Checks, wait_until};
use crate::cli;
use crate::peers::{Automount, autofs_dev, is_mounted};
use crate::programs::{Sitter, read_file};
use anyhow::Result;

/// A row of the summary: where, a file inside that a program holds open.
const BUSY: &[(&str, &str, &str)] = &[
    ("/direct/one", "direct", "/direct/one/one"),
    ("/direct/tree/sub1", "offset", "/direct/tree/sub1/sub1"),
    ("/ind", "indirect", "/ind/busy/busy"),
    ("/ind/multi/x", "offset", "/ind/multi/x/x"),
];

pub fn run(checks: &mut Checks) -> Result<()> {
    write_maps()?;
    println!("1. automount 5.1.9 serves direct, indirect and offset maps; programs sit inside");
    let mut automount = Automount::start(TRIGGERS)?;
    let mut sitters = BUSY.iter().map(|(_, _, file)| Sitter::start(file)).collect::<Result<Vec<_>>>()?;
    let before: Vec<_> =
        BUSY.iter().map(|(path, _, _)| (autofs_dev(path), master_of(path).unwrap_or_default())).collect();
    print!("{}", cli::ok(&["list"])?);

    println!("\n2. autofs-cr dump --hold, then automount is killed with -9");
    print!("{}", cli::ok(&["dump", "-D", "/tmp/checkpoint", "--hold"])?);
    automount.kill9()?;

    println!("\n3. autofs-cr restore --serve");
    print!("{}", cli::ok(&["restore", "-D", "/tmp/checkpoint", "--serve"])?);
    let engine = Engine::serving("/ind")?;

    println!("\n4. life goes on");
    for ((path, _, file), sitter) in BUSY.iter().zip(&mut sitters) {
        checks.that(
            &format!("the program in {path} still sees its directory and reads {file}"),
            sitter.goes_on(),
        );
    }
    let fresh =
        ["/direct/two/two", "/direct/tree/sub2/sub2", "/ind/new/new", "/ind/multi/y/y", "/short/idle/idle"];
    for file in fresh {
        checks.step(&format!("a new lookup mounts: {file}"), read_file(file));
    }
    checks.that("the idle mount /short/idle expires", wait_until(|| !is_mounted("/short/idle")));

    println!("\n{:<20} {:<9} {:<14} {:<24} program inside", "mount", "type", "st_dev", "master");
    for (((path, kind, _), sitter), (dev, master)) in BUSY.iter().zip(&mut sitters).zip(&before) {
        let now = autofs_dev(path);
        checks.equal(&format!("{path} keeps its device number"), &now, dev);
        println!(
            "{path:<20} {kind:<9} {:<14} {:<24} {}",
            dev.clone().unwrap_or_default(),
            format!("{master} -> {}", master_of(path)?),
            if sitter.goes_on() { "goes on" } else { "LOST" }
        );
    }
    drop(engine);
    Ok(())
}
