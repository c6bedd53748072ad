//! The sections in AArch64 instructions.
//!
//! As in `x86_64`: text between labels 72 and 73, descriptor at 71, restart at 74 behind the signature that glibc
//! registered. The area is `struct rseq`: the descriptor's address at 8, the processor's number at 4. Its offset is
//! counted from `tpidr_el0`.

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
            "adrp {offset}, :got:__rseq_offset",
            "ldr {offset}, [{offset}, :got_lo12:__rseq_offset]",
            "adrp {size}, :got:__rseq_size",
            "ldr {size}, [{size}, :got_lo12:__rseq_size]",
            offset = out(reg) offset,
            size = out(reg) size,
            options(nostack, pure, readonly, preserves_flags),
        );
    }
    // SAFETY: glibc's constants, which it wrote before any code of ours ran; the size is 0 when it registered nothing.
    (!size.is_null() && unsafe { size.read() } >= 16 && !offset.is_null()).then(|| unsafe { offset.read() })
}

/// Returns the address of the calling thread's area.
///
/// # Safety
/// `area` is the offset of the thread's area.
#[inline(always)]
unsafe fn area_of_thread(area: isize) -> *mut u8 {
    let thread: *mut u8;
    // SAFETY: reads a register.
    unsafe {
        asm!("mrs {thread}, tpidr_el0", thread = out(reg) thread, options(nostack, nomem, preserves_flags));
    }
    thread.wrapping_byte_offset(area)
}

/// Reads the number of this processor, negative when the thread is not registered.
///
/// # Safety
/// `area` is the offset of the thread's area.
#[inline(always)]
pub(super) unsafe fn cpu_id(area: isize) -> i32 {
    // SAFETY: the caller's promise.
    let area = unsafe { area_of_thread(area) };
    // SAFETY: a word of the area, which the kernel writes: hence volatile.
    unsafe { area.add(4).cast::<i32>().read_volatile() }
}

/// Assembles a section: its text and operands. It goes to `{failed}` when it failed. `{at}` comes to point at this processor's element, from `{area}`, `{first}`, `{len}` and `{shift}`; `{scratch}` is free.
macro_rules! section {
    ([$($text:literal,)*], $($operands:tt)*) => {
        asm!(
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "71:",
            ".long 0, 0",
            ".quad 72f, 73f - 72f, 74f",
            ".popsection",
            "adrp {at}, 71b",
            "add {at}, {at}, :lo12:71b",
            "str {at}, [{area}, #8]",
            "72:",
            "ldr {at:w}, [{area}, #4]",
            // Unsigned, so this also stops threads that are not registered.
            "cmp {at:w}, {len:w}",
            "b.hs {failed}",
            "lsl {at}, {at}, #{shift}",
            "add {at}, {at}, {first}",
            $($text,)*
            "73:",
            ".pushsection __rseq_failure, \"ax\"",
            ".inst 0xd428bc00",
            "74:",
            "b {failed}",
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
    // SAFETY: the caller's promise.
    let area = unsafe { area_of_thread(area) };
    // SAFETY: the section writes the calling processor's word only, by the caller's promise.
    unsafe {
        section!(
            [
                "ldar {scratch:w}, [{closed}]",
                "cbnz {scratch:w}, {failed}",
                "ldar {scratch}, [{at}]",
                "cmp {scratch}, {old}",
                "b.ne {failed}",
                "stlr {new}, [{at}]",
            ],
            area = in(reg) area,
            first = in(reg) first,
            len = in(reg) len,
            shift = const SHIFT,
            closed = in(reg) closed,
            old = in(reg) old,
            new = in(reg) new,
            at = out(reg) _,
            scratch = out(reg) _,
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
    // SAFETY: the caller's promise.
    let area = unsafe { area_of_thread(area) };
    // SAFETY: the section writes the calling processor's word only, by the caller's promise.
    unsafe {
        section!(
            [
                "ldar {scratch:w}, [{closed}]",
                "cbnz {scratch:w}, {failed}",
                "ldr {scratch}, [{at}]",
                "add {scratch}, {scratch}, {delta}",
                "stlr {scratch}, [{at}]",
            ],
            area = in(reg) area,
            first = in(reg) first,
            len = in(reg) len,
            shift = const SHIFT,
            closed = in(reg) closed,
            delta = in(reg) delta,
            at = out(reg) _,
            scratch = out(reg) _,
            failed = label { return false },
            options(nostack),
        );
    }
    true
}
