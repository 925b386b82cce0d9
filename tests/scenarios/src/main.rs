//! Whole-system scenarios: real kernel, real automount, real systemd, real CRIU.
//!
//! Runs inside the laboratory (`scripts/scenario NAME`). Each scenario ends in a line
//! `NAME: N passed, N failed`; the exit code is 1 when anything failed.
#![allow(clippy::print_stdout, reason = "its output is what a scenario is for")]

mod bench;
mod check;
mod cli;
mod compat;
mod engine;
mod files;
mod host;
mod image;
mod machine;
mod package;
mod peers;
mod plugin;
mod process;
mod programs;
mod runtimes;
mod top;

use check::Checks;
use std::process::ExitCode;
use std::sync::OnceLock;

/// One scenario.
struct Scenario {
    name: &'static str,
    about: &'static str,
    run: fn(&mut Checks) -> anyhow::Result<()>,
}

/// Every scenario, in the order of `--all`.
const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "demo",
        about: "a killed automounter's mounts go on under another master",
        run: host::demo::run,
    },
    Scenario {
        name: "image",
        about: "stock crit and show read an image that has one of everything",
        run: image::run,
    },
    Scenario {
        name: "host-automount",
        about: "real automount: dump, show, list, kill -9, restore, re-create elsewhere",
        run: host::automount::run_scenario,
    },
    Scenario {
        name: "host-systemd",
        about: "a real systemd automount unit adopted after systemd is gone, and re-created",
        run: host::systemd::run,
    },
    Scenario {
        name: "host-adopt",
        about: "busy and covered mounts adopted from dead and living masters, cwd kept",
        run: host::adopt::run,
    },
    Scenario {
        name: "host-in-flight",
        about: "requests in flight answered by the new master; 20 rounds under 32 walkers",
        run: host::in_flight::run,
    },
    Scenario {
        name: "automount-swap",
        about: "a host is handed from automount to autofs-cr and back, under 32 walkers",
        run: engine::swap::run,
    },
    Scenario {
        name: "map-compat",
        about: "the same maps served by real automount and by autofs-cr: same mounts, same printed maps",
        run: compat::scenario,
    },
    Scenario {
        name: "top",
        about: "autofs-cr top in a real terminal: who waits on real automount; rates of our engine",
        run: top::run,
    },
    Scenario {
        name: "reboot",
        about: "virtual machine: dump at shutdown, restore at boot, by the package's services; kexec, a power cut",
        run: host::reboot::run,
    },
    Scenario {
        name: "two-hosts",
        about: "virtual machines: a container with automount and programs that walk moves from one to the other",
        run: plugin::two_hosts::run_first,
    },
    Scenario {
        name: "two-hosts-all",
        about: "virtual machines: the same with every runtime, systemd, taken numbers, no plugin there",
        run: plugin::two_hosts::run_all,
    },
    Scenario {
        name: "package",
        about: "the Debian package beside automount: installed, its services used under systemd, purged",
        run: package::run_scenario,
    },
    Scenario {
        name: "mounts",
        about: "every kind of mount: by system call, with helpers that work, hang and die, links, submounts, offsets",
        run: engine::mounts::run_scenario,
    },
    Scenario {
        name: "nfs",
        about: "virtual machine: NFS 3 and 4, replicas, -hosts, a server that is gone for a while, SMB; beside real automount",
        run: engine::nfs::run_scenario,
    },
    Scenario {
        name: "map-sources",
        about: "maps from a real slapd, sssd, ypserv, name server and mountd, and nsswitch; then those hang and die",
        run: engine::sources::run_scenario,
    },
    Scenario {
        name: "engine-control",
        about: "a running engine is asked and told what to do: ctl, busy, metrics, journal",
        run: engine::control::run_scenario,
    },
    Scenario {
        name: "amd",
        about: "amd maps: places that keys share, programs that mount, links; over a kill -9",
        run: engine::amd::run,
    },
    Scenario {
        name: "engine-reload",
        about: "master map and maps change while mounts are in use; HUP and ctl reload follow them",
        run: engine::reload::run_scenario,
    },
    Scenario {
        name: "answers",
        about: "dead server, hung program, full disk, entry removed: every request is answered, other keys go on",
        run: engine::answers::run_scenario,
    },
    Scenario {
        name: "soak",
        about: "40 seconds of triggers, expiries, reloads, a dead server, engines killed (`scripts/soak MINUTES`)",
        run: engine::soak::short,
    },
    Scenario {
        name: "engine-upgrade",
        about: "an engine becomes another program 20 times under 32 walkers; requests in work go on",
        run: engine::upgrade::run_scenario,
    },
    Scenario { name: "plugin-load", about: "a real CRIU loads the plugin", run: plugin::load },
    Scenario {
        name: "plugin-carry",
        about: "a container with autofs mounts is dumped and restored, and goes on",
        run: plugin::carry::run,
    },
    Scenario {
        name: "automount",
        about: "real automount in a container: its indirect maps go on after two restores",
        run: plugin::automount::run,
    },
    Scenario {
        name: "automount-kinds",
        about: "the same for direct and offset mounts and submounts, idle and busy; a relay that is killed",
        run: plugin::automount::every_kind,
    },
    Scenario {
        name: "foreign",
        about: "a container sees the host's automounter: restored where one serves, and where none does",
        run: plugin::foreign::run,
    },
    Scenario {
        name: "systemd",
        about: "real systemd with two automount units: dumped, restored, goes on; and without the plugin",
        run: plugin::systemd::run,
    },
    Scenario {
        name: "in-flight",
        about: "64 programs walk while their container is dumped and restored again and again (--rounds N)",
        run: plugin::in_flight::run,
    },
    Scenario {
        name: "plugin-faults",
        about: "dumps and restores of a container that fail half-way: it goes on, the images stay good",
        run: plugin::faults::run,
    },
    Scenario {
        name: "stock-gaps",
        about: "where CRIU's own support of autofs stops: without the plugin and with it",
        run: plugin::gaps::run,
    },
    Scenario {
        name: "scale",
        about: "1, 100 and 1 000 autofs mounts in a container; what CRIU cannot carry is refused",
        run: plugin::scale::run,
    },
    Scenario {
        name: "runtimes",
        about: "criu, runc, crun and podman carry a container with automount and our engine; scripts/install",
        run: runtimes::run_scenario,
    },
    Scenario {
        name: "criu-command",
        about: "autofs-cr criu dump and restore: a tree of processes without a runtime; what stands in the way",
        run: runtimes::command::run_scenario,
    },
];

/// Not in `scripts/test`: what passes on some runs only, or takes long.
/// - `two-hosts-all`: many minutes, with machines whose processors are emulated.
const UNSETTLED: &[&str] = &["two-hosts-all"];

/// After `--rounds`: how often a scenario that repeats itself does so.
static ROUNDS: OnceLock<usize> = OnceLock::new();

fn rounds() -> Option<usize> {
    ROUNDS.get().copied()
}

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--rounds") {
        let number = args.drain(at..(at + 2).min(args.len())).next_back();
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            let _ = ROUNDS.set(number);
        }
    }
    let wanted: Vec<&Scenario> = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["walk", ref keys @ ..] => return programs::walk_main(keys),
        ["master", ref mounts @ ..] => return plugin::master::main(mounts),
        ["visit", size] => return bench::visit_main(size),
        ["soak", minutes, ref triggers @ ..] => {
            return report(engine::soak::long(minutes, triggers.first()));
        }
        ["move", ref names @ ..] => return report(plugin::two_hosts::run_some(names)),
        ["soak-visit", name] => return engine::soak::visit_main(name),
        ["storm", dir, keys] => return bench::storm_main(dir, keys),
        ["bench", what] => return report(bench::main(what)),
        ["sit", file] => return programs::sit_main(file),
        ["--settled"] => {
            for scenario in SCENARIOS.iter().filter(|scenario| !UNSETTLED.contains(&scenario.name)) {
                println!("{}", scenario.name);
            }
            return ExitCode::SUCCESS;
        }
        ["--list"] => {
            for scenario in SCENARIOS {
                println!("{:16} {}", scenario.name, scenario.about);
            }
            return ExitCode::SUCCESS;
        }
        ["--all"] => SCENARIOS.iter().collect(),
        ref names => {
            let found: Option<Vec<_>> =
                names.iter().map(|name| SCENARIOS.iter().find(|s| s.name == *name)).collect();
            match found {
                Some(found) if !found.is_empty() => found,
                _ => {
                    println!("usage: scenarios --list | --all | NAME...");
                    return ExitCode::from(2);
                }
            }
        }
    };
    let mut failed = false;
    for scenario in wanted {
        let mut checks = Checks::default();
        if let Err(error) = (scenario.run)(&mut checks) {
            checks.fail("the scenario runs to its end", &format!("{error:#}"));
        }
        println!("{}: {} passed, {} failed", scenario.name, checks.passed, checks.failed);
        // A scenario that checked nothing has shown nothing.
        failed |= checks.failed > 0 || checks.passed == 0;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
