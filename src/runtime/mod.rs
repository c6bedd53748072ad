//! The running library: its configuration, its figures and the page that publishes them.

pub mod config;
pub mod link;
