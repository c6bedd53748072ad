//! The part of a pgmap that outlives it: its reference count and its place in the registry.
//!
//! A [`Core`] is never freed, only recycled, so a stale id or reference can be looked up at any time: it finds a
//! count that refuses it, or another pgmap whose id does not match. The [`Body`] inside lives exactly as long as
//! somebody has a share of its life. The registry hands out ids round robin, so an id is not used again soon.
//! Uses `sync`; used by the rest of `pgmap` and by `folio`.
//!
//! Progress: looking up and pinning is lock-free; binding and the end of a pgmap take the registry's lock.
//!
//! # Invariants
//! I1: `life` counts the handles, plus one until the count of references has drained; the body exists while it
//! is above 0.
//! I2: a reference (of a folio, or a pin) keeps the count from draining, and so the body alive.
//! I3: `id` is the body's while `life` is above 0, and 0 otherwise; it changes only when no share is left.

use super::PgmapError;
use super::body::Body;
use crate::sync::percpu_ref::Remaining;
use crate::sync::{PercpuRef, StaticMutex};
use crate::sys::{cpu, futex};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

/// The immortal part of a pgmap.
pub(crate) struct Core {
    /// I3. Written by bind and by the end of the body.
    id: AtomicU32,
    /// One reference per live folio and per call under way, and the initial one.
    pub(crate) refs: PercpuRef,
    /// I1.
    life: AtomicUsize,
    /// Handles alone; the last one to go kills the pgmap.
    handles: AtomicUsize,
    /// Counts the times that the references drained; drainers sleep on it.
    drained: AtomicU32,
    /// Whether the thread that forks holds this pgmap's locks and a share of its life.
    pub(super) is_fork_locked: AtomicBool,
    body: UnsafeCell<MaybeUninit<Body>>,
    /// The next core of all that were ever made. Written once, before the core is published.
    next: AtomicPtr<Core>,
    /// The next free core. Under the registry's lock.
    next_free: AtomicPtr<Core>,
}

// SAFETY: the body is written before `life` is published, is shared as `&Body` (which is Sync) by holders of a
// share, and is dropped by whoever gives the last share back; everything else is atomic.
unsafe impl Sync for Core {}
// SAFETY: nothing in a core belongs to a thread.
unsafe impl Send for Core {}

const NR_IDS: usize = 1 << 16;

/// The core of each id, NULL for ids that are free. 512 KiB that are touched where they are used.
static CORES: [AtomicPtr<Core>; NR_IDS] = [const { AtomicPtr::new(ptr::null_mut()) }; NR_IDS];
/// All cores that were ever made.
static ALL: AtomicPtr<Core> = AtomicPtr::new(ptr::null_mut());
static REGISTRY: StaticMutex<Registry> = StaticMutex::new(Registry { last_id: 0, free: ptr::null_mut() });

struct Registry {
    last_id: u16,
    free: *mut Core,
}

// SAFETY: the pointer leads to immortal cores.
unsafe impl Send for Registry {}

impl Core {
    /// Takes a free id and a core for it.
    ///
    /// # Errors
    /// [`PgmapError::TooMany`].
    pub(super) fn reserve() -> Result<(&'static Core, u16), PgmapError> {
        let core = Core::unused();
        let mut registry = REGISTRY.lock();
        let Some(id) = registry.next_id() else {
            registry.put_free(core);
            return Err(PgmapError::TooMany);
        };
        registry.last_id = id;
        // Release: pairs with the Acquire of `find`.
        CORES[usize::from(id)].store(ptr::from_ref(core).cast_mut(), Ordering::Release);
        Ok((core, id))
    }

    /// Takes a free core or makes one, outside the lock because that allocates.
    fn unused() -> &'static Core {
        if let Some(core) = REGISTRY.lock().take_free() {
            return core;
        }
        let core: &'static Core = Box::leak(Box::new(Core {
            id: AtomicU32::new(0),
            refs: PercpuRef::new_drained(cpu::nr_shards()),
            life: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            drained: AtomicU32::new(0),
            is_fork_locked: AtomicBool::new(false),
            body: UnsafeCell::new(MaybeUninit::uninit()),
            next: AtomicPtr::new(ptr::null_mut()),
            next_free: AtomicPtr::new(ptr::null_mut()),
        }));
        let mut first = ALL.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the CAS.
            core.next.store(first, Ordering::Relaxed);
            // Release: pairs with the Acquire of `all`.
            match ALL.compare_exchange(
                first,
                ptr::from_ref(core).cast_mut(),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return core,
                Err(now) => first = now,
            }
        }
    }

    /// Gives a reserved core back that was not started.
    pub(super) fn cancel(&'static self, id: u16) {
        let mut registry = REGISTRY.lock();
        CORES[usize::from(id)].store(ptr::null_mut(), Ordering::Release);
        registry.put_free(self);
    }

    /// Moves `body` in and brings the pgmap to life, with one handle that the caller owns.
    pub(super) fn start(&'static self, id: u16, body: Body) {
        // SAFETY: the core is reserved and not started, so nobody else looks at the body (I1).
        let slot = unsafe { &mut *self.body.get() };
        slot.write(body);
        self.handles.store(1, Ordering::Relaxed);
        // Release: pairs with the Acquire of `pin`, by way of the count.
        self.id.store(u32::from(id), Ordering::Release);
        self.refs.recycle();
        // Release: pairs with the Acquire of `try_share`.
        self.life.store(2, Ordering::Release);
    }

    /// Returns the body. The caller holds a share of the life, or a reference (I1, I2).
    ///
    /// # Safety
    /// As said; it is not given back while the result is in use.
    pub(crate) unsafe fn body(&self) -> &Body {
        // SAFETY: the caller's share or reference keeps the body initialised.
        let slot = unsafe { &*self.body.get() };
        // SAFETY: `start` wrote it.
        unsafe { slot.assume_init_ref() }
    }

    /// Finds the core that has the id now, if any; nothing is held.
    pub(crate) fn find(id: u16) -> Option<&'static Core> {
        // Acquire: pairs with the Release of `reserve`.
        let core = NonNull::new(CORES[usize::from(id)].load(Ordering::Acquire))?;
        // SAFETY: cores are never freed.
        Some(unsafe { core.as_ref() })
    }

    /// Takes a reference to the pgmap with this id unless it has drained; [`unpin`](Core::unpin) drops it.
    pub(crate) fn pin(id: u16) -> Option<&'static Core> {
        Core::pin_if(id, PercpuRef::tryget)
    }

    /// Takes a reference to the pgmap with this id unless it was killed.
    pub(crate) fn pin_live(id: u16) -> Option<&'static Core> {
        Core::pin_if(id, PercpuRef::tryget_live)
    }

    fn pin_if(id: u16, tryget: impl FnOnce(&PercpuRef) -> bool) -> Option<&'static Core> {
        let core = Core::find(id)?;
        if !tryget(&core.refs) {
            return None;
        }
        // The reference keeps the body, and with it the id, as they are (I2, I3).
        // Relaxed: tryget's Acquire ordered.
        if core.id.load(Ordering::Relaxed) == u32::from(id) {
            return Some(core);
        }
        core.unpin();
        None
    }

    /// Drops a reference. The body may be gone afterwards.
    pub(crate) fn unpin(&self) {
        if self.refs.put() == Remaining::Zero {
            self.note_drained();
        }
    }

    /// Does what is due when the references drained: wakes drainers and gives their share of the life back.
    pub(super) fn note_drained(&self) {
        // Release: pairs with the Acquire of `drained_events`.
        self.drained.fetch_add(1, Ordering::Release);
        futex::wake(&self.drained, i32::MAX);
        self.give_share();
    }

    /// Returns the word that counts drains, to sleep on.
    pub(super) fn drained_events(&self) -> &AtomicU32 {
        &self.drained
    }

    /// Takes a share of the life unless the body is gone.
    pub(super) fn try_share(&self) -> bool {
        // Acquire: pairs with the Release of `start`.
        self.life
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |life| (life > 0).then_some(life + 1))
            .is_ok()
    }

    /// Takes one more share. The caller holds one, or a reference.
    pub(super) fn share(&self) {
        // Relaxed: the caller's own share or reference orders.
        self.life.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives a share back; with the last one goes the body.
    pub(super) fn give_share(&self) {
        // AcqRel: Release publishes our use of the body to whoever drops it; Acquire lets that one see all.
        if self.life.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end();
        }
    }

    #[cold]
    fn end(&self) {
        {
            // SAFETY: life is 0 and the body not yet dropped.
            let body = unsafe { self.body() };
            if body.had_pool() {
                self.leave_pools();
            }
        }
        // SAFETY: life is 0, so no share and no reference is left (I1, I2), and who fills pools does not know the body any
        // more (`prezero` I3): nobody else looks at it.
        let slot = unsafe { &mut *self.body.get() };
        // SAFETY: `start` wrote it, and it is dropped once per start.
        unsafe { slot.assume_init_drop() };
        let id = self.id.swap(0, Ordering::Relaxed);
        let mut registry = REGISTRY.lock();
        CORES[id as usize].store(ptr::null_mut(), Ordering::Release);
        registry.put_free(self);
    }

    /// Makes one more handle. The caller holds a share or a reference.
    pub(super) fn add_handle(&self) {
        self.share();
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes a handle for the pgmap with this id, if there is one.
    pub(super) fn try_handle(id: u16) -> Option<&'static Core> {
        let core = Core::find(id).filter(|core| core.try_share())?;
        // Relaxed: try_share's Acquire ordered, and the share keeps the id as it is.
        if core.id.load(Ordering::Relaxed) != u32::from(id) {
            core.give_share();
            return None;
        }
        core.handles.fetch_add(1, Ordering::Relaxed);
        Some(core)
    }

    /// Runs `f` on the body of the pgmap with this id, drained or not, if there is one.
    pub(crate) fn with_body<R>(id: u16, f: impl FnOnce(&Body) -> R) -> Option<R> {
        let core = Core::find(id).filter(|core| core.try_share())?;
        // Relaxed: try_share's Acquire ordered, and the share keeps the id as it is.
        let is_it = core.id.load(Ordering::Relaxed) == u32::from(id);
        // SAFETY: the share keeps the body.
        let result = is_it.then(|| f(unsafe { core.body() }));
        core.give_share();
        result
    }

    /// Drops a handle; the last one kills the pgmap.
    pub(super) fn drop_handle(&self) {
        // AcqRel: what other handles did comes before the kill.
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1 && self.refs.kill() == Ok(Remaining::Zero) {
            self.note_drained();
        }
        self.give_share();
    }

    /// Returns the pgmap's id, 0 when there is no body.
    pub(crate) fn id(&self) -> u16 {
        // Relaxed: callers hold a share or reference, or take the answer for a snapshot.
        self.id.load(Ordering::Relaxed) as u16
    }

    /// Returns every core that was ever made; most have no body.
    pub(super) fn all() -> impl Iterator<Item = &'static Core> {
        // Acquire: pairs with the Release of `unused`.
        let mut next = ALL.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: cores are never freed.
            let core = unsafe { NonNull::new(next)?.as_ref() };
            // Relaxed: written before the core was published.
            next = core.next.load(Ordering::Relaxed);
            Some(core)
        })
    }
}

/// Keeps pgmaps from coming and going while the process forks.
pub(super) fn lock_registry_for_fork() {
    REGISTRY.lock_raw();
}

/// Ends [`lock_registry_for_fork`], on both sides.
pub(super) fn unlock_registry_after_fork() {
    REGISTRY.unlock_raw();
}

impl Registry {
    /// Finds the next free id after the last one, round robin.
    fn next_id(&self) -> Option<u16> {
        let start = self.last_id;
        (1..=u16::MAX).map(|step| start.wrapping_add(step)).find(|&id| {
            // Relaxed: ids change under the lock.
            id != 0 && CORES[usize::from(id)].load(Ordering::Relaxed).is_null()
        })
    }

    fn take_free(&mut self) -> Option<&'static Core> {
        let free = NonNull::new(self.free)?;
        // SAFETY: cores are never freed.
        let core = unsafe { free.as_ref() };
        self.free = core.next_free.load(Ordering::Relaxed);
        Some(core)
    }

    fn put_free(&mut self, core: &Core) {
        core.next_free.store(self.free, Ordering::Relaxed);
        self.free = ptr::from_ref(core).cast_mut();
    }
}
