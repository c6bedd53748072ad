//! The C ABI of daxtier.
