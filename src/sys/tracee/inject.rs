//! System calls in the place of a held task.
//!
//! The task executes a system call instruction that is mapped anyway (in the vDSO), stopped at entry and exit
//! by PTRACE_SYSCALL. Nothing of its program is written to: arguments in memory go to a page that is mapped
//! for the purpose, because below the stack pointer of a thread there may be another thread's
//! memory. No breakpoint and no single step is used either: their SIGTRAP is forced, which resets a handler
//! that the program has set or the signal's being ignored.
//!
//! Meanwhile every signal is blocked. SIGSTOP cannot be, and is delivered: the task then counts as
//! stopped, but still does our calls.

use super::super::control::{Caller, Command};
use super::{
    Errno, Held, Stop, TraceeError, arch, call, errno, last_errno, process, ptrace, registers, resume_until,
    set_registers,
};
use libc::user_regs_struct;
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};
use std::{
    cell::RefCell,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, RawFd},
    time::Duration,
};

/// Room for the longest command (24 bytes and a path of PATH_MAX).
const SCRATCH: usize = 2 * 4096;

/// No call that is made in a task's place takes longer, unless a file system hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// The state of a task in whose place calls are made.
#[derive(Debug)]
pub(super) struct Session {
    saved: user_regs_struct,
    saved_mask: u64,
    saved_rseq: Option<Rseq>,
    instruction: u64,
    scratch: u64,
}

impl Session {
    pub(super) fn saved(&self) -> &user_regs_struct {
        &self.saved
    }

    pub(super) fn set_saved(&mut self, registers: user_regs_struct) {
        self.saved = registers;
    }
}

impl Held {
    /// Run one system call in the task; returns its result, `-errno` for a failure. The task's own
    /// state is put back when it is let go.
    pub fn call(&mut self, number: i64, arguments: [u64; 6]) -> Result<i64, TraceeError> {
        let instruction = self.session()?.instruction;
        self.run(instruction, number, arguments)
    }

    /// A session, begun when there is none.
    fn session(&mut self) -> Result<&Session, TraceeError> {
        if self.session.is_none() {
            self.begin()?;
        }
        // Just set; there is no way to say so without a second look.
        self.session.as_ref().ok_or(TraceeError::Gone(self.tid))
    }

    fn begin(&mut self) -> Result<(), TraceeError> {
        let tid = self.tid;
        let saved = registers(tid)?;
        if !arch::is_native(&saved) {
            return Err(TraceeError::Compat(tid));
        }
        let instruction = find_instruction(tid)?;
        // The program's filter is for its own calls. Without CONFIG_CHECKPOINT_RESTORE it stays.
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_SUSPEND_SECCOMP;
        let _ = ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options as usize);
        let saved_rseq = Rseq::of(tid);
        let saved_mask = exchange_mask(tid, u64::MAX)?;
        self.session = Some(Session { saved, saved_mask, saved_rseq, instruction, scratch: 0 });
        let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let kind = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let mapped = self.run(instruction, libc::SYS_mmap, [0, SCRATCH as u64, access, kind, u64::MAX, 0]);
        match (mapped.and_then(|result| self.check("mapping memory", result)), &mut self.session) {
            (Ok(page), Some(session)) => session.scratch = page,
            (mapped, _) => {
                let ended = self.end_session();
                mapped?;
                ended?;
            }
        }
        Ok(())
    }

    /// Put everything back. The task leaves from a PTRACE_EVENT_STOP, as it came: only there does the kernel look
    /// whether its interrupted call is to be restarted.
    pub(super) fn end_session(&mut self) -> Result<(), TraceeError> {
        let Some(session) = &self.session else { return Ok(()) };
        let (tid, scratch, instruction) = (self.tid, session.scratch, session.instruction);
        let unmapped = match scratch {
            0 => Ok(0),
            page => self.run(instruction, libc::SYS_munmap, [page, SCRATCH as u64, 0, 0, 0, 0]),
        };
        let Some(session) = self.session.take() else { return Ok(()) };
        call("interrupting", tid, ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0))?;
        call("resuming", tid, ptrace(libc::PTRACE_CONT, tid, 0, 0))?;
        resume_until(tid, Stop::Event, None, LIMIT)?;
        if let Some(rseq) = &session.saved_rseq {
            rseq.restore(tid)?;
        }
        set_registers(tid, session.saved)?;
        exchange_mask(tid, session.saved_mask)?;
        unmapped.map(drop)
    }

    /// One system call: a stop at its entry, one at its exit.
    fn run(&mut self, instruction: u64, number: i64, arguments: [u64; 6]) -> Result<i64, TraceeError> {
        let tid = self.tid;
        let mut changed = registers(tid)?;
        arch::prepare(&mut changed, instruction, number, arguments);
        set_registers(tid, changed)?;
        for _ in ["entry", "exit"] {
            call("resuming", tid, ptrace(libc::PTRACE_SYSCALL, tid, 0, 0))?;
            resume_until(tid, Stop::Syscall, Some(libc::PTRACE_SYSCALL), LIMIT)?;
        }
        Ok(arch::result(&registers(tid)?))
    }

    /// A system call that must succeed.
    fn checked(&mut self, what: &'static str, number: i64, arguments: [u64; 6]) -> Result<u64, TraceeError> {
        let result = self.call(number, arguments)?;
        self.check(what, result)
    }

    fn check(&self, what: &'static str, result: i64) -> Result<u64, TraceeError> {
        to_errno(result).map_err(|errno| TraceeError::Call { tid: self.tid, what, errno })
    }

    /// Give the task a descriptor of ours; returns it as the task numbers it (CLOEXEC set).
    ///
    /// It travels through a socket pair made in the task, so that the task needs neither `/proc` nor a
    /// common pid namespace with us.
    pub fn send_fd(&mut self, fd: BorrowedFd<'_>) -> Result<RemoteFd, TraceeError> {
        let scratch = self.session()?.scratch;
        let kind = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u64;
        self.checked(
            "making a socket pair",
            libc::SYS_socketpair,
            [libc::AF_UNIX as u64, kind, 0, scratch, 0, 0],
        )?;
        let mut ends = [[0; 4]; 2];
        read_memory(self.tid, scratch, ends.as_flattened_mut())?;
        let [ours, theirs] = ends.map(|end| RemoteFd(RawFd::from_ne_bytes(end)));
        let received = self.send_through(fd, ours, theirs);
        let closed = self.close_fd(ours).and(self.close_fd(theirs));
        let received = received?;
        closed.map(|()| received)
    }

    fn send_through(
        &mut self,
        fd: BorrowedFd<'_>,
        ours: RemoteFd,
        theirs: RemoteFd,
    ) -> Result<RemoteFd, TraceeError> {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let tid = self.tid;
        let scratch = self.session()?.scratch;
        let send = || {
            let socket = process::copy_fd(process::thread_group(tid)?, ours.0)?;
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [fd];
            control.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(socket, &[IoSlice::new(b"f")], &mut control, SendFlags::NOSIGNAL)
        };
        call("sending a descriptor", tid, send())?;
        write_memory(tid, scratch, message(scratch).as_flattened())?;
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as u64;
        let what = "receiving a descriptor";
        self.checked(what, libc::SYS_recvmsg, [theirs.0 as u64, scratch, flags, 0, 0, 0])?;
        let mut control = [0; CONTROL as usize];
        read_memory(tid, scratch + CONTROL_AT, &mut control)?;
        let [.., a, b, c, d, _, _, _, _] = control;
        // The kernel leaves the control message out when the task has no number free.
        match control[0] {
            0 => Err(TraceeError::Call { tid, what, errno: Errno::MFILE }),
            _ => Ok(RemoteFd(RawFd::from_ne_bytes([a, b, c, d]))),
        }
    }

    /// Close one of the task's descriptors.
    pub fn close_fd(&mut self, fd: RemoteFd) -> Result<(), TraceeError> {
        self.checked("closing a descriptor", libc::SYS_close, [fd.0 as u64, 0, 0, 0, 0, 0]).map(drop)
    }
}

/// Where [`message`] has its control message, and how long that is (a header and one descriptor, padded).
const CONTROL_AT: u64 = 9 * 8;
const CONTROL: u64 = 24;

/// A `struct msghdr` for address `at`, followed by what it points to: an iovec, room for one descriptor, one byte.
fn message(at: u64) -> [[u8; 8]; 9] {
    let (iovec, byte) = (at + 7 * 8, at + CONTROL_AT + CONTROL);
    [0, 0, iovec, 1, at + CONTROL_AT, CONTROL, 0, byte, 1].map(u64::to_ne_bytes)
}

/// A descriptor in the held task's table: a number that means nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteFd(pub RawFd);

/// Issues /dev/autofs commands from inside a held task: the kernel sees *its* process group and its
/// descriptors.
#[derive(Debug)]
pub struct Injected<'a> {
    held: RefCell<&'a mut Held>,
    /// `/dev/autofs` in the task's table.
    device: RemoteFd,
}

impl<'a> Injected<'a> {
    /// `device`: ours; it is sent into the task and closed there on drop.
    pub fn new(held: &'a mut Held, device: impl AsFd) -> Result<Self, TraceeError> {
        let device = held.send_fd(device.as_fd())?;
        Ok(Self { held: RefCell::new(held), device })
    }

    /// Give the task another descriptor of ours ([`Held::send_fd`]).
    pub fn send_fd(&self, fd: BorrowedFd<'_>) -> Result<RemoteFd, TraceeError> {
        self.held.borrow_mut().send_fd(fd)
    }

    /// Close one of the task's descriptors.
    pub fn close_fd(&self, fd: RemoteFd) -> Result<(), TraceeError> {
        self.held.borrow_mut().close_fd(fd)
    }

    fn run(&self, command: Command, buf: &mut [u8]) -> Result<i64, TraceeError> {
        let mut held = self.held.borrow_mut();
        let (tid, scratch) = (held.tid, held.session()?.scratch);
        write_memory(tid, scratch, buf)?;
        let arguments = [self.device.0 as u64, command.request().into(), scratch, 0, 0, 0];
        let result = held.call(libc::SYS_ioctl, arguments)?;
        read_memory(tid, scratch, buf)?;
        Ok(result)
    }
}

impl Drop for Injected<'_> {
    fn drop(&mut self) {
        let _ = self.close_fd(self.device);
    }
}

impl Caller for Injected<'_> {
    type Fd<'a> = RemoteFd;
    /// Not closed on drop: that needs the held task. Use [`super::super::control::Control::close_mount`].
    type Mount = RemoteFd;

    /// ESRCH also when the task could not be used (any longer).
    fn ioctl(&self, command: Command, buf: &mut [u8]) -> Result<i32, Errno> {
        match self.run(command, buf) {
            Ok(result) => to_errno(result).map(|value| value as i32),
            Err(TraceeError::Call { errno, .. }) => Err(errno),
            Err(_) => Err(Errno::SRCH),
        }
    }

    fn number(fd: RemoteFd) -> RawFd {
        fd.0
    }

    unsafe fn own(number: RawFd) -> RemoteFd {
        RemoteFd(number)
    }

    fn disown(mount: RemoteFd) -> RawFd {
        mount.0
    }
}

fn to_errno(result: i64) -> Result<u64, Errno> {
    if (-4095..0).contains(&result) {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    Ok(result as u64)
}

/// Where the task has a system call instruction mapped: in the vDSO, else anywhere.
fn find_instruction(tid: i32) -> Result<u64, TraceeError> {
    const MOST: u64 = 1 << 20;
    let maps = std::fs::read(format!("/proc/{tid}/maps")).map_err(|_| TraceeError::Gone(tid))?;
    let maps = String::from_utf8_lossy(&maps);
    let (vdso, others): (Vec<_>, Vec<_>) = maps.lines().partition(|line| line.ends_with("[vdso]"));
    let executable = vdso.into_iter().chain(others).filter_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let (end, rest) = rest.split_once(' ')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        rest.starts_with("r-x").then_some((start, end.min(start + MOST)))
    });
    for (start, end) in executable {
        let mut code = vec![0; (end - start) as usize];
        if read_memory(tid, start, &mut code).is_err() {
            continue;
        }
        let mut places = code.windows(arch::SYSCALL.len()).step_by(arch::ALIGNMENT);
        if let Some(place) = places.position(|bytes| bytes == arch::SYSCALL) {
            return Ok(start + (place * arch::ALIGNMENT) as u64);
        }
    }
    Err(TraceeError::NoInstruction(tid))
}

/// Set the mask of blocked signals, and return the one before.
fn exchange_mask(tid: i32, mask: u64) -> Result<u64, TraceeError> {
    const SIZE: usize = size_of::<u64>();
    let mut before = 0u64;
    // SAFETY: the kernel writes SIZE bytes to `before`.
    let got = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, SIZE, &mut before) };
    call("reading the signal mask", tid, if got < 0 { Err(last_errno()) } else { Ok(()) })?;
    let set = ptrace(libc::PTRACE_SETSIGMASK, tid, SIZE, &raw const mask as usize);
    call("setting the signal mask", tid, set)?;
    Ok(before)
}

/// A restartable sequence that the task was stopped in. The kernel forgets it when the task goes on
/// elsewhere, and would then not send the task back to its start.
#[derive(Debug)]
struct Rseq {
    /// Of the `rseq_cs` field in the thread's `struct rseq`.
    address: u64,
    value: u64,
}

impl Rseq {
    /// `None` when it is in none (or the kernel is older than 5.13).
    fn of(tid: i32) -> Option<Self> {
        const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
        const RSEQ_CS: u64 = 8;
        // Address of the structure, its size and signature, flags, padding.
        let mut configuration = [0u64; 3];
        // SAFETY: the kernel writes no more than the size that it is given.
        let got = unsafe {
            let size = size_of_val(&configuration);
            libc::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, &mut configuration)
        };
        let address = configuration[0].checked_add(RSEQ_CS).filter(|_| got > 0 && configuration[0] != 0)?;
        let mut value = [0; 8];
        read_memory(tid, address, &mut value).ok()?;
        let value = u64::from_ne_bytes(value);
        (value != 0).then_some(Self { address, value })
    }

    fn restore(&self, tid: i32) -> Result<(), TraceeError> {
        write_memory(tid, self.address, &self.value.to_ne_bytes())
    }
}

fn read_memory(tid: i32, address: u64, buf: &mut [u8]) -> Result<(), TraceeError> {
    let there = RemoteIoVec { base: address as usize, len: buf.len() };
    let length = buf.len();
    let read = process_vm_readv(Pid::from_raw(tid), &mut [IoSliceMut::new(buf)], &[there]);
    whole("reading the memory", tid, length, read)
}

fn write_memory(tid: i32, address: u64, buf: &[u8]) -> Result<(), TraceeError> {
    let there = RemoteIoVec { base: address as usize, len: buf.len() };
    let written = process_vm_writev(Pid::from_raw(tid), &[IoSlice::new(buf)], &[there]);
    whole("writing the memory", tid, buf.len(), written)
}

fn whole(what: &'static str, tid: i32, length: usize, done: nix::Result<usize>) -> Result<(), TraceeError> {
    let done = done.map_err(errno).and_then(|done| if done == length { Ok(()) } else { Err(Errno::FAULT) });
    call(what, tid, done)
}
