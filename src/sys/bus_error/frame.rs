//! A call that can be abandoned: what setjmp and longjmp do, for one function and its frames.

use libc::c_void;

pub(super) use arch::{abandon, enter};

/// Makes the interrupted thread go on in [`abandon`].
///
/// # Safety
/// `context` is what the kernel passed to a signal handler of the thread that is inside [`enter`], which left `frame`.
pub(super) unsafe fn go_on_at(context: *mut c_void, frame: usize) {
    let landing = abandon as *const () as usize;
    // SAFETY: the caller argued it.
    unsafe { arch::go_on_at(context.cast(), frame, landing) };
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use libc::c_void;
    use std::arch::naked_asm;

    /// Calls `work(arg)` and returns 0, or 1 if it was abandoned. `*frame` is the stack pointer to abandon it with.
    ///
    /// # Safety
    /// `work` keeps to the contract of `guarded`; `frame` is writable.
    #[unsafe(naked)]
    pub(in super::super) unsafe extern "C" fn enter(
        work: extern "C" fn(*mut c_void),
        arg: *mut c_void,
        frame: *mut usize,
    ) -> i32 {
        // Saves what a function must preserve; the eighth word aligns the stack for the call.
        naked_asm!(
            "push rbp",
            "push rbx",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "sub rsp, 8",
            "mov [rdx], rsp",
            "mov rax, rdi",
            "mov rdi, rsi",
            "call rax",
            "xor eax, eax",
            "jmp {leave}",
            leave = sym leave,
        )
    }

    /// Returns 1 from the `enter` whose frame the stack pointer names.
    ///
    /// # Safety
    /// Only ever jumped to.
    #[unsafe(naked)]
    pub(in super::super) unsafe extern "C" fn abandon() {
        naked_asm!(
            "mov eax, 1",
            "jmp {leave}",
            leave = sym leave,
        )
    }

    /// The end of `enter`: gives back what it saved, and returns what the result register holds.
    ///
    /// # Safety
    /// Only ever jumped to.
    #[unsafe(naked)]
    unsafe extern "C" fn leave() {
        naked_asm!("add rsp, 8", "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp", "ret",)
    }

    /// # Safety
    /// As for the function of this name above.
    pub(super) unsafe fn go_on_at(context: *mut libc::ucontext_t, frame: usize, landing: usize) {
        // SAFETY: the caller argued that the context is valid.
        let registers = unsafe { &mut (*context).uc_mcontext.gregs };
        registers[libc::REG_RSP as usize] = frame as i64;
        registers[libc::REG_RIP as usize] = landing as i64;
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use libc::c_void;
    use std::arch::naked_asm;

    /// Calls `work(arg)` and returns 0, or 1 if it was abandoned. `*frame` is the stack pointer to abandon it with.
    ///
    /// # Safety
    /// `work` keeps to the contract of `guarded`; `frame` is writable.
    #[unsafe(naked)]
    pub(in super::super) unsafe extern "C" fn enter(
        work: extern "C" fn(*mut c_void),
        arg: *mut c_void,
        frame: *mut usize,
    ) -> i32 {
        // Saves what a function must preserve: x19 to x30, and the low halves of v8 to v15.
        naked_asm!(
            "stp x29, x30, [sp, #-160]!",
            "stp x19, x20, [sp, #16]",
            "stp x21, x22, [sp, #32]",
            "stp x23, x24, [sp, #48]",
            "stp x25, x26, [sp, #64]",
            "stp x27, x28, [sp, #80]",
            "stp d8, d9, [sp, #96]",
            "stp d10, d11, [sp, #112]",
            "stp d12, d13, [sp, #128]",
            "stp d14, d15, [sp, #144]",
            "mov x9, sp",
            "str x9, [x2]",
            "mov x9, x0",
            "mov x0, x1",
            "blr x9",
            "mov w0, #0",
            "b {leave}",
            leave = sym leave,
        )
    }

    /// Returns 1 from the `enter` whose frame the stack pointer names.
    ///
    /// # Safety
    /// Only ever jumped to.
    #[unsafe(naked)]
    pub(in super::super) unsafe extern "C" fn abandon() {
        naked_asm!(
            "mov w0, #1",
            "b {leave}",
            leave = sym leave,
        )
    }

    /// The end of `enter`: gives back what it saved, and returns what the result register holds.
    ///
    /// # Safety
    /// Only ever jumped to.
    #[unsafe(naked)]
    unsafe extern "C" fn leave() {
        naked_asm!(
            "ldp x19, x20, [sp, #16]",
            "ldp x21, x22, [sp, #32]",
            "ldp x23, x24, [sp, #48]",
            "ldp x25, x26, [sp, #64]",
            "ldp x27, x28, [sp, #80]",
            "ldp d8, d9, [sp, #96]",
            "ldp d10, d11, [sp, #112]",
            "ldp d12, d13, [sp, #128]",
            "ldp d14, d15, [sp, #144]",
            "ldp x29, x30, [sp], #160",
            "ret",
        )
    }

    /// # Safety
    /// As for the function of this name above.
    pub(super) unsafe fn go_on_at(context: *mut libc::ucontext_t, frame: usize, landing: usize) {
        // SAFETY: the caller argued that the context is valid.
        let machine = unsafe { &mut (*context).uc_mcontext };
        machine.sp = frame as u64;
        machine.pc = landing as u64;
    }
}

/// Other machines: work is not guarded, and a fault in it is the program's.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    use libc::c_void;

    pub(in super::super) unsafe extern "C" fn enter(
        work: extern "C" fn(*mut c_void),
        arg: *mut c_void,
        _frame: *mut usize,
    ) -> i32 {
        work(arg);
        0
    }

    pub(in super::super) unsafe extern "C" fn abandon() {}

    pub(super) unsafe fn go_on_at(_context: *mut libc::ucontext_t, _frame: usize, _landing: usize) {}
}
