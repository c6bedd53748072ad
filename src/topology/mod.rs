//! What the machine looks like: plain data read from sysfs.

mod sysfs;

pub(crate) use sysfs::{node_memory_bytes, read_id_list};
