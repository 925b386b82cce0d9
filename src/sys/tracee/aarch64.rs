//! What differs on aarch64.
//!
//! Before an interrupted task stops the kernel forgets which system call it was in (its number stays
//! in x8), decides about the restart, and has overwritten the first argument with the result. So a
//! restart is made here by hand, and the first argument is noted while the task still sleeps.

use libc::user_regs_struct;

/// The instruction that enters the kernel: `svc #0`.
pub(super) const SYSCALL: &[u8] = &[0x01, 0x00, 0x00, 0xd4];
/// Where it can start.
pub(super) const ALIGNMENT: usize = 4;

/// The mode bits of pstate for AArch32.
const AARCH32: u64 = 1 << 4;

/// The call in which the task slept when it was seized: number, six arguments, stack pointer,
/// program counter.
#[derive(Clone, Debug)]
pub(super) struct Before(Option<[u64; 9]>);

impl Before {
    pub(super) fn of(tid: i32) -> Self {
        // `running` for a task that sleeps not.
        let text = std::fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
        let mut fields = text.split_ascii_whitespace().map(|field| match field.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => field.parse().ok(),
        });
        let mut values = [0; 9];
        let complete = values.iter_mut().all(|value| match fields.next().flatten() {
            Some(field) => {
                *value = field;
                true
            }
            None => false,
        });
        Self(complete.then_some(values))
    }

    /// The first argument, when the registers are still those of that call.
    fn first_argument(&self, registers: &user_regs_struct) -> Option<u64> {
        let [number, first, second, third, .., stack, instruction] = self.0?;
        let now = (registers.regs[8], registers.regs[1], registers.regs[2], registers.sp, registers.pc);
        (now == (number, second, third, stack, instruction)).then_some(first)
    }
}

pub(super) fn is_native(registers: &user_regs_struct) -> bool {
    registers.pstate & AARCH32 == 0
}

/// Make the registers those of a task that is about to execute the instruction at `instruction`.
pub(super) fn prepare(registers: &mut user_regs_struct, instruction: u64, number: i64, arguments: [u64; 6]) {
    registers.pc = instruction;
    registers.regs[8] = number as u64;
    registers.regs[..6].copy_from_slice(&arguments);
}

/// After the call.
pub(super) fn result(registers: &user_regs_struct) -> i64 {
    registers.regs[0] as i64
}

/// Was the call interrupted, and will it be made again when the task goes on? The kernel has stepped back already.
pub(super) fn will_repeat(registers: &user_regs_struct, number: i64, instruction: u64) -> bool {
    registers.regs[8] as i64 == number && registers.pc == instruction
}

/// Is it in this call, by this instruction, or about to make it?
pub(super) fn calls_at(registers: &user_regs_struct, number: i64, instruction: u64) -> bool {
    registers.regs[8] as i64 == number
        && [instruction, instruction + SYSCALL.len() as u64].contains(&registers.pc)
}

/// Number and result of the call that was interrupted.
pub(super) fn current_call(registers: &user_regs_struct, before: &Before) -> Option<(u64, i64)> {
    before.first_argument(registers)?;
    Some((registers.regs[8], registers.regs[0] as i64))
}

/// Back to the instruction, with the argument that the result has overwritten.
pub(super) fn restart(registers: &mut user_regs_struct, before: &Before) -> bool {
    let first = before.first_argument(registers);
    if let Some(first) = first {
        registers.regs[0] = first;
        registers.pc -= SYSCALL.len() as u64;
    }
    first.is_some()
}

// The program of a batch: x19 points to the next entry of its table, x20 counts them. The kernel preserves
// both. At the end it sleeps (ppoll of nothing, without limit).
core::arch::global_asm!(
    ".pushsection .rodata.autofs_cr_program, \"a\"",
    ".globl autofs_cr_program, autofs_cr_program_end",
    ".hidden autofs_cr_program, autofs_cr_program_end",
    "autofs_cr_program:",
    "2:",
    "ldp x8, x0, [x19]",
    "ldp x1, x2, [x19, 16]",
    "ldp x3, x4, [x19, 32]",
    "ldp x5, x9, [x19, 48]",
    "svc 0",
    "str x0, [x19, 56]",
    "add x19, x19, 64",
    "subs x20, x20, 1",
    "b.ne 2b",
    "3:",
    "mov x0, 0",
    "mov x1, 0",
    "mov x2, 0",
    "mov x3, 0",
    "mov x4, 0",
    "mov x8, {ppoll}",
    "svc 0",
    "b 3b",
    "autofs_cr_program_end:",
    ".popsection",
    ppoll = const libc::SYS_ppoll,
);

/// Make the registers those of a task that is about to run the program at `program`.
pub(super) fn prepare_program(registers: &mut user_regs_struct, program: u64, table: u64, count: u64) {
    registers.pc = program;
    registers.regs[19] = table;
    registers.regs[20] = count;
}
