//! `scripts/bench`: autofs-cr beside its peers and beside bare loops of the system calls that nobody can do without.
//!
//! | module | what it does |
//! |---|---|
//! | [`host`] | dump and restore on a host |
//! | [`engine`], [`life`] | the engine beside real automount |
//! | `criu` | containers: [`crate::plugin::scale`] |
//! | [`figures`] | keeps what was measured |
//! | [`page`], [`plot`] | make docs/benchmarks.md and its plots of it |

mod engine;
pub mod figures;
mod host;
mod life;
mod page;
mod plot;

pub use engine::visit_main;
pub use life::storm_main;

use anyhow::{Result, bail};
use autofs_cr::sys::DevNum;
use autofs_cr::sys::control::{Control, MountFd};
use autofs_cr::sys::mount::{self, AutofsParams, MountFlags, MountType};
use autofs_cr::sys::packet::PacketPipe;
use figures::Figures;
use rustix::fs::CWD;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

/// Times that everything is measured, unless `--rounds` says otherwise: the peers take minutes.
const ROUNDS: usize = 3;

/// Measures something so many times.
type Bench = fn(&mut Figures, usize) -> Result<()>;

/// Where the page is written (`scripts/bench` shows `docs` there).
const OUT: &str = "/out";

/// `scenarios bench WHAT`: measure, and print the tables; with `all` write the page, too.
pub fn main(what: &str) -> Result<()> {
    let rounds = crate::rounds().unwrap_or(ROUNDS);
    let machine = page::Machine::look()?;
    let mut figures = Figures::default();
    let all = what == "all";
    if !(all || ["host", "engine", "criu"].contains(&what)) {
        bail!("there is a bench of host, engine and criu, and all of them");
    }
    let benches: [(&str, Bench); 3] =
        [("host", host::run), ("engine", engine::run), ("criu", crate::plugin::scale::bench)];
    let mut result = Ok(());
    for (_, bench) in benches.into_iter().filter(|(name, _)| all || *name == what) {
        // What was measured until then counts.
        result = result.and(bench(&mut figures, rounds));
    }
    println!("\n{}", page::tables(&figures));
    if all {
        page::write(Path::new(OUT), &figures, &machine, rounds)?;
    }
    result
}

/// What no trigger of a direct map can do without, with this process for its master: directory, superblock, attachment,
/// timeout. Returns its number and its root.
fn bare_trigger(control: &Control, path: &Path, pipe: &PacketPipe) -> Result<(DevNum, MountFd)> {
    fs::create_dir_all(path)?;
    let params = AutofsParams::new(pipe.write.as_fd(), MountType::Direct);
    let detached = mount::autofs(&params, Path::new("bench"), MountFlags::empty())?;
    let dev = detached.dev()?;
    detached.attach(CWD, path)?;
    let root = control.open_mount(path, dev)?;
    control.set_timeout(root.as_fd(), 600)?;
    Ok((dev, root))
}
