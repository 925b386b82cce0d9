//! System calls in the place of a held task.
//!
//! The task executes a system call instruction that is mapped anyway (in the vDSO), stopped at entry and exit
//! by PTRACE_SYSCALL. Nothing of its program is written to: what is in memory goes to pages that are mapped
//! for the purpose, because below the stack pointer of a thread there may be another thread's
//! memory. No breakpoint and no single step is used either: their SIGTRAP is forced, which takes
//! a program's own handling of it away where that is to block or to ignore.
//!
//! Meanwhile every signal is blocked. SIGSTOP cannot be, and is delivered: the task then counts as
//! stopped, but still does our calls.

use super::memory::{self, Rseq};
use super::{
    Errno, Held, Stop, TraceeError, arch, call, interrupt, last_errno, pause, program, ptrace, registers,
    resume, set_registers, wait, wait_for_event,
};
use libc::user_regs_struct;
use std::time::{Duration, Instant};

/// No call that is made in a task's place takes longer, unless a file system hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// For what calls take and give in memory: [`DATA`] bytes, then the table of a batch.
const SCRATCH: u64 = DATA + BATCH as u64 * size_of::<Entry>() as u64;
pub(super) const DATA: u64 = 64 * 1024;

/// The most calls that one run of the program makes.
const BATCH: usize = 1024;

/// A call as the program ([`program`]) reads it: number, six arguments, and room for the result.
type Entry = [u64; 8];

/// No call returns this.
const PENDING: u64 = i64::MIN as u64;

/// A system call to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteCall {
    /// `SYS_*`.
    pub number: i64,
    /// As the kernel takes them.
    pub arguments: [u64; 6],
}

/// The state of a task in whose place calls are made.
#[derive(Debug)]
pub(super) struct Session {
    saved: user_regs_struct,
    saved_mask: u64,
    saved_rseq: Option<Rseq>,
    instruction: u64,
    scratch: u64,
    /// Where the program is that makes many calls; 0: nowhere yet.
    program: u64,
}

impl Session {
    pub(super) fn saved(&self) -> &user_regs_struct {
        &self.saved
    }

    pub(super) fn set_saved(&mut self, registers: user_regs_struct) {
        self.saved = registers;
    }

    /// Address of [`DATA`] bytes in the task.
    pub(super) fn data(&self) -> u64 {
        self.scratch
    }
}

impl Held {
    /// Run one system call in the task; returns its result, `-errno` for a failure. The task's own
    /// state is put back when it is let go.
    pub fn call(&mut self, number: i64, arguments: [u64; 6]) -> Result<i64, TraceeError> {
        let instruction = self.session()?.instruction;
        self.run(instruction, number, arguments)
    }

    /// Run many, in order and whatever their results, by a small program in the task: some 3 µs each
    /// instead of 10. Where the task may not have memory to execute they run one by one.
    pub fn call_all(&mut self, calls: &[RemoteCall]) -> Result<Vec<i64>, TraceeError> {
        let program = if calls.len() > 2 { self.program()? } else { None };
        let Some(program) = program else {
            return calls.iter().map(|call| self.call(call.number, call.arguments)).collect();
        };
        let mut results = Vec::with_capacity(calls.len());
        for batch in calls.chunks(BATCH) {
            results.extend(self.run_program(program, batch)?);
        }
        Ok(results)
    }

    /// A system call that must succeed.
    pub(super) fn checked(
        &mut self,
        what: &'static str,
        number: i64,
        arguments: [u64; 6],
    ) -> Result<u64, TraceeError> {
        let result = self.call(number, arguments)?;
        self.check(what, result)
    }

    pub(super) fn check(&self, what: &'static str, result: i64) -> Result<u64, TraceeError> {
        to_errno(result).map_err(|errno| TraceeError::Call { tid: self.tid, what, errno })
    }

    /// A session, begun when there is none.
    pub(super) fn session(&mut self) -> Result<&mut Session, TraceeError> {
        if self.session.is_none() {
            self.begin()?;
        }
        // It was begun just now: the error cannot happen.
        self.session.as_mut().ok_or(TraceeError::Gone(self.tid))
    }

    fn begin(&mut self) -> Result<(), TraceeError> {
        let tid = self.tid;
        let saved = registers(tid)?;
        if !arch::is_native(&saved) {
            return Err(TraceeError::Compat(tid));
        }
        let instruction = memory::find_instruction(tid)?;
        // The program's filter is for its own calls. Without CONFIG_CHECKPOINT_RESTORE it stays.
        let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_SUSPEND_SECCOMP;
        let _ = ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options as usize);
        let saved_rseq = Rseq::of(tid);
        let saved_mask = exchange_mask(tid, u64::MAX)?;
        self.session = Some(Session { saved, saved_mask, saved_rseq, instruction, scratch: 0, program: 0 });
        match self.map(SCRATCH, libc::PROT_READ | libc::PROT_WRITE) {
            Ok(scratch) => self.session()?.scratch = scratch,
            Err(error) => {
                let _ = self.end_session();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Put everything back. The task leaves from a PTRACE_EVENT_STOP, as it came: only there does the kernel look
    /// whether its interrupted call is to be restarted.
    pub(super) fn end_session(&mut self) -> Result<(), TraceeError> {
        let Some(session) = &self.session else { return Ok(()) };
        let tid = self.tid;
        let mut unmapped = Ok(());
        for (address, size) in [(session.program, program().len() as u64), (session.scratch, SCRATCH)] {
            if address != 0 {
                let result = self.checked("unmapping memory", libc::SYS_munmap, [address, size, 0, 0, 0, 0]);
                unmapped = unmapped.and(result.map(drop));
            }
        }
        let Some(session) = self.session.take() else { return unmapped };
        interrupt(tid)?;
        resume(libc::PTRACE_CONT, tid, Stop::Event)?;
        wait_for_event(tid, LIMIT)?;
        if let Some(rseq) = &session.saved_rseq {
            rseq.restore(tid)?;
        }
        set_registers(tid, session.saved)?;
        exchange_mask(tid, session.saved_mask)?;
        unmapped
    }

    fn map(&mut self, size: u64, access: i32) -> Result<u64, TraceeError> {
        let kind = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        self.checked("mapping memory", libc::SYS_mmap, [0, size, access as u64, kind, u64::MAX, 0])
    }

    /// One system call: a stop at its entry, one at its exit.
    fn run(&mut self, instruction: u64, number: i64, arguments: [u64; 6]) -> Result<i64, TraceeError> {
        let tid = self.tid;
        let mut changed = registers(tid)?;
        arch::prepare(&mut changed, instruction, number, arguments);
        set_registers(tid, changed)?;
        for _ in ["entry", "exit"] {
            let stopped = self.run_to_syscall();
            self.interrupt_if_late(stopped)?;
        }
        Ok(arch::result(&registers(tid)?))
    }

    pub(super) fn run_to_syscall(&self) -> Result<(), TraceeError> {
        let mut stop = Stop::Event;
        loop {
            resume(libc::PTRACE_SYSCALL, self.tid, stop)?;
            stop = wait(self.tid, LIMIT)?;
            if stop == Stop::Syscall {
                return Ok(());
            }
        }
    }

    /// Where the program is, put there when it is not; `None` when the task must not have executable
    /// memory (SELinux's `execmem`). The page is never writable: ptrace writes to it all the same.
    fn program(&mut self) -> Result<Option<u64>, TraceeError> {
        let tid = self.tid;
        if self.session()?.program == 0 {
            let code = program();
            let page = match self.map(code.len() as u64, libc::PROT_READ | libc::PROT_EXEC) {
                Ok(page) => page,
                Err(TraceeError::Call { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            self.session()?.program = page;
            for (word, address) in code.chunks(8).zip((page as usize..).step_by(8)) {
                let mut bytes = [0; 8];
                bytes[..word.len()].copy_from_slice(word);
                let poked = ptrace(libc::PTRACE_POKEDATA, tid, address, usize::from_ne_bytes(bytes));
                call("writing the memory", tid, poked)?;
            }
        }
        Ok(Some(self.session()?.program))
    }

    /// The program makes the calls of its table and then sleeps, so that it needs no signal to tell its end.
    fn run_program(&mut self, program: u64, calls: &[RemoteCall]) -> Result<Vec<i64>, TraceeError> {
        let tid = self.tid;
        let table = self.session()?.scratch + DATA;
        let entries: Vec<Entry> = calls
            .iter()
            .map(|RemoteCall { number, arguments: [a, b, c, d, e, f] }| {
                [*number as u64, *a, *b, *c, *d, *e, *f, PENDING]
            })
            .collect();
        memory::write(tid, table, &bytes_of(entries.as_flattened()))?;
        let mut changed = registers(tid)?;
        arch::prepare_program(&mut changed, program, table, calls.len() as u64);
        set_registers(tid, changed)?;
        resume(libc::PTRACE_CONT, tid, Stop::Event)?;
        let done = self.wait_for_program(table + (size_of_val(&*entries) - 8) as u64);
        self.interrupt_if_late(done)?;
        interrupt(tid)?;
        wait_for_event(tid, LIMIT)?;
        let mut bytes = vec![0; size_of_val(&*entries)];
        memory::read(tid, table, &mut bytes)?;
        Ok(words_of(&bytes).skip(7).step_by(8).map(|result| result as i64).collect())
    }

    /// Until the last result is there, at address `last`.
    fn wait_for_program(&self, last: u64) -> Result<(), TraceeError> {
        let tid = self.tid;
        let start = Instant::now();
        loop {
            let mut result = [0; 8];
            memory::read(tid, last, &mut result)?;
            if u64::from_ne_bytes(result) != PENDING {
                return Ok(());
            }
            match wait(tid, Duration::ZERO) {
                Err(TraceeError::Timeout(_)) if start.elapsed() < LIMIT => pause(start),
                Err(error) => return Err(error),
                Ok(stop) => resume(libc::PTRACE_CONT, tid, stop)?,
            }
        }
    }

    /// A call that hangs is interrupted, so that the task's own state can be put back. (What sleeps
    /// uninterruptibly cannot be helped: the task is lost once it wakes.)
    fn interrupt_if_late(&self, outcome: Result<(), TraceeError>) -> Result<(), TraceeError> {
        if let Err(TraceeError::Timeout(tid)) = outcome {
            interrupt(tid)?;
            wait_for_event(tid, LIMIT)?;
        }
        outcome
    }
}

pub(super) fn to_errno(result: i64) -> Result<u64, Errno> {
    if (-4095..0).contains(&result) {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    Ok(result as u64)
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word))
}

/// Set the mask of blocked signals, and return the one before.
pub(super) fn exchange_mask(tid: i32, mask: u64) -> Result<u64, TraceeError> {
    const SIZE: usize = size_of::<u64>();
    let mut before = 0u64;
    // SAFETY: the kernel writes SIZE bytes to `before`.
    let got = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, SIZE, &mut before) };
    call("reading the signal mask", tid, if got < 0 { Err(last_errno()) } else { Ok(()) })?;
    let set = ptrace(libc::PTRACE_SETSIGMASK, tid, SIZE, &raw const mask as usize);
    call("setting the signal mask", tid, set)?;
    Ok(before)
}
