//! The sections in x86-64 instructions.
//!
//! A section's text stands between labels 72 and 73, and its descriptor (label 71) in a table of its own. Its last
//! instruction is the commit. When the kernel restarts it, it goes on at label 74, before which the signature stands
//! that glibc registered. The area is `struct rseq`: the descriptor's address at 8, the processor's number at 4.
//! The pointer to the descriptor is left behind: the kernel clears it when it next looks.

use std::arch::asm;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Returns the offset of the area that glibc registered, if it did.
pub(super) fn registered_area() -> Option<isize> {
    let (offset, size): (*const isize, *const u32);
    // SAFETY: reads two entries of the global offset table. The references are weak: an older glibc leaves them null.
    unsafe {
        asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "mov {offset}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {size}, qword ptr [rip + __rseq_size@GOTPCREL]",
            offset = out(reg) offset,
            size = out(reg) size,
            options(nostack, pure, readonly, preserves_flags),
        );
    }
    // SAFETY: glibc's constants, which it wrote before any code of ours ran; the size is 0 when it registered nothing.
    (!size.is_null() && unsafe { size.read() } >= 16 && !offset.is_null()).then(|| unsafe { offset.read() })
}

/// Reads the number of this processor, negative when the thread is not registered.
///
/// # Safety
/// `area` is the offset of the thread's area.
#[inline(always)]
pub(super) unsafe fn cpu_id(area: isize) -> i32 {
    let number;
    // SAFETY: reads a word of the area.
    unsafe {
        asm!(
            "mov {number:e}, dword ptr fs:[{area} + 4]",
            number = out(reg) number,
            area = in(reg) area,
            options(nostack, readonly, preserves_flags),
        );
    }
    number
}

/// Assembles a section: its text and operands. It goes to `{failed}` when it failed. `{at}` comes to point at this
/// processor's element, from `{area}`, `{first}`, `{len}` and `{shift}`.
macro_rules! section {
    ([$($text:literal,)*], $($operands:tt)*) => {
        asm!(
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "71:",
            ".long 0, 0",
            ".quad 72f, 73f - 72f, 74f",
            ".popsection",
            "lea {at}, [rip + 71b]",
            "mov qword ptr fs:[{area} + 8], {at}",
            "72:",
            "mov {at:e}, dword ptr fs:[{area} + 4]",
            // Unsigned, so this also stops threads that are not registered.
            "cmp {at:e}, {len:e}",
            "jae {failed}",
            "shl {at}, {shift}",
            "add {at}, {first}",
            $($text,)*
            "73:",
            ".pushsection __rseq_failure, \"ax\"",
            // ud1 edi, [rip + signature], so that a disassembler keeps its step.
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "74:",
            "jmp {failed}",
            ".popsection",
            $($operands)*
        )
    };
}

/// See `rseq::exchange_unless_closed`.
///
/// # Safety
/// `area` is the offset of the thread's area; `first` is in the first of `len` elements of `1 << SHIFT` bytes.
#[inline(always)]
pub(super) unsafe fn exchange_unless_closed<const SHIFT: u32>(
    area: isize,
    first: *const AtomicU64,
    len: u32,
    closed: &AtomicU32,
    old: u64,
    new: u64,
) -> bool {
    // SAFETY: the section writes the calling processor's word only, by the caller's promise. x86 gives loads Acquire
    // and stores Release semantics.
    unsafe {
        section!(
            [
                "cmp dword ptr [{closed}], 0",
                "jne {failed}",
                "cmp qword ptr [{at}], {old}",
                "jne {failed}",
                "mov qword ptr [{at}], {new}",
            ],
            area = in(reg) area,
            first = in(reg) first,
            len = in(reg) len,
            shift = const SHIFT,
            closed = in(reg) closed,
            old = in(reg) old,
            new = in(reg) new,
            at = out(reg) _,
            failed = label { return false },
            options(nostack),
        );
    }
    true
}

/// See `rseq::add_unless_closed`.
///
/// # Safety
/// As for [`exchange_unless_closed`].
#[inline(always)]
pub(super) unsafe fn add_unless_closed<const SHIFT: u32>(
    area: isize,
    first: *const AtomicU64,
    len: u32,
    closed: &AtomicU32,
    delta: u64,
) -> bool {
    // SAFETY: the section writes the calling processor's word only, by the caller's promise. x86 gives loads Acquire
    // and stores Release semantics.
    unsafe {
        section!(
            [
                "cmp dword ptr [{closed}], 0",
                "jne {failed}",
                "add qword ptr [{at}], {delta}",
            ],
            area = in(reg) area,
            first = in(reg) first,
            len = in(reg) len,
            shift = const SHIFT,
            closed = in(reg) closed,
            delta = in(reg) delta,
            at = out(reg) _,
            failed = label { return false },
            options(nostack),
        );
    }
    true
}
