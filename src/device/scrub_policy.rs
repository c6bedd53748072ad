//! When a device's bytes are cleared, and why no byte of a former owner is handed out.
//!
//! A device that is shared keeps its bytes when a process ends, so an extent that is claimed may hold anybody's.
//! [`ScrubPolicy`] says who clears it. The claimant has the lock on the extent from before it looks until it gives the
//! extent back, and hands nothing of it out before it is done. Used by `pgmap`, which claims and releases.
//!
//! # Why no foreign byte is handed out
//! | policy | at the claim | at the release |
//! |---|---|---|
//! | on-claim | every byte is overwritten | nothing |
//! | on-release | every byte is read, and what is not zero is overwritten | every byte that is not zero is overwritten |
//! | never | nothing: what a former owner left is handed out | nothing |
//!
//! With the first two each byte was seen to be zero, or written as zero, by the claimant itself and under its lock. That
//! holds whatever happened before: the former owner was killed, another program wrote without a claim, the machine was
//! reset. So on-release needs no mark that says "this extent is clean", which would have to be believed: a mark on the
//! device outlives the writer that breaks it. The bytes are the mark. What on-release buys is that memory
//! which was given back in order is clean at once. A claim of clean memory then only reads; in DRAM that takes as long as
//! clearing it (the test `looking_beside_clearing` prints both).
//!
//! A process can't clear what it has until its last instruction: other threads, exit handlers and the C library's
//! output buffers use malloc's blocks until the kernel ends it. So on-release clears at the end of a pgmap (a
//! pool that is closed, a device that is removed), and `daxtier run`, which outlives its program, clears after it.

use std::fmt;

/// When the memory of a dax device is cleared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScrubPolicy {
    /// A claimant clears what it claims.
    #[default]
    OnClaim,
    /// Who gives memory back clears it; a claimant looks at every byte, and clears what is not zero.
    OnRelease,
    /// Nobody does: folios hold what their former owners left, other processes included. For devices whose users all
    /// trust each other with their data. Memory of malloc, and folios that are asked for as zero, are cleared all the same.
    Never,
}

impl ScrubPolicy {
    /// All policies.
    pub const ALL: [ScrubPolicy; 3] = [ScrubPolicy::OnClaim, ScrubPolicy::OnRelease, ScrubPolicy::Never];

    /// Returns the word that stands for the policy in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            ScrubPolicy::OnClaim => "on-claim",
            ScrubPolicy::OnRelease => "on-release",
            ScrubPolicy::Never => "never",
        }
    }

    /// Finds a policy by its word.
    pub fn from_word(word: &str) -> Option<ScrubPolicy> {
        ScrubPolicy::ALL.into_iter().find(|policy| policy.as_str() == word)
    }
}

impl fmt::Display for ScrubPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
