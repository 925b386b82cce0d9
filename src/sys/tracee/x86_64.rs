//! What differs on x86_64.

use libc::user_regs_struct;

/// The instruction that enters the kernel: `syscall`.
pub(super) const SYSCALL: &[u8] = &[0x0f, 0x05];

const ERESTARTNOINTR: i64 = 513;
/// The selector of 64-bit user code.
const USER_CODE: u64 = 0x33;
/// Where it can start.
pub(super) const ALIGNMENT: usize = 1;

/// What must be known of a task before it stops: here nothing.
#[derive(Clone, Debug)]
pub(super) struct Before;

impl Before {
    pub(super) fn of(_tid: i32) -> Self {
        Self
    }
}

pub(super) fn is_native(registers: &user_regs_struct) -> bool {
    registers.cs == USER_CODE
}

/// Make the registers those of a task that is about to execute the instruction at `instruction`.
pub(super) fn prepare(registers: &mut user_regs_struct, instruction: u64, number: i64, arguments: [u64; 6]) {
    registers.rip = instruction;
    registers.rax = number as u64;
    // In no system call: else the kernel might restart one when the task goes on.
    registers.orig_rax = u64::MAX;
    [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] = arguments;
}

/// After the call.
pub(super) fn result(registers: &user_regs_struct) -> i64 {
    registers.rax as i64
}

/// Number and result of the call that was interrupted.
pub(super) fn current_call(registers: &user_regs_struct, _: &Before) -> Option<(u64, i64)> {
    // a 32-bit program has 32-bit results
    let result = if is_native(registers) { registers.rax as i64 } else { i64::from(registers.rax as i32) };
    (registers.orig_rax as i64 >= 0).then_some((registers.orig_rax, result))
}

/// The kernel looks at the result once more when the task goes on, and steps back to the instruction.
pub(super) fn restart(registers: &mut user_regs_struct, before: &Before) -> bool {
    let in_call = current_call(registers, before).is_some();
    if in_call {
        registers.rax = -ERESTARTNOINTR as u64;
    }
    in_call
}
