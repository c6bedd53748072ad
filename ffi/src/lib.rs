//! The C ABI of daxtier.
//!
//! Each module is a part of `include/daxtier.h`, which `cargo xtask header` generates from their public constants,
//! structures and functions; what is public here is public in C, and comments on it are written for C readers. The
//! rest of each module translates: numbers to objects ([`handle`]), structures that begin with their size
//! ([`sized`]), flags ([`alloc`]), errors and panics to codes ([`error`]).
//!
//! Functions take self, inputs, outputs, in this order, and return 0 or a negative code. Outputs are checked first and
//! written last. Pointers are checked for NULL; that they lead to what the header says is the caller's part of the
//! contract, which the SAFETY comments call the C contract.
#![allow(
    clippy::missing_safety_doc,
    reason = "the comments are for C, and state the caller's duties in its terms"
)]
#![allow(unreachable_pub, reason = "what is in the header is public, for cbindgen and for the reader")]

mod alloc;
mod device;
mod drain;
mod error;
mod folio;
mod handle;
mod heap;
mod loss;
mod migrate;
mod pgmap;
mod pool;
mod runtime;
mod sized;
mod text;
mod version;
