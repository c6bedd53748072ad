//! The thread that keeps pgmaps supplied with zeroed folios.
//!
//! `pgmap` has the pools and what is done to them; this starts the thread and has it do one folio after the other. It
//! sleeps on a bell while every pool is full, or finds nothing free. There is one thread for the process, from the first
//! pool on. A forked child has none until it asks for a pool itself.

use super::fork;
use crate::folio::FolioError;
use crate::pgmap::Pgmap;
use crate::pgmap::prezero::{BELL, Filled, fill_one};
use crate::sync::{StaticMutex, service};
use crate::sys::thread::{self, Urgency};
use std::time::Duration;

/// The process whose thread runs; 0 before there is one. Locked in service only.
static RUNS_IN: StaticMutex<u32> = StaticMutex::new(0);

/// How long the thread rests when nothing was free: programs that live at the limit free something all the time.
const REST: Duration = Duration::from_millis(10);

impl Pgmap {
    /// Keeps up to `count` folios of 2 MiB ready that are zero already. A thread of the library clears free memory for
    /// it in the background; [`alloc_folio_zeroed`](Pgmap::alloc_folio_zeroed) then takes one in the time of any other folio.
    /// 0 ends it. Returns at once.
    ///
    /// What is ready is free memory all the same: it counts as free, and a request that finds nothing else gets it. It does
    /// occupy memory of the machine. [`PgmapStats::prezeroed_bytes`](crate::pgmap::PgmapStats::prezeroed_bytes) says how much is
    /// ready. A forked child has nothing ready until it calls this itself.
    ///
    /// # Errors
    /// [`FolioError::OwnOffsets`] without the built-in allocator, [`FolioError::OrderTooSmall`] and
    /// [`FolioError::OrderTooLarge`] where there are no folios of 2 MiB, [`FolioError::Dying`], and the refusal of a thread.
    ///
    /// # Example
    /// ```
    /// use daxtier::{Lifetime, Order, Pgmap, PgmapOptions, device::Emulated};
    /// use std::{sync::Arc, thread, time::Duration};
    ///
    /// let pgmap = Pgmap::bind(Arc::new(Emulated::new(64 << 20, 2 << 20)?), PgmapOptions::default())?;
    /// pgmap.keep_zeroed(4)?;
    /// while pgmap.stats().prezeroed_bytes < 8 << 20 {
    ///     thread::sleep(Duration::from_millis(1));
    /// }
    /// let mut folio = pgmap.alloc_folio_zeroed(Order::HUGE, Lifetime::Short)?;
    /// assert!(folio.as_mut_slice().unwrap().iter().all(|&byte| byte == 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn keep_zeroed(&self, count: usize) -> Result<(), FolioError> {
        service::run(|| {
            if count > 0 {
                start()?;
            }
            self.core().keep_zeroed(count)
        })
    }
}

/// Starts the thread, once a process. Runs in service.
fn start() -> Result<(), FolioError> {
    let mut runs_in = RUNS_IN.lock();
    if *runs_in == std::process::id() {
        return Ok(());
    }
    // The thread takes locks that a child must find free.
    fork::register();
    thread::spawn_own(fill, 0, Urgency::Background, None)?;
    *runs_in = std::process::id();
    Ok(())
}

extern "C" fn fill(_: usize) {
    loop {
        BELL.hear();
        let mut filled = Filled::One;
        while filled == Filled::One {
            // Each in a section of its own: a fork waits for one folio at most.
            filled = service::run(fill_one);
        }
        BELL.wait();
        if filled == Filled::Starved {
            std::thread::sleep(REST);
        }
    }
}
