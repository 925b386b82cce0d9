//! A small automounter that does what a scenario asks for: `scenarios master MOUNT...`.
//!
//! Each MOUNT is `TYPE:PATH[:OPTION...]`; all share one pipe, whose write end is closed unless an option says
//! `write-end`; but mounts with `own-pipe` or `own-pipe-kept` (which keeps both ends open) have one each, that nobody
//! reads. A key is mounted as a bind of `/srv/data/KEY` (of a direct mount the key is the last component
//! of its path); the key `slow` only when `/run/go` exists. Every request is a line in `/run/requests`. With `chroot` as the first
//! MOUNT it lives in `/run` and sees no path of its mounts any more.

use anyhow::{Context, Result, bail};
use autofs_cr::sys::DevNum;
use autofs_cr::sys::control::{Control, ControlError, MountFd};
use autofs_cr::sys::mount::{self, AutofsParams, MountFlags, MountType, Unmount};
use autofs_cr::sys::packet::{Kind, Packet, read_packet};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where the keys are exported.
pub const EXPORTS: &str = "/srv/data";

/// Be it.
pub fn main(specs: &[&str]) -> ExitCode {
    match serve(specs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = fs::write("/var/master.error", format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

struct Served {
    path: PathBuf,
    /// By OPENMOUNT when needed, kept with `keep-fd`.
    fd: Option<MountFd>,
}

fn serve(specs: &[&str]) -> Result<()> {
    let control = Control::open()?;
    let (read, write) = rustix::pipe::pipe()?;
    let mut served = BTreeMap::new();
    let (chroot, specs) = match specs {
        ["chroot", specs @ ..] => (true, specs),
        specs => (false, specs),
    };
    let mut pipes = Vec::new();
    for spec in specs {
        let own = spec.contains(":own-pipe").then(rustix::pipe::pipe).transpose()?;
        let write = own.as_ref().map_or(&write, |(_, write)| write);
        let (dev, one) = mount_one(&control, spec, write.as_fd()).with_context(|| spec.to_string())?;
        served.insert(dev, one);
        pipes.extend(own.map(|(read, write)| (read, spec.contains(":own-pipe-kept").then_some(write))));
    }
    // Without a mount of its own the pipe would be at its end.
    let keeps = |spec: &&str| spec.ends_with(":write-end") || spec.contains(":own-pipe");
    let _write = specs.iter().any(keeps).then_some(write);
    fs::write("/run/ready", "")?;
    if chroot {
        fs::create_dir("/run/run")?;
        std::os::unix::fs::chroot("/run")?;
        std::env::set_current_dir("/")?;
    }
    loop {
        let Some(packet) = read_packet(read.as_fd())? else { continue };
        let mut log = fs::OpenOptions::new().create(true).append(true).open("/run/requests")?;
        writeln!(log, "{:?} {} {}", packet.kind, packet.uid, packet.gid)?;
        let Some(one) = served.get(&packet.dev) else {
            writeln!(log, "of an unknown mount {}", packet.dev)?;
            continue;
        };
        let opened;
        let fd = match &one.fd {
            Some(fd) => fd,
            None => {
                opened = control.open_mount(&one.path, packet.dev)?;
                &opened
            }
        };
        match answer(&one.path, &packet) {
            Ok(()) => answered(control.ready(fd.as_fd(), packet.token))?,
            Err(error) => {
                writeln!(log, "{error:#}")?;
                answered(control.fail(fd.as_fd(), packet.token, autofs_cr::sys::Errno::NOENT))?;
            }
        }
    }
}

/// A request that was asked again meanwhile is unknown.
fn answered(result: Result<(), ControlError>) -> Result<(), ControlError> {
    match result {
        Err(ControlError::UnknownToken(_)) => Ok(()),
        result => result,
    }
}

fn mount_one(control: &Control, spec: &str, pipe: std::os::fd::BorrowedFd<'_>) -> Result<(DevNum, Served)> {
    let mut words = spec.split(':');
    let kind = match words.next() {
        Some("indirect") => MountType::Indirect,
        Some("direct") => MountType::Direct,
        Some("offset") => MountType::Offset,
        _ => bail!("no type"),
    };
    let path = PathBuf::from(words.next().context("no path")?);
    let options: Vec<(&str, &str)> = words.map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
    let has = |name| options.iter().any(|(option, _)| *option == name);
    let number = |name| options.iter().find(|(option, _)| *option == name).map(|(_, value)| value.parse());
    let params = AutofsParams {
        uid: number("uid").transpose()?,
        gid: number("gid").transpose()?,
        strict_expire: has("strictexpire"),
        ignore: has("ignore"),
        ..AutofsParams::new(pipe, kind)
    };
    let made = mount::autofs(&params, Path::new("scenario"), MountFlags::empty())?;
    fs::create_dir_all(&path)?;
    made.attach(rustix::fs::CWD, &path)?;
    let dev = made.dev()?;
    let fd = control.open_mount(&path, dev)?;
    control.set_timeout(fd.as_fd(), number("timeout").transpose()?.unwrap_or(600).into())?;
    for (option, value) in options {
        match option {
            "browse" => fs::create_dir(path.join(value))?,
            "mode" => fs::set_permissions(&path, fs::Permissions::from_mode(u32::from_str_radix(value, 8)?))?,
            "link" => {
                let (name, target) = value.split_once('>').context("link without target")?;
                std::os::unix::fs::symlink(target, path.join(name))?;
            }
            "key-timeout" => {
                let (name, seconds) = value.split_once('=').context("key without timeout")?;
                control.set_dentry_timeout(fd.as_fd(), name.as_bytes(), Some(seconds.parse()?))?;
            }
            "catatonic" => control.make_catatonic(fd.as_fd())?,
            _ => {}
        }
    }
    Ok((dev, Served { path, fd: has_keep_fd(spec).then_some(fd) }))
}

fn has_keep_fd(spec: &str) -> bool {
    spec.contains(":keep-fd")
}

fn answer(path: &Path, packet: &Packet) -> Result<()> {
    let indirect = matches!(packet.kind, Kind::MissingIndirect | Kind::ExpireIndirect);
    let name = String::from_utf8(packet.name.clone())?;
    let key =
        if indirect { name } else { path.file_name().context("no key")?.to_string_lossy().into_owned() };
    let place = if indirect { path.join(&key) } else { path.to_owned() };
    match packet.kind {
        Kind::MissingIndirect | Kind::MissingDirect => {
            let source = Path::new(EXPORTS).join(&key);
            anyhow::ensure!(source.is_dir(), "no key {key}");
            while key == "slow" && !Path::new("/run/go").exists() {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            if indirect && !place.exists() {
                fs::create_dir(&place)?;
            }
            mount::bind(rustix::fs::CWD, &source, false)?.attach(rustix::fs::CWD, &place)?;
        }
        Kind::ExpireIndirect | Kind::ExpireDirect => {
            mount::unmount(&place, Unmount::Idle)?;
            if indirect {
                fs::remove_dir(&place)?;
            }
        }
    }
    Ok(())
}
