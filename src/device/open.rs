//! From a device's name to the device.
//!
//! [`open`] makes what a [`DeviceSpec`] names; each kind's own constructor says what is wrong with it. Used by the
//! runtime, once for each device of the configuration.

use super::range::check_len;
use super::{Dax, DaxOptions, Device, DeviceError, DeviceSpec, Emulated, NodeMemory};
use crate::topology;
use std::path::Path;
use std::sync::Arc;

/// Makes the device that `spec` names.
///
/// `options` are those of a dax device. `size` is how much of the device is to be used,
/// wherever it lies. For a node it is the device's length (without it and without one in `spec`, what is free there
/// now). For the other kinds it is only checked here: the device keeps its length, and whoever hands its memory out
/// keeps to `size`.
///
/// # Errors
/// What [`Dax::open`], [`Emulated::new`] and [`NodeMemory::new`] answer, and [`DeviceError`] for a size beyond the
/// device or a range of a device that has none.
pub fn open(
    spec: &DeviceSpec,
    size: Option<u64>,
    options: DaxOptions,
) -> Result<Arc<dyn Device>, DeviceError> {
    if options.range.is_some() && !matches!(spec, DeviceSpec::Dax(_)) {
        return Err(DeviceError::NoRanges { device: spec.to_string() });
    }
    let device: Arc<dyn Device> = match spec {
        DeviceSpec::Dax(path) => Arc::new(Dax::open(path, options)?),
        DeviceSpec::Emulated(len_bytes) => {
            Arc::new(Emulated::new(*len_bytes, Emulated::DEFAULT_ALIGN_BYTES)?)
        }
        DeviceSpec::Node { id, size: own_size } => {
            let len_bytes = size.or(*own_size).unwrap_or_else(|| free_on_node(*id));
            return Ok(Arc::new(NodeMemory::new(*id, len_bytes)?));
        }
    };
    if let Some(size_bytes) = size {
        check_len(device.name(), size_bytes, device.align_bytes())?;
        if size_bytes > device.len_bytes() {
            let (name, len_bytes) = (device.name().to_owned(), device.len_bytes());
            return Err(DeviceError::SizeBeyondEnd { device: name, size_bytes, len_bytes });
        }
    }
    Ok(device)
}

/// Returns the free memory of a node in whole granules, at least one, so that the node's own error speaks when it
/// has none.
fn free_on_node(id: u32) -> u64 {
    let free = topology::node_free_bytes(Path::new("/"), id).unwrap_or(0);
    (free / NodeMemory::ALIGN_BYTES).max(1) * NodeMemory::ALIGN_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceKind;

    #[test]
    fn a_spec_opens_as_its_kind() {
        let device = open(&DeviceSpec::Emulated(1 << 30), Some(512 << 20), DaxOptions::default()).unwrap();
        assert_eq!((device.kind(), device.len_bytes()), (DeviceKind::Emulated, 1 << 30));
        let beyond = open(&DeviceSpec::Emulated(1 << 30), Some(2 << 30), DaxOptions::default()).unwrap_err();
        assert!(matches!(beyond, DeviceError::SizeBeyondEnd { size_bytes, .. } if size_bytes == 2 << 30));
        let odd = open(&DeviceSpec::Emulated(1 << 30), Some(4096), DaxOptions::default()).unwrap_err();
        assert!(matches!(odd, DeviceError::NotAligned { .. }), "{odd}");
        let range = open(
            &DeviceSpec::Emulated(1 << 30),
            None,
            DaxOptions { range: Some(0..1 << 21), ..DaxOptions::default() },
        )
        .unwrap_err();
        assert!(matches!(range, DeviceError::NoRanges { .. }), "{range}");
        let missing = open(&DeviceSpec::Dax("/dev/dax99.9".into()), None, DaxOptions::default()).unwrap_err();
        assert!(matches!(missing, DeviceError::Missing { .. }), "{missing}");
        let node = open(&DeviceSpec::Node { id: 999, size: None }, None, DaxOptions::default()).unwrap_err();
        assert!(matches!(node, DeviceError::NoSuchNode { node: 999, .. }), "{node}");
    }
}
