//! Where slots get their folios: the tiers of a pool, in the order that its policy says.
//!
//! [`Tiers`] owns a pool's tiers and their books; a [`PlacedSource`] is one way to choose among them. The heap and
//! the runs see it as a [`SlotSource`].

use super::config::Control;
use super::control;
use super::publish::StatsPage;
use super::stats::PoolStats;
use crate::counters::MigrationCounters;
use crate::error::SysError;
use crate::folio::{Folio, FolioError, RawFolio};
use crate::offset::Lifetime;
use crate::pgmap::Pgmap;
use crate::policy::{Choice, Placer};
use crate::space::{SLOT_BYTES, SlotSource};
use crate::sync::StaticMutex;
use crate::sync::{Mutex, service};
use crate::sys::mm::Reservation;
use crate::tier::Tier;
use crate::units::Order;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// The tiers of a pool, the fast one first, and their books.
pub(super) struct Tiers {
    tiers: Vec<Tier>,
    /// Fast memory that stands for the library's own metadata: it is used elsewhere, so these folios hold the
    /// capacity back.
    metadata: Mutex<Vec<Folio>>,
    metadata_bytes: AtomicU64,
    /// Private memory that nobody uses. It is given back when the kernel refuses more, for what the other tier then writes
    /// about itself.
    cushion: Mutex<Option<Reservation>>,
    page: StatsPage,
    /// A [`Control`]. Relaxed: a setting for itself.
    control: AtomicU8,
}

/// Room for metadata, and for the last slot: where it takes the place of reserved addresses, the kernel lets it
/// exceed a limit on data (`ulimit -d`) by nearly its length, and then refuses the smallest mapping.
const CUSHION_BYTES: usize = (1 << 20) + SLOT_BYTES;

/// The books of every open pool. Locked in service only.
static OPEN: StaticMutex<Vec<Weak<Tiers>>> = StaticMutex::new(Vec::new());

/// Gives a forked child's pools pages of their own. Called once in the child, which has one thread, while the
/// service gate is held. Allocates nothing. A page that can't be replaced is the parent's still, so the child ends.
pub(super) fn after_fork_in_child() -> Result<(), SysError> {
    OPEN.lock().iter().filter_map(Weak::upgrade).try_for_each(|tiers| tiers.page.replace_in_child())
}

impl Tiers {
    /// Opens the books of `tiers`.
    ///
    /// # Errors
    /// The fast tier's refusal when it can't even hold the metadata.
    pub(super) fn open(tiers: Vec<Tier>, page: StatsPage) -> Result<Arc<Tiers>, FolioError> {
        // Where the kernel refuses even that, there is none.
        let cushion = (tiers.len() > 1).then(|| Reservation::new_mapped(CUSHION_BYTES).ok()).flatten();
        let tiers = Tiers {
            tiers,
            metadata: Mutex::new(Vec::new()),
            metadata_bytes: AtomicU64::new(0),
            cushion: Mutex::new(cushion),
            page,
            control: AtomicU8::new(Control::Off as u8),
        };
        (0..tiers.tiers.len()).for_each(|at| tiers.describe(at));
        tiers.charge_metadata()?;
        tiers.publish();
        let tiers = Arc::new(tiers);
        let mut open = OPEN.lock();
        open.retain(|tiers| tiers.strong_count() > 0);
        open.push(Arc::downgrade(&tiers));
        drop(open);
        Ok(tiers)
    }

    /// Says whether use of the tiers makes the process listen to others.
    pub(super) fn set_control(&self, control: Control) {
        self.control.store(control as u8, Ordering::Relaxed);
    }

    /// Takes note that memory of a tier was handed out.
    fn note_use(&self, tier: usize) {
        let control = match self.control.load(Ordering::Relaxed) {
            control if control == Control::Auto as u8 => Control::Auto,
            control if control == Control::On as u8 => Control::On,
            _ => return,
        };
        control::note_use(control, self.tiers[tier].kind());
    }

    /// Publishes what a tier is made of.
    fn describe(&self, at: usize) {
        let tier = &self.tiers[at];
        let pgmaps = tier.pgmaps();
        let devices: Vec<&str> = pgmaps.iter().map(|pgmap| pgmap.device().name()).collect();
        self.page.describe_tier(at, tier.name(), tier.kind().as_str(), &devices);
    }

    /// Adds a pgmap to a tier. Returns `false` when the tier has as many as it can have.
    pub(super) fn add(&self, at: usize, pgmap: Pgmap) -> bool {
        let is_added = self.tiers[at].add(pgmap);
        if is_added {
            self.describe(at);
            // As for every slot: a refusal leaves the charge short until the next one.
            let _ = self.charge_metadata();
        }
        self.publish();
        is_added
    }

    /// Takes a pgmap out of a tier.
    pub(super) fn remove(&self, at: usize, id: u16) {
        self.tiers[at].remove(id);
        self.describe(at);
        self.publish();
    }

    pub(super) fn as_slice(&self) -> &[Tier] {
        &self.tiers
    }

    /// Returns the number of the tier that a pgmap belongs to.
    pub(super) fn tier_of(&self, pgmap: u16) -> Option<usize> {
        self.tiers.iter().position(|tier| tier.has_pgmap(pgmap))
    }

    /// Counts a request that no tier could serve, and keeps the reason.
    pub(super) fn note_failure(&self, reason: &str) {
        self.page.note_failure(reason);
    }

    /// Returns the process whose figures are published, as it sees itself.
    pub(super) fn owner(&self) -> u32 {
        self.page.owner()
    }

    /// Returns the figures.
    pub(super) fn stats(&self) -> PoolStats {
        self.publish();
        self.page.snapshot()
    }

    /// Returns the counters of moves.
    pub(super) fn migration(&self) -> &MigrationCounters {
        self.page.migration()
    }

    /// Returns how much fast memory stands for metadata.
    pub(super) fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes.load(Ordering::Relaxed)
    }

    /// Writes the figures of every tier to the published page.
    pub(super) fn publish(&self) {
        for (at, tier) in self.tiers.iter().enumerate() {
            let counters = self.page.tier(at);
            tier.write_figures(counters);
            if at == 0 {
                counters.metadata_bytes.store(self.metadata_bytes(), Ordering::Relaxed);
            }
        }
    }

    /// Holds back as much fast memory as the metadata of all pgmaps has come to.
    fn charge_metadata(&self) -> Result<(), FolioError> {
        let own = OWN_METADATA_BYTES + self.tiers.iter().map(Tier::metadata_bytes).sum::<u64>();
        while self.metadata_bytes() < own {
            let folio = self.tiers[0].alloc(Order::HUGE, Lifetime::Long)?;
            self.metadata_bytes.fetch_add(folio.len_bytes() as u64, Ordering::Relaxed);
            self.metadata.lock().push(folio);
        }
        Ok(())
    }

    /// Returns the pgmap and the offset of every folio that stands for metadata.
    pub(super) fn metadata_folios(&self) -> Vec<(u16, u64)> {
        self.metadata.lock().iter().map(|folio| (folio.info().pgmap, folio.offset())).collect()
    }

    /// Takes a folio for a slot from one tier, down to its last.
    pub(super) fn take_in(&self, tier: usize) -> Option<Folio> {
        self.take(Choice { tier, above_watermark: false })
    }

    fn take(&self, choice: Choice) -> Option<Folio> {
        let tier = &self.tiers[choice.tier];
        if choice.above_watermark && !tier.is_above_watermark(SLOT_BYTES as u64) {
            return None;
        }
        let folio = tier.alloc(Order::HUGE, Lifetime::Movable).ok()?;
        self.note_use(choice.tier);
        Some(folio)
    }
}

/// What the library needs for itself beside the pgmaps: the engine's threads and tables, this module's own.
const OWN_METADATA_BYTES: u64 = 1 << 20;

/// One way to choose among a pool's tiers.
pub(super) struct PlacedSource {
    tiers: Arc<Tiers>,
    placer: Placer,
}

impl PlacedSource {
    pub(super) fn new(tiers: Arc<Tiers>, placer: Placer) -> PlacedSource {
        PlacedSource { tiers, placer }
    }

    /// Hands out a folio of any order where the policy says.
    pub(super) fn alloc(&self, order: Order, lifetime: Lifetime) -> Result<Folio, Option<FolioError>> {
        self.first_to(order, |tier| tier.alloc(order, lifetime))
    }

    /// Hands out a folio that is to be zero, and whether it is already.
    pub(super) fn alloc_prezeroed(
        &self,
        order: Order,
        lifetime: Lifetime,
    ) -> Result<(Folio, bool), Option<FolioError>> {
        self.first_to(order, |tier| tier.alloc_prezeroed(order, lifetime))
    }

    fn first_to<F>(
        &self,
        order: Order,
        alloc: impl Fn(&Tier) -> Result<F, FolioError>,
    ) -> Result<F, Option<FolioError>> {
        service::run(|| {
            let mut refusal = None;
            for choice in self.placer.next().into_iter().flatten() {
                let tier = &self.tiers.tiers[choice.tier];
                if choice.above_watermark && !tier.is_above_watermark(order.len_bytes()) {
                    continue;
                }
                match alloc(tier) {
                    Ok(folio) => {
                        self.tiers.note_use(choice.tier);
                        self.tiers.publish();
                        return Ok(folio);
                    }
                    Err(error) => refusal = Some(error),
                }
            }
            Err(refusal)
        })
    }
}

impl SlotSource for PlacedSource {
    fn take(&self, _before: Option<RawFolio>) -> Option<Folio> {
        let folio = self.placer.next().into_iter().flatten().find_map(|choice| self.tiers.take(choice))?;
        // A refusal leaves the charge short until the next slot, never the slot without its folio.
        let _ = self.tiers.charge_metadata();
        self.tiers.publish();
        Some(folio)
    }

    fn take_elsewhere(&self, refused: &Folio) -> Option<Folio> {
        let tier = self.tiers.tier_of(refused.info().pgmap)?;
        self.tiers.cushion.lock().take();
        let others = self.placer.allowed().into_iter().flatten().filter(|choice| choice.tier != tier);
        let folio = others.into_iter().find_map(|choice| self.tiers.take(choice))?;
        self.tiers.publish();
        Some(folio)
    }

    fn has_room(&self, len_bytes: u64) -> bool {
        let allowed = self.placer.allowed();
        let free = allowed.into_iter().flatten().map(|choice| self.tiers.tiers[choice.tier].free_bytes());
        free.sum::<u64>() >= len_bytes.next_multiple_of(SLOT_BYTES as u64).max(SLOT_BYTES as u64)
    }

    fn settled(&self) {
        self.tiers.publish();
    }
}
