//! What differs on x86_64.

use libc::user_regs_struct;

/// The instruction that enters the kernel: `syscall`.
pub(super) const SYSCALL: &[u8] = &[0x0f, 0x05];

const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
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

/// Was the call interrupted, and will the kernel make it again when the task goes on?
pub(super) fn will_repeat(registers: &user_regs_struct, number: i64, _instruction: u64) -> bool {
    registers.orig_rax as i64 == number && registers.rax as i64 == -ERESTARTNOHAND
}

/// Is it in this call, by this instruction, or about to make it?
pub(super) fn calls_at(registers: &user_regs_struct, number: i64, instruction: u64) -> bool {
    let in_call = registers.rip == instruction + SYSCALL.len() as u64 && registers.orig_rax as i64 == number;
    in_call || (registers.rip == instruction && registers.rax as i64 == number)
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

// The program of a batch: r12 points to the next entry of its table, r13 counts them. The kernel preserves
// both. At the end it sleeps (ppoll of nothing, without limit).
core::arch::global_asm!(
    ".pushsection .rodata.autofs_cr_program, \"a\"",
    ".globl autofs_cr_program, autofs_cr_program_end",
    ".hidden autofs_cr_program, autofs_cr_program_end",
    "autofs_cr_program:",
    "2:",
    "mov rax, [r12]",
    "mov rdi, [r12 + 8]",
    "mov rsi, [r12 + 16]",
    "mov rdx, [r12 + 24]",
    "mov r10, [r12 + 32]",
    "mov r8, [r12 + 40]",
    "mov r9, [r12 + 48]",
    "syscall",
    "mov [r12 + 56], rax",
    "add r12, 64",
    "dec r13",
    "jnz 2b",
    "3:",
    "xor edi, edi",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "xor r8d, r8d",
    "mov eax, {ppoll}",
    "syscall",
    "jmp 3b",
    "autofs_cr_program_end:",
    ".popsection",
    ppoll = const libc::SYS_ppoll,
);

/// Make the registers those of a task that is about to run the program at `program`.
pub(super) fn prepare_program(registers: &mut user_regs_struct, program: u64, table: u64, count: u64) {
    prepare(registers, program, 0, [0; 6]);
    registers.r12 = table;
    registers.r13 = count;
}
