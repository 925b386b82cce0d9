//! Tasks that sleep until a request is answered.
//!
//! The kernel says where a task sleeps in three places, each with its own conditions: `wchan` (CONFIG_KALLSYMS, and the right to
//! trace the task), `stack` (CONFIG_STACKTRACE, root), and `syscall` (the call, not the sleep). A task in
//! uninterruptible sleep of which neither of the first two tells anything is counted as not known.

use super::facts::Waiter;
use super::mountinfo::number;
use super::proc::TaskDir;

/// A waiter and what helps to tell its mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The task.
    pub waiter: Waiter,
    /// Its mount namespace.
    pub mount_namespace: Option<u64>,
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
            if task.stat().is_none_or(|stat| stat.state != b'D') {
                continue;
            }
            match waits_in_autofs(&task) {
                Some(true) => self.found.extend(found(process, &task)),
                Some(false) => {}
                None => self.unknown += 1,
            }
        }
    }
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
    Some(Found { waiter: waiter(process, task)?, mount_namespace: task.namespace("mnt") })
}

/// A task as a waiter; `None` when it has ended.
pub fn waiter(process: &TaskDir, task: &TaskDir) -> Option<Waiter> {
    Some(Waiter {
        tid: task.id,
        process: process.identity(&process.stat()?),
        comm: task.stat()?.comm,
        expiring: is_in_ioctl(task),
    })
}

/// A visitor waits in a call with a path; EXPIRE is an ioctl.
fn is_in_ioctl(task: &TaskDir) -> bool {
    let Ok(call) = task.read("syscall") else { return false };
    let number: Option<i64> = call.split(|&byte| byte == b' ').next().and_then(number);
    number == Some(libc::SYS_ioctl)
}
