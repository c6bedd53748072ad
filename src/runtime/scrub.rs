//! Clearing a whole device with several threads.
//!
//! `device` has the walk and what is done to a piece; this starts the threads, which end with the call, and adds up what they
//! tell.

use crate::device::{Dax, DeviceError, Pieces, Scrubbed};
use crate::error::SysError;
use std::sync::mpsc;
use std::thread;

/// More than this many threads clear no faster: the device's link is full.
pub const MAX_SCRUB_THREADS: usize = 8;
/// What is taken when nothing is said: it leaves most of a large machine to others.
const USUAL_THREADS: usize = 4;

impl Dax {
    /// Clears whatever nobody has claimed, this process included, and nobody else maps as far as can be seen. Pieces are claimed for
    /// that, one for each thread at a time, so programs may claim the rest meanwhile. What is zero already is only read.
    /// `progress` is called on this thread after each piece with what was done so far. Uses up to four threads, and blocks for as long
    /// as it takes.
    ///
    /// # Errors
    /// [`DeviceError::Gone`] when the device goes, or the refusal of the kernel; what was done before stays done.
    pub fn scrub_free(&self, progress: &mut dyn FnMut(Scrubbed)) -> Result<Scrubbed, DeviceError> {
        let here = thread::available_parallelism().map_or(1, usize::from);
        self.scrub_free_by(USUAL_THREADS.min(here), progress)
    }

    /// As [`scrub_free`](Dax::scrub_free), with so many threads, from 1 to [`MAX_SCRUB_THREADS`].
    ///
    /// # Errors
    /// As for [`scrub_free`](Dax::scrub_free).
    pub fn scrub_free_by(
        &self,
        nr_threads: usize,
        progress: &mut dyn FnMut(Scrubbed),
    ) -> Result<Scrubbed, DeviceError> {
        let pieces = Pieces::of(self)?;
        let most = usize::try_from(pieces.count()).unwrap_or(usize::MAX);
        let nr_threads = nr_threads.clamp(1, MAX_SCRUB_THREADS).min(most);
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let mut refusal = None;
            for _ in 0..nr_threads {
                let (tell, pieces) = (tell.clone(), &pieces);
                let started = thread::Builder::new()
                    .name("daxtier-scrub".to_owned())
                    .spawn_scoped(scope, move || clear(pieces, &tell));
                // Those that there are do the work of the others.
                refusal = refusal.or(started.err());
            }
            drop(tell);
            let mut done = Scrubbed::default();
            let mut outcome = Ok(());
            for piece in told {
                match piece {
                    Ok(piece) => {
                        done += piece;
                        progress(done);
                    }
                    Err(error) => {
                        pieces.end();
                        outcome = outcome.and(Err(error));
                    }
                }
            }
            outcome?;
            match refusal {
                // Not one was started.
                Some(error) if done.seen_bytes() == 0 => {
                    let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                    let source = SysError { call: "clone", errno };
                    Err(DeviceError::Sys { device: crate::device::Device::name(self).to_owned(), source })
                }
                _ => Ok(done),
            }
        })
    }
}

/// Clears pieces until there are no more, or one fails.
fn clear(pieces: &Pieces, tell: &mpsc::Sender<Result<Scrubbed, DeviceError>>) {
    let room = match pieces.room() {
        Ok(room) => room,
        Err(refusal) => {
            let _ = tell.send(Err(refusal));
            return;
        }
    };
    while let Some(piece) = pieces.scrub_next(&room) {
        let is_last = piece.is_err();
        if tell.send(piece).is_err() || is_last {
            return;
        }
    }
}
