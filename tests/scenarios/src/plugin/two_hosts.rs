//! A container with a real automount and programs that walk its mounts moves from one virtual machine to another, with the
//! package's plugin. The job is the same on both: host 1 dumps and sends, host 2 receives and restores.

use super::container::{Container, Criu};
use super::in_flight;
use crate::check::{Checks, wait_until};
use crate::process::run_ok;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const ADDRESS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const PORT: u16 = 7000;
/// As CRIU's images are called, and where they are.
const NAME: &str = "two-hosts";
const IMAGES: &str = "/tmp/images/two-hosts";
const WALKERS: usize = 4;
const KEYS: usize = 10;

/// One of the hosts, as `HOST` says.
pub fn run(checks: &mut Checks) -> Result<()> {
    let host: usize = std::env::var("HOST")?.parse()?;
    let package = fs::read_dir("/job")?.filter_map(|file| file.ok()?.path().to_str().map(str::to_owned));
    let package = package.into_iter().find(|path| path.ends_with(".deb")).context("no package in /job")?;
    run_ok(LIMIT, "dpkg", &["--install", &package])?;
    run_ok(LIMIT, "ip", &["link", "set", "eth0", "up"])?;
    let address = ADDRESS.get(host - 1).context("there are two hosts")?;
    run_ok(LIMIT, "ip", &["address", "add", &format!("{address}/24"), "dev", "eth0"])?;
    let keys: Vec<String> = (0..KEYS).map(|number| format!("k{number}")).collect();
    super::exports(&keys.iter().map(String::as_str).collect::<Vec<_>>())?;
    super::program()?;
    // The root file system of the container is that of its host: it must be the same on both.
    fs::create_dir_all("/ind")?;
    fs::write("/etc/auto.master", "/ind /etc/auto.ind --timeout=1\n")?;
    fs::write("/etc/auto.ind", "* -fstype=bind :/srv/data/&\n")?;
    match host {
        1 => source(checks, &keys),
        _ => destination(checks),
    }
}

fn source(checks: &mut Checks, keys: &[String]) -> Result<()> {
    let container = in_flight::start(Container::start, keys, WALKERS)?;
    // The destination listens when it has booted.
    let mut there = connect()?;
    let dev = container.autofs("/ind").context("no autofs mount in the container")?.dev;
    std::thread::sleep(Duration::from_secs(2));

    let begin = Instant::now();
    let criu = Criu::as_installed(NAME)?;
    checks.step("host 1: the container is dumped", criu.dump(&container)).context(criu.log("dump"))?;
    checks.that("host 1: and has ended", wait_until(|| container.ended()));
    let dumped = begin.elapsed();
    let tar = run_tar(&["-C", IMAGES, "-cf", "-", "."])?;
    writeln!(there, "{dev} {}", tar.len())?;
    there.write_all(&tar)?;
    let mut answered = [0];
    there.read_exact(&mut answered).context("no lookup was answered on host 2")?;
    println!(
        "  {:.1?} from the dump to the first lookup on host 2; of it the dump {dumped:.1?}, {} KiB",
        begin.elapsed(),
        tar.len() / 1024
    );
    // Until it has ended, so that the network stays.
    let _ = there.read(&mut answered);
    Ok(())
}

fn destination(checks: &mut Checks) -> Result<()> {
    let (mut from, _) = TcpListener::bind((ADDRESS[1], PORT))?.accept()?;
    from.set_read_timeout(Some(4 * LIMIT))?;
    let mut head = Vec::new();
    while head.last() != Some(&b'\n') {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let (dev, length) = head.trim().split_once(' ').context("no length")?;
    let mut tar = Vec::new();
    Read::by_ref(&mut from).take(length.parse()?).read_to_end(&mut tar)?;
    let criu = Criu::as_installed(NAME)?;
    fs::write("/tmp/tar", tar)?;
    run_tar(&["-C", IMAGES, "-xf", "/tmp/tar"])?;
    let restored = checks.step("host 2: the container is restored", criu.restore());
    let container = restored.with_context(|| criu.log("restore"))?;
    container.enter(&["cat", "/ind/k0/k0"])?;
    from.write_all(b"!")?;
    let now = container.autofs("/ind").context("the autofs mount is not there")?;
    checks.equal("host 2: same st_dev", now.dev.as_str(), dev);
    for key in ["k1", "k5", "k9"] {
        checks.equal(
            &format!("host 2: {key} is served"),
            container.enter(&["cat", &format!("/ind/{key}/{key}")])?.trim(),
            key,
        );
    }
    std::thread::sleep(Duration::from_secs(2));
    let (lookups, errors) = in_flight::stop(&container, WALKERS)?;
    println!("  {lookups} lookups by {WALKERS} programs, before and after");
    checks.that("host 2: every program walked on", lookups > WALKERS);
    checks.equal("host 2: no lookup failed", errors, Vec::new());
    Ok(())
}

fn connect() -> Result<TcpStream> {
    let begin = Instant::now();
    loop {
        match TcpStream::connect_timeout(&(ADDRESS[1], PORT).into(), Duration::from_secs(2)) {
            Ok(stream) => return Ok(stream),
            Err(error) if begin.elapsed() > 4 * LIMIT => bail!("host 2 does not listen: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// What it writes to stdout.
fn run_tar(args: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("tar").args(args).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "tar {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
