//! A program's calls on its memory, as values: what the preload library stands in for.
//!
//! [`MemoryCall`] says what is asked of a range, [`issue`] asks the kernel for it. By number, as in [`mm`](super::mm).

use crate::error::SysError;
use libc::{c_int, c_long, c_uint, c_ulong};

/// What a program asks of a range of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryCall {
    /// mprotect, or with a key pkey_mprotect.
    Protect {
        /// `PROT_*`.
        prot: c_int,
        /// The protection key; -1 for mprotect.
        key: c_int,
    },
    /// mlock2; without flags, mlock.
    Lock {
        /// `MLOCK_*`.
        flags: c_uint,
    },
    /// munlock.
    Unlock,
    /// madvise.
    Advise {
        /// `MADV_*`.
        advice: c_int,
    },
    /// mbind.
    Bind {
        /// `MPOL_*`.
        mode: c_int,
        /// The nodes' mask, which the kernel reads.
        nodes: *const c_ulong,
        /// Its length in bits.
        nr_bits: c_ulong,
        /// `MPOL_MF_*`.
        flags: c_uint,
    },
}

/// Makes a call for `[addr, addr + len_bytes)`.
///
/// # Safety
/// The range is the program's, which wants this; what the library knows of it stays true.
///
/// # Errors
/// The refusal of the kernel, which may have done a part.
pub(crate) unsafe fn issue(call: MemoryCall, addr: usize, len_bytes: usize) -> Result<(), SysError> {
    let (name, outcome): (_, c_long) = match call {
        MemoryCall::Protect { prot, key: -1 } => {
            // SAFETY: the caller argued it.
            ("mprotect", unsafe { libc::syscall(libc::SYS_mprotect, addr, len_bytes, prot) })
        }
        MemoryCall::Protect { prot, key } => {
            // SAFETY: as above.
            ("pkey_mprotect", unsafe { libc::syscall(libc::SYS_pkey_mprotect, addr, len_bytes, prot, key) })
        }
        MemoryCall::Lock { flags: 0 } => {
            // SAFETY: as above.
            ("mlock", unsafe { libc::syscall(libc::SYS_mlock, addr, len_bytes) })
        }
        MemoryCall::Lock { flags } => {
            // SAFETY: as above.
            ("mlock2", unsafe { libc::syscall(libc::SYS_mlock2, addr, len_bytes, flags) })
        }
        MemoryCall::Unlock => {
            // SAFETY: as above.
            ("munlock", unsafe { libc::syscall(libc::SYS_munlock, addr, len_bytes) })
        }
        MemoryCall::Advise { advice } => {
            // SAFETY: as above.
            ("madvise", unsafe { libc::syscall(libc::SYS_madvise, addr, len_bytes, advice) })
        }
        MemoryCall::Bind { mode, nodes, nr_bits, flags } => {
            // SAFETY: as above; the kernel checks the mask's address.
            let outcome =
                unsafe { libc::syscall(libc::SYS_mbind, addr, len_bytes, mode, nodes, nr_bits, flags) };
            ("mbind", outcome)
        }
    };
    if outcome == 0 { Ok(()) } else { Err(SysError::last(name)) }
}
