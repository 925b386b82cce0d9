//! Tasks that sleep until a request is answered.
//!
//! The kernel says where a task sleeps in three places, each with its own conditions: `wchan` (CONFIG_KALLSYMS, and the right to
//! trace the task), `stack` (CONFIG_STACKTRACE, root), and `syscall` (the call with its path, not the sleep). A task in
//! uninterruptible sleep of which neither of the first two tells anything is counted as not known.

use super::escaped::escape;
use super::facts::Waiter;
use super::proc::TaskDir;
use std::path::{Component, Path, PathBuf};

/// A waiter and what helps to tell its mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The task.
    pub waiter: Waiter,
    /// Its mount namespace.
    pub mount_namespace: Option<u64>,
    /// The path that it looks up, absolute in that namespace, where it can be told.
    pub path: Option<PathBuf>,
}

/// Collects the waiters, process by process.
#[derive(Debug, Default)]
pub struct WaiterScan {
    /// The tasks that sleep in autofs.
    pub found: Vec<Found>,
    /// Tasks of which it is not known where they sleep.
    pub unknown: usize,
}

impl WaiterScan {
    /// Look at every task of one process.
    pub fn visit(&mut self, process: &TaskDir) {
        for task in process.tasks().into_iter().flatten() {
            match is_waiter(&task) {
                Some(true) => self.found.extend(found(process, &task)),
                Some(false) => {}
                None => self.unknown += 1,
            }
        }
    }
}

/// Is it in uninterruptible sleep, in autofs? Tasks that fall asleep and wake while they are looked at (for a disk)
/// get another chance to be seen.
fn is_waiter(task: &TaskDir) -> Option<bool> {
    const CHANCES: usize = 3;
    let sleeps = || task.stat().is_some_and(|stat| stat.state == b'D');
    (0..CHANCES).find_map(|_| if sleeps() { waits_in_autofs(task) } else { Some(false) })
}

/// Does the task sleep in autofs? `None`: the kernel does not tell.
pub fn waits_in_autofs(task: &TaskDir) -> Option<bool> {
    // `0` where the caller may not trace the task, or the kernel has no symbols
    if let Some(wchan) = task.read("wchan").ok().filter(|w| !matches!(w.as_slice(), b"" | b"0")) {
        return Some(is_autofs(&wchan));
    }
    let stack = task.read("stack").ok().filter(|stack| !stack.is_empty())?;
    // a line is `[<0>] autofs_wait+0x1bd/0x660`
    let mut functions =
        stack.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&b| b == b' ').next_back());
    Some(functions.any(is_autofs))
}

/// A function of the autofs module; its older name was autofs4. The compiler may have renamed or inlined
/// `autofs_wait`, so any of them counts.
fn is_autofs(function: &[u8]) -> bool {
    function.starts_with(b"autofs_") || function.starts_with(b"autofs4_")
}

fn found(process: &TaskDir, task: &TaskDir) -> Option<Found> {
    Some(Found {
        waiter: waiter(process, task)?,
        mount_namespace: task.namespace("mnt"),
        path: Call::of(task).and_then(|call| call.path(task)),
    })
}

/// A task as a waiter; `None` when it has ended.
pub fn waiter(process: &TaskDir, task: &TaskDir) -> Option<Waiter> {
    Some(Waiter {
        tid: task.id,
        process: process.identity(&process.stat()?),
        comm: escape(&task.stat()?.name),
        // a visitor waits in a call with a path; EXPIRE is an ioctl
        expiring: Call::of(task).is_some_and(|call| call.number == libc::SYS_ioctl),
    })
}

/// The system call that a task sleeps in.
struct Call {
    number: i64,
    arguments: [u64; 6],
}

/// Calls whose only path is their first argument.
const PATH: &[i64] = &[
    libc::SYS_chdir,
    libc::SYS_execve,
    libc::SYS_statfs,
    libc::SYS_truncate,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Calls whose only path is their second argument, below the directory of the first.
const PATH_AT: &[i64] = &[
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_mkdirat,
    libc::SYS_name_to_handle_at,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

impl Call {
    /// `262 0xffffff9c 0x7f6ce4a67440 ...`: the number, six arguments, stack and instruction pointer.
    fn of(task: &TaskDir) -> Option<Self> {
        Self::parse(&task.read("syscall").ok()?)
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = str::from_utf8(line).ok()?.split_ascii_whitespace();
        let number = fields.next()?.parse().ok()?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        Some(Self { number, arguments })
    }

    /// The path that is looked up, absolute in the task's mount namespace. `None` where it cannot be told:
    /// another call, a task with a root directory of its own, a path with `..`.
    fn path(&self, task: &TaskDir) -> Option<PathBuf> {
        let (dir, address) = match self.number {
            number if PATH.contains(&number) => (None, self.arguments[0]),
            // AT_FDCWD, or a descriptor; both are 32 bits wide
            number if PATH_AT.contains(&number) => match self.arguments[0] as i32 {
                libc::AT_FDCWD => (None, self.arguments[1]),
                fd => (Some(format!("fd/{fd}")), self.arguments[1]),
            },
            _ => return None,
        };
        if task.read_link("root").ok()? != Path::new("/") {
            return None;
        }
        let base = task.read_link(dir.as_deref().unwrap_or("cwd")).ok()?;
        let path = base.join(task.string(address)?);
        let is_plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        is_plain.then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_autofs() {
        assert!(is_autofs(b"autofs_wait"));
        assert!(is_autofs(b"autofs_wait.isra.0+0x1bd/0x660"));
        assert!(is_autofs(b"autofs4_wait"));
        assert!(!is_autofs(b"do_wait"));
        assert!(!is_autofs(b""));
    }

    #[test]
    fn calls_are_read() {
        let call = Call::parse(b"262 0xffffff9c 0x7f 0x1 0x0 0x0 0x0 0x7ffe 0x7f6c\n").unwrap();
        assert_eq!((call.number, call.arguments[0] as i32), (262, libc::AT_FDCWD));
        assert!(Call::parse(b"running\n").is_none());
        assert!(Call::parse(b"-1 0x7ffe 0x7f6c\n").is_none());
    }

    #[test]
    fn a_path_in_memory_is_found() {
        let text = c"some/where";
        let task = TaskDir::process(rustix::process::getpid().as_raw_nonzero().get()).unwrap();
        let call = |first: i32| Call {
            number: libc::SYS_openat,
            arguments: [first as u32 as u64, text.as_ptr() as u64, 0, 0, 0, 0],
        };
        let cwd = std::env::current_dir().unwrap();
        assert_eq!(call(libc::AT_FDCWD).path(&task), Some(cwd.join("some/where")));
        assert_eq!(Call { number: libc::SYS_read, ..call(0) }.path(&task), None);
        assert_eq!(Call { arguments: [0; 6], ..call(0) }.path(&task), None);
    }
}
