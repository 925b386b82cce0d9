//! A host with real automount is dumped at shutdown, and its mounts are restored at boot: by the package's services, in a
//! virtual machine that boots four times: by its firmware, by kexec, and after a power cut. In the last boot something else
//! has all device numbers: nothing keeps a number over a reboot, so a restore takes others, and says so.

use super::{TRIGGERS, write_maps};
use crate::check::{Checks, wait_until};
use crate::cli;
use crate::machine::{install_package, patient};
use crate::peers::{is_autofs, is_mounted};
use crate::process::run_ok;
use crate::programs::read_file;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(200);
/// What the next boot must know.
const STATE: &str = "/var/lib/scenario-reboot.json";
const BOOTS: usize = 4;
const KEYS: [&str; 4] = ["/direct/one/one", "/direct/tree/sub1/sub1", "/ind/k0/k0", "/ind/multi/x/x"];

/// Mounts before the restore what takes the numbers of all mounts.
const TAKER: &str = "/etc/systemd/system/taker.service";
const TAKER_UNIT: &str = "[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for n in $(seq 80); do mkdir -p /run/taken/$n && mount -t tmpfs taken /run/taken/$n; done'
[Unit]
Before=autofs-cr-restore.service
[Install]
RequiredBy=autofs-cr-restore.service
";

/// One boot of it; the last one ends it.
pub fn run(checks: &mut Checks) -> Result<()> {
    let Ok(text) = fs::read_to_string(STATE) else { return first_boot(checks) };
    let state: Value = serde_json::from_str(&text)?;
    let count = |name: &str| state[name].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    (checks.passed, checks.failed) = (count("passed"), count("failed"));
    let boot = count("boot") + 1;
    checks.that(&format!("boot {boot} of {BOOTS}"), state["boot_id"] != json!(boot_id()?));
    if boot == 3 {
        // 0xd: the loader that kexec names to the kernel.
        let loader: u32 = fs::read_to_string("/proc/sys/kernel/bootloader_type")?.trim().parse()?;
        checks.equal("it was kexec", loader >> 4, 0xd);
    }
    mounts_are_back(checks, &state["mounts"], boot == BOOTS)?;
    match boot {
        2 => {
            write_state(checks, boot, &state["mounts"])?;
            println!("  kexec");
            run_ok(LIMIT, "kexec", &["--load", "/boot/vmlinuz", "--reuse-cmdline"])?;
            run_ok(LIMIT, "systemctl", &["kexec"])?;
            wait_for_the_end()
        }
        3 => {
            fs::write(TAKER, TAKER_UNIT)?;
            run_ok(LIMIT, "systemctl", &["enable", "taker"])?;
            write_state(checks, boot, &state["mounts"])?;
            println!("  power cut");
            run_ok(LIMIT, "sync", &[])?;
            fs::write("/proc/sysrq-trigger", "b")?;
            wait_for_the_end()
        }
        _ => Ok(()),
    }
}

fn first_boot(checks: &mut Checks) -> Result<()> {
    install_package()?;
    write_maps()?;
    run_ok(LIMIT, "systemctl", &["start", "autofs"])?;
    checks.that("real automount serves", wait_until(|| TRIGGERS.iter().all(|path| is_autofs(path))));
    for key in KEYS {
        checks.that(key, key.ends_with(&read_file(key)?));
    }
    let mounts = automounts()?;
    run_ok(LIMIT, "systemctl", &["disable", "autofs"])?;
    run_ok(LIMIT, "systemctl", &["enable", "--now", "autofs-cr-dump"])?;
    run_ok(LIMIT, "systemctl", &["enable", "autofs-cr-restore"])?;
    write_state(checks, 1, &json!(mounts))?;
    println!("  {} autofs mounts; reboot", mounts.len());
    run_ok(LIMIT, "systemctl", &["reboot"])?;
    wait_for_the_end()
}

fn mounts_are_back(checks: &mut Checks, before: &Value, taken: bool) -> Result<()> {
    let now = automounts()?;
    let told = run_ok(LIMIT, "journalctl", &["--boot", "--unit=autofs-cr-restore", "--output=cat"])?;
    for old in before.as_array().context("no mounts in the state")? {
        let path = old["path"].as_str().unwrap_or_default();
        let Some(new) = cli::mount_at(&now, path) else {
            checks.fail(path, "it is not there");
            continue;
        };
        checks.equal(&format!("{path} is as it was"), lasting(new), lasting(old));
        checks.equal("served by the engine", &new["master"]["program"], &json!("autofs-cr"));
        let (has, had) = (number(new), number(old));
        let other = format!("number {has} instead of {had}, which ");
        checks.that(
            &format!("its number {has} is the old one, or the journal tells what has {had}"),
            (has == had && !taken) || told.contains(&other),
        );
    }
    for key in KEYS.into_iter().chain(["/direct/two/two", "/ind/k1/k1", "/ind/multi/y/y", "/short/idle/idle"])
    {
        let text = read_file(key);
        checks.that(&format!("{key} is served"), text.is_ok_and(|text| key.ends_with(&text)));
    }
    checks.soon("an idle mount expires", || !is_mounted("/short/idle"));
    checks.step("autofs-cr check finds nothing wrong", cli::ok(&["check"]).map(drop));
    Ok(())
}

/// What a mount keeps over a reboot. Numbers of peer groups are the kernel's.
fn lasting(mount: &Value) -> Value {
    let mut lasting = json!({"shared": mount["propagation"]["shared"].is_number()});
    for field in ["source", "mount_flags"] {
        lasting[field] = mount[field].clone();
    }
    for field in ["mount_type", "timeout", "strict_expire", "ignore", "min_proto", "max_proto"] {
        lasting[field] = mount["options"][field].clone();
    }
    lasting
}

fn number(mount: &Value) -> String {
    format!("{}:{}", mount["dev"]["major"], mount["dev"]["minor"])
}

/// The autofs mounts that are not systemd's; without the offsets that lie in a mounted root, which come back with it.
fn automounts() -> Result<Vec<Value>> {
    let mut mounts = cli::list()?;
    mounts.retain(|mount| {
        let in_root = mount["path"].as_str().is_some_and(|path| path.starts_with("/direct/tree/"));
        mount["master"]["program"] != "systemd" && !in_root
    });
    Ok(mounts)
}

fn boot_id() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn write_state(checks: &Checks, boot: usize, mounts: &Value) -> Result<()> {
    let Checks { passed, failed, .. } = checks;
    let state =
        json!({"boot": boot, "boot_id": boot_id()?, "passed": passed, "failed": failed, "mounts": mounts});
    Ok(fs::write(STATE, state.to_string())?)
}

fn wait_for_the_end() -> Result<()> {
    std::thread::sleep(patient(LIMIT));
    bail!("the machine goes on")
}
