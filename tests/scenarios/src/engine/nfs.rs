//! Real NFS and SMB, in a virtual machine: a laboratory's kernel may have neither clients nor servers. The server of NFS lives in a
//! network namespace of its own, as both automounters bind what is exported by their own host. What real automount mounts from
//! these maps is what our engine mounts.

use super::Daemon;
use crate::check::{Checks, wait_until};
use crate::cli;
use crate::files::export_all;
use crate::peers::{Automount, is_autofs};
use crate::process::{Process, run, run_ok};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(100);
/// Of a server that refuses or is silent: far below the two minutes that mount.nfs would go on.
const SOON: Duration = Duration::from_secs(60);
const POINTS: [&str; 3] = ["/nfs", "/net", "/direct/nfs"];
const NAMES: [&str; 10] =
    ["v3", "v4", "v41", "typed", "plain", "replica", "weighted", "multi", "sub", "direct"];
const IMAGES: &str = "/tmp/nfs-images";

const MASTER: &str = "/nfs /etc/auto.nfs --timeout=600\n/net -hosts --timeout=600\n/- /etc/auto.nfs-direct\n";
const DIRECT: &str = "/direct/nfs -fstype=nfs,vers=4.2 10.1.0.2:/srv/data/direct\n";
/// Nobody has 10.1.0.9.
const MAP: &str = "\
v3 -fstype=nfs,vers=3,nolock 10.1.0.2:/srv/data/v3
v4 -fstype=nfs,vers=4.2,noatime 10.1.0.2:/srv/data/v4
v41 -vers=4.1,ro,nosuid 10.1.0.2:/srv/data/v41
typed -fstype=nfs4 10.1.0.2:/srv/data/typed
plain 10.1.0.2:/srv/data/plain
replica -ro,vers=3,nolock 10.1.0.9,10.1.0.2:/srv/data/replica
weighted -ro,vers=4.2 10.1.0.9(1),10.1.0.2(5):/srv/data/weighted
multi -vers=4.2 / 10.1.0.2:/srv/data/multi /below 10.1.0.2:/srv/data/sub
gone -vers=4.2 10.1.0.2:/srv/data/gone
late -vers=3,nolock 10.1.0.2:/srv/data/v4
local :/srv/data/v3
smb -fstype=cifs,guest,ro ://127.0.0.1/data
";

/// What is read, and what is not there.
const FILES: [&str; 13] = [
    "/nfs/v3/v3",
    "/nfs/v4/v4",
    "/nfs/v41/v41",
    "/nfs/typed/typed",
    "/nfs/plain/plain",
    "/nfs/replica/replica",
    "/nfs/weighted/weighted",
    "/nfs/multi/multi",
    "/nfs/multi/below/sub",
    "/net/10.1.0.2/srv/data/v3/v3",
    "/direct/nfs/direct",
    "/nfs/local/v3",
    "/nfs/smb/v3/v3",
];
const NOT_THERE: [&str; 3] = ["/nfs/gone/gone", "/nfs/none/none", "/net/10.1.0.9/srv"];

pub fn run_scenario(checks: &mut Checks) -> Result<()> {
    fs::create_dir_all("/srv/data/multi/below")?;
    let _server = Server::start(&NAMES)?;
    let _smb = smb()?;
    for (file, text) in [("auto.master", MASTER), ("auto.nfs", MAP), ("auto.nfs-direct", DIRECT)] {
        fs::write(format!("/etc/{file}"), text)?;
    }
    let theirs = {
        let mut automount = Automount::start(&POINTS)?;
        let seen = visit("automount")?;
        automount.signal(Signal::SIGTERM)?;
        ensure!(wait_until(|| automount.ended()), "automount does not end");
        seen
    };
    let mut engine = Daemon::start(&[], &POINTS)?;
    let ours = visit("autofs-cr")?;
    for file in FILES {
        checks.that(&format!("{file} is read"), ours.read.get(file) == Some(&true));
    }
    for file in NOT_THERE {
        checks.that(&format!("{file} is not there"), ours.read.get(file) == Some(&false));
    }
    checks.equal("real automount reads the same", &ours.read, &theirs.read);
    checks.equal(
        "and mounts at the same places",
        ours.mounts.keys().collect::<Vec<_>>(),
        theirs.mounts.keys().collect(),
    );
    for (path, mount) in &theirs.mounts {
        checks.equal(&format!("{path}: type, source and options"), ours.mounts.get(path), Some(mount));
    }
    refuses(checks)?;
    lives_on(checks, &mut engine)
}

/// A server that is not there for a while holds nobody else up.
fn refuses(checks: &mut Checks) -> Result<()> {
    in_server("rpc.nfsd 0")?;
    let begin = Instant::now();
    let late =
        Process::start(Command::new("cat").arg("/nfs/late/v4").stdout(Stdio::null()).stderr(Stdio::null()))?;
    let mut late = late;
    checks.that("no server: another key", reads("/nfs/local/v3"));
    while !late.ended() && begin.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(50));
    }
    checks.that(&format!("no server: its key fails soon ({:.0?})", begin.elapsed()), late.ended());
    in_server(START)?;
    checks.soon("it is back: its key is mounted", || reads("/nfs/late/v4"));
    checks.that("and what was mounted goes on", reads("/nfs/v3/v3"));
    Ok(())
}

/// NFS mounts outlive their master, and come back from an image.
fn lives_on(checks: &mut Checks, engine: &mut Daemon) -> Result<()> {
    let before = remote_mounts()?;
    cli::ok(&["dump", "-D", IMAGES])?;
    engine.kill9()?;
    cli::ok(&["restore", "-D", IMAGES, "--serve"])?;
    checks.equal("kill -9 and restore: the same mounts", remote_mounts()?, before.clone());
    checks.that("that are read", FILES.into_iter().all(reads));

    let serving = || -> Result<i32> {
        let mounts = cli::list()?;
        let master = &cli::mount_at(&mounts, "/nfs").context("no /nfs")?["master"]["process"]["pid"];
        Ok(i32::try_from(master.as_i64().context("no master")?)?)
    };
    Process::signal_pid(serving()?, Signal::SIGTERM)?;
    checks.soon("an end takes all of them away", || !POINTS.into_iter().any(is_autofs));
    checks.that("none is left", remote_mounts()?.is_empty());
    cli::ok(&["restore", "-D", IMAGES, "--serve", "--remount-active"])?;
    checks.equal("restore --remount-active: the same mounts", remote_mounts()?, before);
    checks.that("that are read again", FILES.into_iter().all(reads));
    Process::signal_pid(serving()?, Signal::SIGTERM)?;
    checks.soon("the end", || !POINTS.into_iter().any(is_autofs));
    Ok(())
}

/// What was seen after all visits.
struct Seen {
    read: BTreeMap<&'static str, bool>,
    /// Of each mount point: type, source and options.
    mounts: BTreeMap<String, String>,
}

fn visit(who: &str) -> Result<Seen> {
    let mut read = BTreeMap::new();
    for file in FILES.into_iter().chain(NOT_THERE) {
        let begin = Instant::now();
        read.insert(file, reads(file));
        println!("  {who}: {file} in {:.1?}", begin.elapsed());
    }
    Ok(Seen { read, mounts: remote_mounts()? })
}

fn reads(file: &str) -> bool {
    let read = run(LIMIT, "cat", &[file]);
    read.is_ok_and(|output| {
        file.ends_with(String::from_utf8_lossy(&output.stdout).trim()) && output.status.success()
    })
}

/// Type, source and options of what is mounted from a server, by place.
fn remote_mounts() -> Result<BTreeMap<String, String>> {
    let mut mounts = BTreeMap::new();
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let (left, right) = line.split_once(" - ").context("a line without a dash")?;
        let left: Vec<&str> = left.split(' ').collect();
        if let [_, _, _, _, path, own, ..] = left[..]
            && ["nfs", "cifs"].into_iter().any(|fstype| right.starts_with(fstype))
        {
            mounts.insert(path.to_owned(), format!("{own} {right}"));
        }
    }
    Ok(mounts)
}

/// What maps of another host's automounter mount from the server.
pub const SOURCE: &str = "-fstype=nfs,vers=4.2 10.1.0.2:/srv/data";

/// Let other hosts reach the server by way of this one.
pub fn route() -> Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    run_ok(LIMIT, "ip", &["-n", "server", "route", "replace", "default", "via", "10.1.0.1"]).map(drop)
}

/// The kernel's own server of SMB. It listens where this host does.
fn smb() -> Result<Process> {
    fs::create_dir_all("/etc/ksmbd")?;
    fs::write(
        "/etc/ksmbd/ksmbd.conf",
        "[global]\nmap to guest = Bad User\n[data]\npath = /srv/data\nread only = yes\nguest ok = yes\n",
    )?;
    run_ok(LIMIT, "modprobe", &["-a", "cifs", "ksmbd"])?;
    let server = Process::start(Command::new("ksmbd.mountd").arg("--nodetach").stdin(Stdio::null()))?;
    ensure!(wait_until(|| TcpStream::connect("127.0.0.1:445").is_ok()), "ksmbd does not listen");
    Ok(server)
}

/// nfsd, mountd and rpcbind in a network namespace.
pub struct Server;

/// The shortest grace period there is: nothing of version 4 is opened meanwhile.
const START: &str =
    "echo 10 >/proc/fs/nfsd/nfsv4leasetime && echo 10 >/proc/fs/nfsd/nfsv4gracetime && rpc.nfsd 4";

impl Server {
    /// With these directories.
    pub fn start(names: &[&str]) -> Result<Self> {
        export_all(names)?;
        let line = |name| format!("/srv/data/{name} *(rw,insecure,no_root_squash,no_subtree_check)\n");
        fs::write("/etc/exports", names.iter().map(line).collect::<String>())?;
        run_ok(LIMIT, "modprobe", &["-a", "veth", "nfsd", "nfsv3", "nfsv4"])?;
        for command in [
            "netns add server",
            "link add client type veth peer name server netns server",
            "address add 10.1.0.1/24 dev client",
            "link set client up",
            "-n server address add 10.1.0.2/24 dev server",
            "-n server link set server up",
            "-n server link set lo up",
        ] {
            run_ok(LIMIT, "ip", &command.split(' ').collect::<Vec<_>>())?;
        }
        // A /run of its own: no rpcbind for the client. The namespace of these mounts is kept by a process.
        let server = Self;
        let prepare = "mount -t tmpfs run /run && mkdir -p /run/rpcbind && mount -t nfsd nfsd /proc/fs/nfsd; \
                       echo $$ >/tmp/server.pid; exec sleep infinity";
        let keeper = ["ip", "netns", "exec", "server", "sh", "-c", prepare];
        let mut command = Command::new("setsid");
        command
            .args(["--fork"])
            .args(keeper)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ensure!(command.status()?.success(), "the server's namespaces");
        ensure!(wait_until(|| in_server("mountpoint -q /proc/fs/nfsd").is_ok()), "no file system nfsd");
        // It is in the background before it answers.
        in_server("rpcbind && until rpcinfo >/dev/null 2>&1; do sleep 0.1; done; exportfs -a && rpc.mountd")?;
        ensure!(wait_until(|| in_server(START).is_ok()), "nfsd does not start");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = in_server("rpc.nfsd 0; kill $(cat /tmp/server.pid)");
        // Processes of the kernel's may keep the namespace for a while.
        let _ = run(LIMIT, "ip", &["link", "delete", "client"]);
        let _ = run(LIMIT, "ip", &["netns", "delete", "server"]);
    }
}

/// Run a script in the server's namespaces.
fn in_server(script: &str) -> Result<()> {
    let pid = fs::read_to_string("/tmp/server.pid").unwrap_or_default();
    run_ok(LIMIT, "nsenter", &["-t", pid.trim(), "-m", "-n", "sh", "-c", script]).map(drop)
}
