//! What only the running kernel and C library can tell.

use daxtier::device::NodeMemory;

/// Answers of the running system; `None` where it was not asked, because another machine's tree is looked at.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// The commands that membarrier(2) knows, as bits; an errno when the call is refused.
    pub(super) membarrier: Option<Result<u32, i32>>,
    /// The size of the rseq area that the C library registered; 0 when it registers none.
    pub(super) rseq_bytes: Option<u32>,
    /// Whether memory can be bound to node 0.
    pub(super) binding: Option<Result<(), String>>,
}

impl Probe {
    /// Asks the running system. Changes nothing.
    pub(super) fn of_this_process() -> Probe {
        Probe {
            membarrier: Some(membarrier_commands()),
            rseq_bytes: Some(rseq_bytes()),
            binding: Some(
                NodeMemory::new(0, NodeMemory::ALIGN_BYTES).map(drop).map_err(|error| error.to_string()),
            ),
        }
    }
}

fn membarrier_commands() -> Result<u32, i32> {
    // SAFETY: membarrier's query takes three numbers and changes nothing.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_QUERY, 0, 0) };
    u32::try_from(answer).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOSYS))
}

/// Reads `__rseq_size`, which glibc has since 2.35.
fn rseq_bytes() -> u32 {
    // SAFETY: dlsym takes the default handle and a NUL-terminated name.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) };
    if symbol.is_null() {
        return 0;
    }
    // SAFETY: glibc documents `__rseq_size` as a constant `unsigned int` that lives as long as the process.
    unsafe { symbol.cast::<u32>().read() }
}
