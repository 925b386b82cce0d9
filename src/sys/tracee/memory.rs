//! A held task's memory.

use super::{Errno, TraceeError, arch, call, nix_errno};
use nix::{
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};
use std::io::{IoSlice, IoSliceMut};

/// Where the task has a system call instruction mapped: in the vDSO, else anywhere.
pub(super) fn find_instruction(tid: i32) -> Result<u64, TraceeError> {
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
        if read(tid, start, &mut code).is_err() {
            continue;
        }
        let mut places = code.windows(arch::SYSCALL.len()).step_by(arch::ALIGNMENT);
        if let Some(place) = places.position(|bytes| bytes == arch::SYSCALL) {
            return Ok(start + (place * arch::ALIGNMENT) as u64);
        }
    }
    Err(TraceeError::NoInstruction(tid))
}

/// A restartable sequence that the task was stopped in. The kernel forgets it when the task goes on
/// elsewhere, and would then not send the task back to its start.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Rseq {
    /// Of the `rseq_cs` field in the thread's `struct rseq`.
    address: u64,
    value: u64,
}

impl Rseq {
    /// `None` when it is in none (or the kernel is older than 5.13).
    pub(super) fn of(tid: i32) -> Option<Self> {
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
        read(tid, address, &mut value).ok()?;
        let value = u64::from_ne_bytes(value);
        (value != 0).then_some(Self { address, value })
    }

    pub(super) fn restore(&self, tid: i32) -> Result<(), TraceeError> {
        write(tid, self.address, &self.value.to_ne_bytes())
    }
}

pub(super) fn read(tid: i32, address: u64, buf: &mut [u8]) -> Result<(), TraceeError> {
    let there = RemoteIoVec { base: address as usize, len: buf.len() };
    let length = buf.len();
    let read = process_vm_readv(Pid::from_raw(tid), &mut [IoSliceMut::new(buf)], &[there]);
    whole("reading the memory", tid, length, read)
}

pub(super) fn write(tid: i32, address: u64, buf: &[u8]) -> Result<(), TraceeError> {
    let there = RemoteIoVec { base: address as usize, len: buf.len() };
    let written = process_vm_writev(Pid::from_raw(tid), &[IoSlice::new(buf)], &[there]);
    whole("writing the memory", tid, buf.len(), written)
}

fn whole(what: &'static str, tid: i32, length: usize, done: nix::Result<usize>) -> Result<(), TraceeError> {
    let done =
        done.map_err(nix_errno).and_then(|done| if done == length { Ok(()) } else { Err(Errno::FAULT) });
    call(what, tid, done)
}
