//! The `daxtier` program.
fn main() {}
