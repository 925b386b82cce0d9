//! Tasks that sleep without their knowledge and without a tracer.
//!
//! A task that changes tracers runs between the two. What must not run its own code meanwhile is sent into a system call
//! without end before the first lets it go; the second puts back what the first has saved. The call touches no memory
//! (ppoll of nothing), and every signal is blocked, so that no handler returns into the middle of it.

use super::memory::{self, Rseq};
use super::session::exchange_mask;
use super::{Held, Stop, TraceeError, arch, call, interrupt, ptrace, registers, resume, set_registers};
use super::{user_regs_struct, wait_for_event};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long falling asleep may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Signals that nobody can block.
const UNBLOCKED: u64 = (1 << (libc::SIGKILL - 1)) | (1 << (libc::SIGSTOP - 1));

/// The words of [`user_regs_struct`].
const WORDS: usize = size_of::<user_regs_struct>() / size_of::<u64>();

/// A task that was put to sleep, and its own state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sleeper {
    /// The task.
    pub tid: i32,
    registers: Vec<u64>,
    mask: u64,
    rseq: Option<Rseq>,
    /// Where it sleeps: no program makes its calls there.
    instruction: u64,
}

impl Held {
    /// Let the task go, asleep, until somebody who traces it calls [`Self::wake`]. On an error it is let go as it was.
    pub fn put_to_sleep(mut self) -> Result<Sleeper, TraceeError> {
        self.end_session()?;
        let tid = self.tid;
        let saved = registers(tid)?;
        if !arch::is_native(&saved) {
            return Err(TraceeError::Compat(tid));
        }
        let instruction = memory::find_instruction(tid)?;
        let rseq = Rseq::of(tid);
        let mask = exchange_mask(tid, u64::MAX)?;
        let sleeper = Sleeper { tid, registers: words(saved), mask, rseq, instruction };
        let asleep = self.fall_asleep(saved, instruction);
        if asleep.is_err() {
            self.wake(&sleeper)?;
        }
        self.detach()?;
        asleep.map(|()| sleeper)
    }

    /// Put the state of a sleeper back: it goes on from there when it is let go.
    pub fn wake(&mut self, sleeper: &Sleeper) -> Result<(), TraceeError> {
        let tid = self.tid;
        let Ok(words) = <[u64; WORDS]>::try_from(sleeper.registers.as_slice()) else {
            return Err(TraceeError::NoCall(tid));
        };
        if let Some(rseq) = &sleeper.rseq {
            rseq.restore(tid)?;
        }
        // SAFETY: a structure of as many 64-bit numbers, any of which is valid.
        set_registers(tid, unsafe { std::mem::transmute::<[u64; WORDS], user_regs_struct>(words) })?;
        exchange_mask(tid, sleeper.mask).map(drop)
    }

    /// As [`Self::wake`], for one who may have been woken, and may have gone on since: then nothing is changed. Whoever was at it may
    /// have died before the last step, the mask.
    pub fn wake_if_asleep(&mut self, sleeper: &Sleeper) -> Result<(), TraceeError> {
        let tid = self.tid;
        if arch::calls_at(&registers(tid)?, libc::SYS_ppoll, sleeper.instruction) {
            return self.wake(sleeper);
        }
        let mask = exchange_mask(tid, sleeper.mask)?;
        if mask | UNBLOCKED != u64::MAX { exchange_mask(tid, mask).map(drop) } else { Ok(()) }
    }

    /// Has its user stopped it (SIGSTOP, ctrl-Z)? Let go, it stays stopped.
    pub fn is_stopped(&self) -> bool {
        let info = ptrace::getsiginfo(Pid::from_raw(self.tid));
        info.is_ok_and(|info| info.si_signo != libc::SIGTRAP)
    }

    /// Begin the call, interrupted at once: what the program's own filter of system calls refuses shows before it is let go.
    fn fall_asleep(&mut self, saved: user_regs_struct, instruction: u64) -> Result<(), TraceeError> {
        let tid = self.tid;
        ptrace(libc::PTRACE_SETOPTIONS, tid, 0, libc::PTRACE_O_TRACESYSGOOD as usize)
            .map_err(|errno| TraceeError::Call { tid, what: "setting the options", errno })?;
        let mut changed = saved;
        arch::prepare(&mut changed, instruction, libc::SYS_ppoll, [0; 6]);
        set_registers(tid, changed)?;
        self.run_to_syscall()?;
        interrupt(tid)?;
        resume(libc::PTRACE_CONT, tid, Stop::Syscall)?;
        wait_for_event(tid, LIMIT)?;
        match arch::will_repeat(&registers(tid)?, libc::SYS_ppoll, instruction) {
            true => Ok(()),
            false => call("putting to sleep", tid, Err(super::Errno::PERM)),
        }
    }
}

fn words(registers: user_regs_struct) -> Vec<u64> {
    // SAFETY: the structure is nothing but 64-bit numbers, without padding.
    unsafe { std::mem::transmute::<user_regs_struct, [u64; WORDS]>(registers) }.to_vec()
}
