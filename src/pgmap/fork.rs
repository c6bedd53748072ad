//! Fork: what a child may still do with the pgmaps that it inherits.
//!
//! Before the fork the forking thread takes every lock of every pgmap, so the child finds whole metadata and free
//! locks. In the child each device says what became of its memory: private memory is the child's own, so nothing
//! changes; a fresh device keeps what was allocated, but folios that were in use through the direct mapping are
//! the parent's; a foreign device's extents are all the parent's, and the child may claim others.
//! Nothing here allocates. `runtime` calls it from its fork handlers.
//!
//! What another thread of the parent was in the middle of stays undone in the child: an offset that it had taken
//! and not yet made a folio stays counted as used.

use super::body::Body;
use super::core::{Core, lock_registry_for_fork, unlock_registry_after_fork};
use super::prezero;
use crate::device::AfterFork;
use std::sync::atomic::Ordering;

/// Takes the locks of all pgmaps. Called by the thread that forks, with no lock of ours held.
pub(crate) fn before_fork() {
    lock_registry_for_fork();
    prezero::lock_for_fork();
    for core in Core::all() {
        if core.try_share() {
            core.lock_for_fork();
            core.is_fork_locked.store(true, Ordering::Relaxed);
        }
    }
}

/// Gives the locks back, in the parent.
pub(crate) fn after_fork_in_parent() {
    unlock_all(|_| ());
}

/// Gives the locks back and brings every pgmap to the state that the child must see. The child has one thread.
pub(crate) fn after_fork_in_child() {
    unlock_all(Core::adapt_in_child);
}

fn unlock_all(adapt: impl Fn(&Core)) {
    // The registry first: the share that is given back below may be the last.
    unlock_registry_after_fork();
    prezero::unlock_after_fork();
    for core in Core::all() {
        if core.is_fork_locked.swap(false, Ordering::Relaxed) {
            core.unlock_after_fork(&adapt);
            core.give_share();
        }
    }
}

impl Core {
    fn lock_for_fork(&self) {
        self.refs.lock_for_fork();
        // SAFETY: before_fork holds a share.
        let body = unsafe { self.body() };
        body.grow.lock_raw();
        if let Some(allocator) = &body.allocator {
            allocator.lock_for_fork();
        }
        for index in body.known_extents() {
            body.table.lock_for_fork(body.claimed_range(index));
        }
        body.prezeroed.lock_for_fork();
    }

    fn unlock_after_fork(&self, adapt: impl Fn(&Core)) {
        // SAFETY: before_fork took a share, which is given back after this.
        let body = unsafe { self.body() };
        body.prezeroed.unlock_after_fork();
        for index in body.known_extents() {
            body.table.unlock_after_fork(body.claimed_range(index));
        }
        if let Some(allocator) = &body.allocator {
            allocator.unlock_after_fork();
        }
        body.grow.unlock_raw();
        self.refs.unlock_after_fork();
        adapt(self);
    }

    fn adapt_in_child(&self) {
        // SAFETY: before_fork took a share, which is given back after this.
        let body = unsafe { self.body() };
        if let Some(allocator) = &body.allocator {
            allocator.finish_frees_in_child();
        }
        body.end_pool_in_child();
        let before = body.count_live();
        match body.device.after_fork_in_child() {
            AfterFork::Private => {}
            AfterFork::Fresh => body.disown_addressed_in_child(),
            AfterFork::Foreign => body.disown_all_in_child(),
        }
        let live = body.count_live();
        if live < before {
            // Folio values of the child still name disowned folios, without a reference: the body stays for good.
            self.share();
        }
        // The parent's other threads are gone, and with them the references that they held for a moment.
        let was_zero = self.refs.is_zero();
        self.refs.reset_in_child(live);
        if self.refs.is_zero() && !was_zero {
            self.note_drained();
        }
    }
}

impl Body {
    fn count_live(&self) -> u64 {
        let mut live = 0;
        self.for_each_live(&mut |_| live += 1);
        live
    }

    fn disown_addressed_in_child(&self) {
        for index in self.known_extents().filter(|&index| self.is_mapped(index)) {
            self.table.mark_forked_in_child(self.claimed_range(index));
        }
        self.reserve_again_in_child();
    }

    fn disown_all_in_child(&self) {
        let mut grow = self.grow.lock();
        self.reserve_again_in_child();
        self.make_claims_foreign_in_child(&mut grow);
        if let Some(allocator) = &self.allocator {
            allocator.forget_extents_in_child();
        }
        self.counters.reset_in_child();
        self.is_forked.store(true, Ordering::Relaxed);
    }
}
