//! Maps from everywhere: exports of hosts, LDAP, SSSD, NIS, hesiod, the name service switch; and all of them down.

mod down;
mod hesiod;
mod ldap;

use super::Daemon;
use crate::check::{Checks, wait_until};
use crate::cli;
use crate::files::{export_all, script};
use crate::peers::is_autofs;
use crate::process::{Process, run, run_ok};
use crate::programs::{Sitter, read_file};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = crate::check::HANG_LIMIT;

/// Limits of the engine's, short so that the test is.
const CONF: &str = "[ autofs ]\ntimeout = 600\nbrowse_mode = no\nnegative_timeout = 1\nprogram_wait = 8\n\
                    ldap_timeout = 8\nldap_network_timeout = 8\n";

const MASTER: &str = "/net -hosts\n/bis ldap:auto.bis\n/own ldap:auto.own\n/nis ldap:auto.nis\n\
                      /tls ldaps:lab:automountMapName=auto.bis,dc=example,dc=com\n/sss sss:auto.bis\n\
                      /yp yp:auto.yp\n/hes hesiod:filsys\n/amd-hes hesiod,amd:hesiod.home\n/stuck program:/etc/auto.stuck\n/file file:/etc/auto.file\n\
                      +auto.master\n";

const POINTS: &[&str] = &[
    "/net",
    "/bis",
    "/own",
    "/nis",
    "/tls",
    "/sss",
    "/yp",
    "/hes",
    "/amd-hes",
    "/stuck",
    "/file",
    "/from/ldap",
    "/browsed",
    "/direct/ldap",
];

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    export_all(&["one", "two"])?;
    let mut rpc = rpc()?;
    let _kdc = ldap::realm()?;
    let mut slapd = ldap::start()?;
    let _sssd = sssd(checks)?;
    let _nis = nis(checks)?;
    let _names = hesiod::serve(checks)?;
    fs::write("/etc/autofs.conf", CONF)?;
    let hesiod_of_automount = hesiod::of_automount()?;
    fs::write("/etc/auto.master", MASTER)?;
    fs::write("/etc/auto.file", "* :/srv/data/&\n")?;
    script("/etc/auto.stuck", "#!/bin/sh\ncase $1 in fine) echo :/srv/data/one;; *) sleep 600;; esac\n")?;
    fs::write("/etc/nsswitch.conf", "passwd: files\nhosts: files\nautomount: files ldap\n")?;

    let mut engine = Daemon::start(&[], POINTS)?;
    hosts(checks, &engine)?;
    ldap::maps(checks)?;
    ldap::changes(checks, &engine)?;
    for path in ["/sss/a/one", "/yp/x/two"] {
        let want = path.rsplit('/').next().unwrap_or_default();
        checks.equal(path, read(path)?, want.into());
    }
    checks.equal("the wildcard of SSSD", read("/sss/two/two")?, "two".into());
    hesiod::maps(checks, &hesiod_of_automount)?;
    ldap::logins(checks)?;
    switch(checks)?;
    down::stuck_program(checks)?;
    down::frozen_mountd(checks, &mut rpc)?;
    down::slapd(checks, &engine, &mut slapd)?;
    engine.signal(Signal::SIGUSR1)?;
    checks.that("the engine ends", engine.stop()?);
    checks.that("nothing is left", !POINTS.iter().any(|path| is_autofs(path)));
    Ok(())
}

/// A file in a mount, or why there is none.
fn read(path: &str) -> Result<String> {
    Ok(read_file(path).unwrap_or_else(|error| error.to_string()))
}

/// A daemon of the laboratory in the foreground, its output in a log.
fn daemon(program: &str, arguments: &[&str]) -> Result<Process> {
    fs::create_dir_all("/tmp/logs")?;
    let name = Path::new(program).file_name().context("no name")?.to_string_lossy().into_owned();
    let log = fs::File::create(format!("/tmp/logs/{name}.log"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    Process::start(&mut command)
}

/// `command` succeeds within the usual limit.
fn comes_up(checks: &mut Checks, what: &str, command: &str, arguments: &[&str]) {
    let up = || run(LIMIT, command, arguments).is_ok_and(|output| output.status.success());
    checks.soon(what, up);
}

/// The daemons that say what this host exports.
struct Rpc {
    mountd: Process,
    _rpcbind: Process,
}

fn rpc() -> Result<Rpc> {
    fs::create_dir_all("/run/rpc_pipefs")?;
    fs::write("/var/lib/nfs/rmtab", "")?;
    exports("/srv/data/one *(ro,fsid=1)\n/srv/data/two 127.0.0.1(rw,fsid=2)\n")?;
    let rpcbind = daemon("rpcbind", &["-f", "-w"])?;
    let registered = |program: &str| {
        run(LIMIT, "rpcinfo", &["-t", "127.0.0.1", program]).is_ok_and(|o| o.status.success())
    };
    anyhow::ensure!(wait_until(|| registered("portmapper")), "rpcbind did not come up");
    let mountd = daemon("rpc.mountd", &["--foreground"])?;
    anyhow::ensure!(wait_until(|| registered("mountd")), "rpc.mountd did not come up");
    Ok(Rpc { mountd, _rpcbind: rpcbind })
}

fn exports(text: &str) -> Result<()> {
    fs::write("/etc/exports", text)?;
    run_ok(LIMIT, "exportfs", &["-ra"]).map(drop)
}

fn hosts(checks: &mut Checks, engine: &Daemon) -> Result<()> {
    checks.equal("an export of a host", read("/net/localhost/srv/data/one/one")?, "one".into());
    checks.equal("another one", read("/net/localhost/srv/data/two/two")?, "two".into());
    checks.equal("a host by its IPv6 address", read("/net/::1/srv/data/two/two")?, "two".into());
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let line = table
        .lines()
        .find(|line| line.contains(" /net/localhost/srv/data/two ") && !line.contains(" autofs "));
    checks.that(
        "without set-uid programs and devices",
        line.is_some_and(|line| line.contains("nosuid") && line.contains("nodev")),
    );
    let unknown = read("/net/no-such-host.invalid/x")?;
    checks.that("a host that is not there", unknown.contains("No such file"));
    fs::write("/etc/auto.explained", "/amd file,amd:/etc/amd.host\n")?;
    fs::write("/etc/amd.host", "all type:=host;rhost:=localhost\n")?;
    let told = explain("/amd/all/srv/data/two")?;
    checks.that(&format!("amd's type host: what it exports ({told})"), told.ends_with("/srv/data/two"));
    exports("/srv/data/one *(ro,fsid=1)\n")?;
    let listed =
        fs::read_dir("/net/lab/srv/data")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    checks.equal("what a host exports now", listed.collect::<Vec<_>>(), vec!["one".into()]);
    let _inside = Sitter::start("/net/lab/srv/data/one/one")?;
    let two = || read("/net/lab/srv/data/two/two").is_ok_and(|text| text == "two");
    for (exported, what) in [
        (
            "/srv/data/one *(ro,fsid=1)\n/srv/data/two *(ro,fsid=2)\n",
            "and a moment later, of a host that is mounted",
        ),
        ("/srv/data/one *(ro,fsid=1)\n", "until it does not export it any more"),
    ] {
        exports(exported)?;
        engine.signal(Signal::SIGHUP)?;
        checks.soon(what, || two() == exported.contains("two"));
        cli::ok(&["ctl", "expire", "/net"])?;
    }
    Ok(())
}

/// SSSD with the LDAP server behind it.
fn sssd(checks: &mut Checks) -> Result<Process> {
    use std::os::unix::fs::PermissionsExt;
    let path = "/etc/sssd/sssd.conf";
    fs::write(
        path,
        "[sssd]\nservices = autofs\ndomains = lab\n[autofs]\n[domain/lab]\nid_provider = ldap\n\
         auth_provider = none\naccess_provider = permit\nautofs_provider = ldap\n\
         ldap_uri = ldap://127.0.0.1\nldap_search_base = dc=example,dc=com\nldap_schema = rfc2307bis\n",
    )?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let sssd = daemon("sssd", &["--interactive", "--logger=stderr"])?;
    checks.soon("sssd comes up", || Path::new("/var/lib/sss/pipes/autofs").exists());
    Ok(sssd)
}

/// NIS on the loopback network.
fn nis(checks: &mut Checks) -> Result<[Process; 2]> {
    run_ok(LIMIT, "domainname", &["lab.nis"])?;
    fs::create_dir_all("/var/yp/lab.nis")?;
    for (map, text) in [("ypservers", "lab lab\n"), ("auto_yp", "x :/srv/data/two\n* :/srv/data/&\n")] {
        fs::write("/tmp/map", text)?;
        run_ok(LIMIT, "/usr/lib/yp/makedbm", &["/tmp/map", &format!("/var/yp/lab.nis/{map}")])?;
    }
    fs::write("/etc/yp.conf", "domain lab.nis server 127.0.0.1\n")?;
    let ypserv = daemon("ypserv", &["--foreground"])?;
    let ypbind = daemon("ypbind", &["-foreground", "-no-ping"])?;
    comes_up(checks, "NIS comes up", "ypcat", &["auto_yp"]);
    Ok([ypserv, ypbind])
}

/// What `autofs-cr explain` says a path is: the sources, or the error.
fn explain(path: &str) -> Result<String> {
    let output = run(LIMIT, "autofs-cr", &["explain", "--json", "--master", "/etc/auto.explained", path])?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = Vec::new();
    for line in lines.lines() {
        let mount: serde_json::Value = serde_json::from_str(line)?;
        let text = mount["source"].as_str().or(mount["error"].as_str());
        found.push(text.with_context(|| format!("explain printed {line}"))?.to_owned());
    }
    Ok(found.join(" "))
}

/// Which service is asked, and when no other is.
fn switch(checks: &mut Checks) -> Result<()> {
    fs::write("/etc/auto.explained", "/m auto.bis\n")?;
    fs::write("/etc/auto.bis", "two :/from/a/file\n")?;
    for (line, one, two) in [
        ("files", "no key", "/from/a/file"),
        ("files ldap", "/srv/data/one", "/from/a/file"),
        ("ldap files", "/srv/data/one", "/srv/data/two"),
        ("sss files", "/srv/data/one", "/srv/data/two"),
        ("files [NOTFOUND=return] ldap", "no key", "/from/a/file"),
        ("nis files", "no key", "/from/a/file"),
        ("hesiod files", "no key", "/from/a/file"),
        ("nis [UNAVAIL=return NOTFOUND=return] files", "no ", "no "),
    ] {
        fs::write("/etc/nsswitch.conf", format!("automount: {line}\n"))?;
        let (first, second) = (explain("/m/one")?, explain("/m/two")?);
        checks.that(
            &format!("automount: {line} ({first}, {second})"),
            first.contains(one) && second.contains(two),
        );
    }
    fs::remove_file("/etc/auto.bis")?;
    fs::write("/etc/nsswitch.conf", "passwd: files\nhosts: files\nautomount: files ldap\n")?;
    Ok(())
}
