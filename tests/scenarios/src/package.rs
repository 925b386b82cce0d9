//! The Debian package: installed beside Debian's automount, its services used under a real systemd, purged again.

use crate::check::{Checks, wait_until};
use crate::files::export;
use crate::peers::Systemd;
use crate::process::{Process, run, run_ok};
use crate::programs::Sitter;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = crate::check::HANG_LIMIT;
/// `scripts/package` leaves it here.
const BUILT: &str = "/target/package";
const CHECKPOINT: &str = "/var/lib/autofs-cr/checkpoint";
/// Keys that are looked up, one after another, while the engine is killed.
const KEYS: usize = 150;
const UNITS: [&str; 3] = ["autofs-cr.service", "autofs-cr-dump.service", "autofs-cr-restore.service"];

/// Install, use, purge.
pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    // The laboratory's dpkg leaves documents out.
    fs::remove_dir_all("/etc/dpkg/dpkg.cfg.d")?;
    prepare_maps()?;
    let before = files()?;
    let autofs = verify_autofs()?;
    let package = package()?;
    run_ok(LIMIT, "dpkg", &["--install", &package])?;
    installed(checks)?;
    criu_finds_the_plugin(checks)?;
    let systemd = Systemd::boot_for_services()?;
    let services = Services { systemd: &systemd };
    services.engine(checks)?;
    services.privileges(checks)?;
    services.over_a_crash(checks)?;
    services.beside_automount(checks)?;
    services.dump_and_restore(checks)?;
    drop(systemd);

    run_ok(LIMIT, "dpkg", &["--purge", "autofs-cr"])?;
    let after = files()?;
    let ours = |path: &&String| path.contains("autofs-cr") || path.contains("autofs_cr");
    checks.equal("purged, nothing of it is left", after.iter().filter(ours).collect(), Vec::<&String>::new());
    checks.equal("and nothing else is missing", before.difference(&after).collect(), Vec::<&String>::new());
    checks.equal(
        "Debian's autofs is as it was",
        verify_autofs()?.difference(&autofs).collect(),
        Vec::<&String>::new(),
    );
    Ok(())
}

fn package() -> Result<String> {
    let files = fs::read_dir(BUILT).with_context(|| format!("{BUILT}: scripts/package makes it"))?;
    let paths = files.filter_map(|entry| entry.ok()?.path().to_str().map(str::to_owned));
    paths.into_iter().find(|path| path.ends_with(".deb")).context("no package: scripts/package makes it")
}

/// `/ind/KEY`; two more keys for later. The master map is no file of a package that must stay whole.
fn prepare_maps() -> Result<()> {
    let names = ["one", "two", "three"].map(str::to_owned);
    for name in names.into_iter().chain((1..=KEYS).map(|n| format!("k{n}"))) {
        export(&name)?;
    }
    fs::create_dir_all("/etc/auto.master.d")?;
    fs::write("/etc/auto.master.d/lab.autofs", "/ind /etc/auto.lab --timeout=600\n")?;
    fs::write("/etc/auto.lab", "* :/srv/data/&\n")?;
    Ok(())
}

/// What is not as packaged (the laboratory has no documents).
fn verify_autofs() -> Result<BTreeSet<String>> {
    let output = run(LIMIT, "dpkg", &["--verify", "autofs"])?;
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

/// Every path of the root file system that a package could have made.
fn files() -> Result<BTreeSet<String>> {
    let text = run_ok(
        LIMIT,
        "find",
        &[
            "/etc",
            "/usr",
            "/var",
            "-xdev",
            "(",
            "-path",
            "/var/lib/dpkg",
            "-o",
            "-path",
            "/var/log",
            ")",
            "-prune",
            "-o",
            "-print",
        ],
    )?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn installed(checks: &mut Checks) -> Result<()> {
    checks.equal("every file is as packaged", run_ok(LIMIT, "dpkg", &["--verify", "autofs-cr"])?.trim(), "");
    for unit in UNITS {
        let state = run(LIMIT, "systemctl", &["is-enabled", unit])?;
        checks.equal(
            &format!("{unit} is not enabled"),
            String::from_utf8_lossy(&state.stdout).trim(),
            "disabled",
        );
    }
    let verify = run(LIMIT, "systemd-analyze", &[&["--man=no", "verify"], &UNITS[..]].concat())?;
    checks.equal(
        "systemd finds nothing wrong with the units",
        String::from_utf8_lossy(&verify.stderr).trim(),
        "",
    );
    let completion = "source /usr/share/bash-completion/completions/autofs-cr && complete -p autofs-cr";
    checks.step("bash completes autofs-cr", run_ok(LIMIT, "bash", &["-c", completion]).map(drop));
    for page in ["8/autofs-cr.8", "8/autofs-cr-restore.8", "5/autofs-cr-maps.5", "5/autofs-cr-image.5"] {
        let page = format!("/usr/share/man/man{page}.gz");
        let text = run_ok(LIMIT, "zcat", &[&page])?;
        checks.that(&format!("{page} is a man page"), text.contains(".TH ") && text.contains(".SH EXAMPLES"));
    }
    Ok(())
}

/// With no flag.
fn criu_finds_the_plugin(checks: &mut Checks) -> Result<()> {
    fs::create_dir_all("/tmp/images")?;
    let mut program = Process::start_session(&["sleep", "1000"])?;
    let pid = program.pid().to_string();
    run_ok(LIMIT, "criu", &["dump", "-t", &pid, "-D", "/tmp/images", "-v4", "-o", "dump.log"])?;
    let log = fs::read_to_string("/tmp/images/dump.log")?;
    checks.that("criu finds the plugin with no flag", log.contains("Plugin \"autofs-cr\""));
    checks.that("the dump ended the program", wait_until(|| program.ended()));
    Ok(())
}

/// The package's services, under a real systemd.
struct Services<'a> {
    systemd: &'a Systemd,
}

impl Services<'_> {
    fn systemctl(&self, args: &[&str]) -> Result<String> {
        self.systemd.enter(&[&["systemctl"], args].concat())
    }

    fn is_active(&self, unit: &str) -> bool {
        self.systemctl(&["is-active", unit]).is_ok()
    }

    /// Its process, numbered as we see it.
    fn main_pid(&self, unit: &str) -> Result<i32> {
        let inside = self.systemctl(&["show", "--property=MainPID", "--value", unit])?;
        let inside: i64 = inside.trim().parse()?;
        anyhow::ensure!(inside > 0, "{unit} does not run");
        self.pid_here(inside)
    }

    /// A process that is numbered as systemd sees it.
    fn pid_here(&self, inside: i64) -> Result<i32> {
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(self.systemd.pid());
        let processes =
            fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        processes
            .into_iter()
            .filter(|&pid| namespace(pid) == ours)
            .find(|&pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or_default();
                line.split_whitespace().last() == Some(&inside.to_string())
            })
            .with_context(|| format!("process {inside} is not to be seen"))
    }

    fn read(&self, key: &str) -> String {
        self.systemd
            .enter(&["cat", &format!("/ind/{key}/{key}")])
            .unwrap_or_else(|error| format!("{error:#}"))
    }

    fn device(&self) -> Option<String> {
        let table = self.systemd.mountinfo();
        let line = table.lines().find(|line| line.contains(" /ind ") && line.contains(" - autofs "))?;
        line.split(' ').nth(2).map(str::to_owned)
    }

    fn engine(&self, checks: &mut Checks) -> Result<()> {
        checks.step("the engine's service starts", self.systemctl(&["start", "autofs-cr"]).map(drop));
        checks.equal("and serves as soon as it is started", self.read("one").trim(), "one");
        fs::write("/etc/auto.lab", "other :/srv/data/one\n* :/srv/data/&\n")?;
        checks.step("it can be reloaded", self.systemctl(&["reload", "autofs-cr"]).map(drop));
        let other = || self.systemd.enter(&["ls", "/ind/other/one"]).is_ok();
        checks.soon("and serves a key that is new", other);
        Ok(())
    }

    /// As docs/hardening.md has it, read back from the kernel.
    fn privileges(&self, checks: &mut Checks) -> Result<()> {
        let mounter: u64 =
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 18, 19, 21, 24].iter().map(|number| 1 << number).sum();
        // This machine itself may lack some.
        let mounter = mounter & Privileges::of(self.systemd.pid())?.bounding;
        let engine = Privileges::of(self.main_pid("autofs-cr")?)?;
        let expected = Privileges { effective: mounter, permitted: mounter, bounding: mounter, no_new: true };
        checks.equal("the engine has the capabilities of docs/hardening.md", engine, expected);

        let dump = ["autofs-cr", "dump", "--json", "--hold=60", "--dir=/tmp/held", "/ind"];
        let report: serde_json::Value = serde_json::from_str(&self.systemd.enter(&dump)?)?;
        let inside = report["left"].pointer("/held/holder/pid").or(report["left"].pointer("/holder/pid"));
        let inside =
            inside.and_then(serde_json::Value::as_i64).with_context(|| format!("no holder in {report}"))?;
        let holder = Privileges::of(self.pid_here(inside)?)?;
        let none = Privileges { effective: 0, permitted: 0, bounding: 0, no_new: true };
        checks.equal("the holder has none", holder, none);
        self.systemd.enter(&["kill", &inside.to_string()])?;
        Ok(())
    }

    /// `kill -9`: systemd keeps the pipe, so that no lookup fails until the next process serves.
    fn over_a_crash(&self, checks: &mut Checks) -> Result<()> {
        let pid = self.systemd.pid();
        let mut sitter = Sitter::start_in(pid, "/ind/one/one")?;
        let mut walk = Command::new("nsenter");
        walk.args(["--mount", "--pid", "--target", &pid.to_string(), "bash", "-c", &format!(
            "for n in {{1..{KEYS}}}; do [ \"$(cat /ind/k$n/k$n)\" = k$n ] || echo k$n failed; sleep 0.01; done; echo done"
        )]);
        let walk = Process::start(walk.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        for _ in 0..3 {
            let old = self.main_pid("autofs-cr")?;
            run_ok(LIMIT, "kill", &["-9", &old.to_string()])?;
            let another = || self.main_pid("autofs-cr").is_ok_and(|new| new != old);
            anyhow::ensure!(
                wait_until(|| another() && self.is_active("autofs-cr")),
                "it was not started again"
            );
        }
        checks.equal("no lookup of a key failed over three crashes", walk.finish(LIMIT)?.trim(), "done");
        checks.that("and the program inside went on", sitter.goes_on());
        Ok(())
    }

    fn beside_automount(&self, checks: &mut Checks) -> Result<()> {
        checks.step("Debian's autofs starts", self.systemctl(&["start", "autofs"]).map(drop));
        checks.that("which stops the engine", !self.is_active("autofs-cr") && self.is_active("autofs"));
        checks.equal("and serves", self.read("two").trim(), "two");
        checks.step("the engine starts", self.systemctl(&["start", "autofs-cr"]).map(drop));
        checks.that("which stops Debian's autofs", self.is_active("autofs-cr") && !self.is_active("autofs"));
        checks.equal("and serves", self.read("two").trim(), "two");
        Ok(())
    }

    fn dump_and_restore(&self, checks: &mut Checks) -> Result<()> {
        let device = self.device();
        self.systemctl(&["start", "autofs-cr-dump"])?;
        self.systemctl(&["stop", "autofs-cr-dump"])?;
        let show = self.systemd.enter(&["autofs-cr", "show", CHECKPOINT])?;
        checks.that("the dump at the end has the mount, and none of systemd's own", {
            show.contains("\n/ind ") && !show.contains("binfmt_misc")
        });
        self.systemctl(&["stop", "autofs-cr"])?;
        checks.equal("the engine has left nothing", self.device(), None);
        checks
            .step("the restore's service starts", self.systemctl(&["start", "autofs-cr-restore"]).map(drop));
        checks.that("there is a device number", device.is_some());
        checks.equal("same device number", self.device(), device);
        checks.equal("served", self.read("three").trim(), "three");
        self.systemctl(&["stop", "autofs-cr-restore"])?;
        Ok(())
    }
}

/// What the kernel says that a process may.
#[derive(Debug, PartialEq)]
struct Privileges {
    effective: u64,
    permitted: u64,
    bounding: u64,
    no_new: bool,
}

impl Privileges {
    fn of(pid: i32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("no {name} in the status of {pid}"))
        };
        let set = |name| -> Result<u64> { Ok(u64::from_str_radix(field(name)?, 16)?) };
        Ok(Self {
            effective: set("CapEff:")?,
            permitted: set("CapPrm:")?,
            bounding: set("CapBnd:")?,
            no_new: field("NoNewPrivs:")? == "1",
        })
    }
}
