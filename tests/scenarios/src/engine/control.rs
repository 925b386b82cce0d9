//! A running engine is asked and told what to do, and tells the journal what it does.

use super::{Daemon, LOG};
use crate::check::{Checks, HANG_LIMIT, wait_until};
use crate::cli;
use crate::files::{export, export_all, slow_map};
use crate::peers::{is_autofs, is_mounted};
use crate::process::{Process, run};
use crate::programs::{Sitter, read_file};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

const METRICS: &str = "127.0.0.1:9300";
const SCANNED: usize = 20;
fn write_maps() -> Result<()> {
    let scanned: Vec<String> = (0..SCANNED).map(|n| format!("k{n}")).collect();
    scanned.iter().try_for_each(|name| export(name))?;
    export_all(&["one", "two", "busy", "quiet"])?;
    fs::write(
        "/etc/auto.master",
        "/- /etc/auto.direct\n/ind /etc/auto.ind\n/other /etc/auto.ind\n/slow /etc/auto.slow\n",
    )?;
    fs::write("/etc/auto.direct", "/direct/one :/srv/data/one\n")?;
    fs::write("/etc/auto.ind", "* :/srv/data/&\n")?;
    slow_map()
}

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    write_maps()?;
    let mut daemon = Daemon::start(&["--metrics", METRICS], &["/direct/one", "/ind", "/other", "/slow"])?;
    let status = cli::json(&["ctl", "status"])?;
    let maps = status["status"]["maps"].as_array().context("no maps")?;
    let points: Vec<_> = maps.iter().filter_map(|map| map["point"].as_str()).collect();
    checks.equal("status tells the maps", points, vec!["/-", "/ind", "/other", "/slow"]);
    who(checks)?;
    reload_and_expire(checks)?;
    what_hangs(checks)?;
    levels(checks)?;
    metrics(checks)?;
    let other =
        run(HANG_LIMIT, "setpriv", &["--reuid=65534", "--clear-groups", "autofs-cr", "ctl", "status"])?;
    checks.that("nobody but root is answered", !other.status.success());
    checks.that("it ends when it is told to", daemon.stop()?);
    let left = fs::read_dir("/run/autofs-cr")?.count();
    checks.equal("no socket is left", left, 0);
    journal(checks)
}

/// A scanner is found, and who keeps a mount.
fn who(checks: &mut Checks) -> Result<()> {
    fs::copy("/bin/cat", "/tmp/scanner")?;
    let files: Vec<String> = (0..SCANNED).map(|n| format!("/ind/k{n}/k{n}")).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    anyhow::ensure!(run(HANG_LIMIT, "/tmp/scanner", &files)?.status.success(), "the scanner failed");
    let sitter = Sitter::start("/ind/busy/busy")?;
    let who = cli::json(&["ctl", "who"])?;
    let first = &who["programs"][0];
    let told =
        (first["comm"].as_str(), first["lookups"].as_u64(), first["triggers"].as_array().map(Vec::len));
    checks.equal("who tells of the scanner", told, (Some("scanner"), Some(SCANNED as u64), Some(SCANNED)));
    let command = first["command"].as_str().unwrap_or_default();
    checks.that("with its command line", command.starts_with("/tmp/scanner /ind/k0/k0 "));
    let keeps = |kept: &Value| {
        let users = kept["programs"].as_array()?;
        let user = users.iter().find(|user| user["pid"] == sitter.pid())?;
        Some(user["uses"].as_array()?.iter().map(|used| used["how"].clone()).collect::<Vec<_>>())
    };
    let kept = who["kept"].as_array().context("nothing is kept")?;
    let busy = kept.iter().find(|kept| kept["path"] == "/ind/busy").context("/ind/busy is not kept")?;
    let uses = keeps(busy).unwrap_or_default();
    checks.that("who tells who keeps a mount", uses.contains(&"cwd".into()));
    let used = cli::json(&["busy", "/ind/busy", "/ind/k0", "/ind"])?;
    let uses = keeps(&used[0]).unwrap_or_default();
    checks.that("busy tells of its directory and its file", uses.len() == 2 && uses[1]["fd"].is_u64());
    checks.equal("and of nobody elsewhere", used[1]["programs"].as_array().map(Vec::len), Some(0));
    let text = cli::ok(&["busy", "/ind/k0", "/ind/none"])?;
    let expected = "/ind/k0: not used\n/ind/none: not used (nothing is mounted there: is the path right?)\n";
    checks.equal("busy says so", text.as_str(), expected);
    checks.that("and triggers nothing", !is_mounted("/ind/none"));
    Ok(())
}

fn reload_and_expire(checks: &mut Checks) -> Result<()> {
    let mut sitter = Sitter::start("/ind/busy/busy")?;
    fs::write("/etc/auto.direct", "/direct/two :/srv/data/two\n")?;
    cli::ok(&["ctl", "reload"])?;
    checks.that(
        "after a reload the triggers are as the map",
        is_autofs("/direct/two") && !is_autofs("/direct/one"),
    );
    read_file("/direct/two/two")?;
    read_file("/other/quiet/quiet")?;
    cli::ok(&["ctl", "expire", "/other"])?;
    checks.that(
        "one map expires",
        !is_mounted("/other/quiet") && is_mounted("/direct/two") && is_mounted("/ind/k0"),
    );
    cli::ok(&["ctl", "expire"])?;
    checks.that("all that is idle expires", !is_mounted("/direct/two") && !is_mounted("/ind/k0"));
    checks.that("what is busy stays", is_mounted("/ind/busy") && sitter.goes_on());
    Ok(())
}

fn what_hangs(checks: &mut Checks) -> Result<()> {
    fs::write("/tmp/slow", "")?;
    let visitor = Process::start(
        Command::new("cat").arg("/slow/quiet/quiet").stdin(Stdio::null()).stdout(Stdio::piped()),
    )?;
    let hangs = || {
        let status = cli::json(&["ctl", "status"]).unwrap_or_default();
        status["status"]["jobs"]
            .as_array()
            .is_some_and(|jobs| jobs.iter().any(|job| job["path"] == "/slow/quiet"))
    };
    checks.that("status tells what hangs", wait_until(hangs));
    fs::remove_file("/tmp/slow")?;
    checks.equal("and it goes on", visitor.finish(HANG_LIMIT)?.trim(), "quiet");
    Ok(())
}

fn levels(checks: &mut Checks) -> Result<()> {
    let told = || fs::read_to_string(LOG).unwrap_or_default();
    read_file("/ind/k1/k1")?;
    checks.that("nothing is told of single mounts", !told().contains("/ind/k1"));
    let levels = cli::json(&["ctl", "log", "info", "--mount", "/ind"])?;
    checks.equal("a mount has its level", levels["log"]["mounts"][0]["level"].as_str(), Some("info"));
    read_file("/ind/k2/k2")?;
    read_file("/other/k3/k3")?;
    checks.soon("then it is told of that one", || told().contains("/ind/k2 mounted"));
    checks.that("and of no other", !told().contains("/other/k3"));
    cli::ok(&["ctl", "log", "default", "--mount", "/ind"])?;
    read_file("/ind/k4/k4")?;
    checks.that("until it is over", !told().contains("/ind/k4"));
    Ok(())
}

fn metrics(checks: &mut Checks) -> Result<()> {
    let mut stream = TcpStream::connect(METRICS)?;
    stream.set_read_timeout(Some(HANG_LIMIT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(-1.0)
    };
    let lookups = SCANNED as f64;
    checks.that("lookups are counted", value("autofs_cr_requests_total{result=\"ok\"}") > lookups);
    checks.that("with their times", value("autofs_cr_requests_duration_seconds_count") > lookups);
    checks.that("and unmounts", value("autofs_cr_unmounts_total{result=\"ok\"}") > lookups);
    checks.equal("and mounts", value("autofs_cr_mounts "), 4.0);
    let own = cli::ok(&["ctl", "metrics"])?;
    checks.that("ctl tells the same", own.contains("# TYPE autofs_cr_requests_total counter"));
    Ok(())
}

/// A journal that is a socket of ours: what arrives are the fields.
fn journal(checks: &mut Checks) -> Result<()> {
    fs::create_dir_all("/run/systemd/journal")?;
    let socket = UnixDatagram::bind("/run/systemd/journal/socket")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    // systemd gives a service's stderr by its numbers.
    let log = fs::OpenOptions::new().create(true).append(true).open("/tmp/logs/journal.log")?;
    let meta = log.metadata()?;
    let engine = Process::start(
        Command::new("autofs-cr")
            .args(["automount", "-v"])
            .env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log),
    )?;
    anyhow::ensure!(wait_until(|| is_autofs("/ind")), "no engine under a journal");
    read_file("/ind/one/one")?;
    let mut fields = String::new();
    let mut buffer = [0; 8192];
    let found = wait_until(|| {
        let Ok(got) = socket.recv(&mut buffer) else { return false };
        fields = String::from_utf8_lossy(&buffer[..got]).into_owned();
        fields.contains("/ind/one mounted")
    });
    checks.that("the journal is told of a request", found);
    for field in
        ["MOUNT", "KEY", "MAP", "REQUESTER_PID", "REQUESTER_UID", "REQUESTER_COMM", "DURATION_US", "RESULT"]
    {
        // NAME=VALUE, or NAME, a newline, the length and the value
        let has = fields.lines().any(|line| line == field || line.starts_with(&format!("{field}=")));
        checks.that(&format!("with a field {field}"), has);
    }
    checks.that("of the program's name", fields.contains("cat"));
    engine.signal(Signal::SIGTERM)?;
    checks.equal("and nothing goes to stderr", fs::read_to_string("/tmp/logs/journal.log")?.as_str(), "");
    Ok(())
}
