//! Hesiod: records of a real name server, and what automount makes of the same.

use super::{daemon, read};
use crate::check::{Checks, wait_until};
use crate::peers::{Automount, is_autofs};
use crate::process::Process;
use anyhow::Result;
use nix::sys::signal::Signal;
use std::fs;

/// Of the zone `ns.lab.test`.
const RECORDS: &[(&str, &str)] = &[
    ("bound.filsys", "bind /srv/data/one r /x"),
    ("near.filsys", "NFS /srv/data/one localhost r /x 2"),
    ("near.filsys", "NFS /srv/data/two localhost w /x 1"),
    ("none.filsys", "ERR there is no such locker"),
    ("link.home.automount", "type:=link;fs:=/srv/data/two"),
];

/// Keys of the map, each with a file of what is mounted there.
const PATHS: [&str; 4] = ["/hes/bound/one", "/hes/near/two", "/hes/none/x", "/hes/unknown/x"];

/// The name server, and the library's configuration.
pub fn serve(checks: &mut Checks) -> Result<Process> {
    fs::write("/etc/hesiod.conf", "lhs=.ns\nrhs=.lab.test\nclasses=IN\n")?;
    let fixed = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--local=/lab.test/",
    ];
    let records: Vec<_> =
        RECORDS.iter().map(|(name, text)| format!("--txt-record={name}.ns.lab.test,{text}")).collect();
    let arguments: Vec<_> = fixed.into_iter().chain(records.iter().map(String::as_str)).collect();
    let server = daemon("dnsmasq", &arguments)?;
    let answers = || std::net::TcpStream::connect("127.0.0.1:53").is_ok();
    checks.soon("the name server comes up", answers);
    Ok(server)
}

/// What real automount finds, before the engine serves.
pub fn of_automount() -> Result<Vec<String>> {
    fs::write("/etc/auto.master", "/hes hesiod:filsys\n")?;
    let mut automount = Automount::start(&["/hes"])?;
    let found = PATHS.into_iter().map(read).collect();
    automount.signal(Signal::SIGTERM)?;
    anyhow::ensure!(wait_until(|| automount.ended() && !is_autofs("/hes")), "automount does not end");
    found
}

pub fn maps(checks: &mut Checks, of_automount: &[String]) -> Result<()> {
    let found = PATHS.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    checks.equal("hesiod: as automount finds it", found.as_slice(), of_automount);
    checks.equal("a record that is bound", found[0].as_str(), "one");
    checks.equal("the record with the lowest number", found[1].as_str(), "two");
    checks.that(
        "no record, or one that is an error",
        found[2..].iter().all(|text| text.contains("No such file")),
    );
    checks.equal("hesiod in amd format", read("/amd-hes/link/two")?, "two".into());
    let elsewhere = read("/hes/bound@ns.lab.test/one")?;
    checks.that("a key does not choose the domain", elsewhere.contains("No such file"));
    Ok(())
}
