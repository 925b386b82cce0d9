//! What every kernel test needs: a namespace of its own, autofs mounts, visitors with limits.

use autofs_cr::sys::{
    DevNum,
    control::{Control, MountFd},
    mount::{self, AutofsParams, DetachedMount, MountError, MountFlags, MountType, Unmount},
    packet::{Packet, PacketPipe, packet_pipe, read_packet},
    tracee::{Seized, TraceeError},
};
use nix::sys::signal::Signal;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::CWD,
};
use std::{
    fs,
    io::ErrorKind,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// No wait of a test is longer: a limit for what hangs, on a loaded machine too.
pub const LIMIT: Duration = Duration::from_secs(180);

/// An empty directory in a fresh tmpfs that nobody else sees, in a mount namespace of this thread.
pub fn private_mount_namespace() -> PathBuf {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS).expect("kernel tests need root");
    mount::Change::propagation(mount::Propagation::Private, true).apply(CWD, Path::new("/")).unwrap();
    let home = PathBuf::from("/mnt");
    tmpfs().attach(CWD, &home).unwrap();
    home
}

/// A new tmpfs, attached nowhere.
pub fn tmpfs() -> DetachedMount {
    mount::new_superblock::<&str>("tmpfs", Path::new("test"), &[], MountFlags::empty()).unwrap()
}

/// An autofs mount whose master is this process. It ends catatonic, so that no visitor can hang.
pub struct Autofs {
    pub control: Control,
    pub path: PathBuf,
    pub dev: DevNum,
    pub fd: MountFd,
    pub pipe: PacketPipe,
}

impl Autofs {
    /// Mounted at a new directory `path`, owned by this process's group.
    pub fn mount(mount_type: MountType, path: PathBuf) -> Self {
        Self::mount_with(mount_type, path, |_| {})
    }

    /// Likewise, with other parameters.
    pub fn mount_with(
        mount_type: MountType,
        path: PathBuf,
        change: impl FnOnce(&mut AutofsParams<'_>),
    ) -> Self {
        fs::create_dir_all(&path).unwrap();
        let pipe = packet_pipe().unwrap();
        let mut params = AutofsParams::new(pipe.write.as_fd(), mount_type);
        change(&mut params);
        let detached = mount::autofs(&params, Path::new("test"), MountFlags::empty()).unwrap();
        detached.attach(CWD, &path).unwrap();
        let control = Control::open().unwrap();
        let dev = detached.dev().unwrap();
        let fd = control.open_mount(&path, dev).unwrap();
        Self { control, path, dev, fd, pipe }
    }

    /// The next request; fails the test when none comes.
    pub fn request(&self) -> Packet {
        next_packet(&self.pipe.read)
    }
}

impl Drop for Autofs {
    fn drop(&mut self) {
        let _ = self.control.make_catatonic(self.fd.as_fd());
        let _ = mount::unmount(&self.path, Unmount::Lazy);
    }
}

/// The next packet of a pipe; fails the test when none comes.
pub fn next_packet(read: impl AsFd) -> Packet {
    let limit = Timespec::try_from(LIMIT).unwrap();
    let mut fds = [PollFd::new(&read, PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&limit)), Ok(1), "no request came");
    read_packet(read.as_fd()).unwrap().unwrap()
}

/// A program in a process group of its own; killed when dropped.
pub struct Visitor(pub Child);

impl Visitor {
    /// `program arguments...`, its output kept.
    pub fn run(program: &str, arguments: &[&Path]) -> Self {
        Self::run_as(program, arguments, |_| {})
    }

    /// Likewise, changed before it starts.
    pub fn run_as(program: &str, arguments: &[&Path], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .process_group(0)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        change(&mut command);
        Self(wait_until(|| match command.spawn() {
            // a program that was just copied: a child of another test has it open for writing until its exec
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => None,
            child => Some(child.unwrap()),
        }))
    }

    /// A program that does nothing for longer than any test takes.
    pub fn idle() -> Self {
        Self::run("sleep", &[Path::new("1000")])
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Whether it waits for a master's answer. Its state alone does not say so: it is D too while its program is read from
    /// a disk.
    pub fn waits(&self) -> bool {
        fs::read(format!("/proc/{}/wchan", self.pid())).is_ok_and(|wchan| wchan.starts_with(b"autofs"))
    }

    /// Come back when it waits for a master's answer.
    pub fn until_it_waits(&self) {
        wait_until(|| self.waits().then_some(()));
    }

    /// Its state, one letter of `/proc/PID/stat`.
    pub fn state(&self) -> char {
        state(self.pid())
    }

    /// Come back when it is in this state.
    pub fn until_its_state_is(&self, wanted: char) {
        wait_until(|| (self.state() == wanted).then_some(()));
    }

    /// Come back when it sleeps in this function of the kernel.
    pub fn until_it_is_in(&self, function: &str) {
        wait_until(|| {
            (fs::read(format!("/proc/{}/wchan", self.pid())).unwrap() == function.as_bytes()).then_some(())
        });
    }

    /// Come back when it catches all these signals: it is past its start, then.
    pub fn until_it_catches(&self, signals: &[Signal]) {
        let wanted = signals.iter().fold(0, |mask, signal| mask | 1_u64 << (*signal as i32 - 1));
        let caught = |status: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
            u64::from_str_radix(mask, 16).unwrap() & wanted == wanted
        };
        let status = format!("/proc/{}/status", self.pid());
        wait_until(|| caught(&fs::read_to_string(&status).unwrap()).then_some(()));
    }

    /// Seized by this thread. A test beside this one that holds visitors has every waiter there is for a moment.
    pub fn seize(&self) -> Seized {
        wait_until(|| match Seized::new(self.pid()) {
            Err(TraceeError::Refused { .. }) => None,
            seized => Some(seized.unwrap()),
        })
    }

    /// How it ended, and what it wrote to stdout and stderr.
    pub fn outcome(mut self) -> (ExitStatus, String) {
        let status = wait_until(|| self.0.try_wait().unwrap());
        let mut text = String::new();
        use std::io::Read;
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (status, text)
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state of a process, one letter of `/proc/PID/stat`.
pub fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].chars().next().unwrap()
}

/// Unmount what nobody uses. It may be in use for a moment: a child of another test has copies of all descriptors of this
/// process until its exec.
pub fn unmount_idle(path: &Path) {
    wait_until(|| match mount::unmount(path, Unmount::Idle) {
        Err(MountError::Busy(_)) => None,
        done => Some(done),
    })
    .unwrap();
}

/// Poll `done` until it gives something; fails the test at the limit.
pub fn wait_until<T>(mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "waited too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The line of this thread's mountinfo for superblock `dev`.
pub fn mountinfo_line(dev: DevNum) -> String {
    let dev = dev.to_string();
    let table = fs::read("/proc/thread-self/mountinfo").unwrap();
    String::from_utf8_lossy(&table)
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(&dev))
        .unwrap()
        .to_owned()
}
