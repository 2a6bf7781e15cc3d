//! A split virtqueue seen from the driver, field by field.
//!
//! This layer keeps no state and judges nothing: it puts what it is told where
//! it is told. [`BlkQueue`](super::BlkQueue) drives it properly; tests of
//! hostile guests drive it directly.

use std::sync::atomic::{Ordering, fence};

use super::memory::{GuestMemory, MemoryError, View};

/// The chain goes on at `next`.
pub const DESC_NEXT: u16 = 1;
/// The device writes this buffer.
pub const DESC_WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub const DESC_BYTES: u64 = 16;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// One descriptor, with nothing checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Desc {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// `DESC_*` flags.
    pub flags: u16,
    /// The next descriptor, if flagged.
    pub next: u16,
}

impl Desc {
    /// As it stands in memory.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.addr.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..14].copy_from_slice(&self.flags.to_le_bytes());
        out[14..].copy_from_slice(&self.next.to_le_bytes());
        out
    }
}

/// Where a ring's three parts are, as guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingLayout {
    /// Number of descriptors, a power of two unless a test wants otherwise.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

impl RingLayout {
    /// Takes room for a ring of `size` from guest memory. The used ring gets a
    /// page of its own, so a dirty log can tell it from the rest.
    pub fn alloc(memory: &GuestMemory, size: u16) -> Result<Self, MemoryError> {
        let n = u64::from(size);
        Ok(Self {
            size,
            desc: memory.alloc(n * DESC_BYTES, 4096)?,
            avail: memory.alloc(6 + 2 * n, 64)?,
            used: memory.alloc((6 + 8 * n).next_multiple_of(4096), 4096)?,
        })
    }
}

/// Access to a ring in guest memory.
#[derive(Debug)]
pub struct SplitRing {
    layout: RingLayout,
    desc: View,
    avail: View,
    used: View,
}

impl SplitRing {
    /// Fails if a part of the ring is outside guest memory.
    pub fn new(memory: &GuestMemory, layout: RingLayout) -> Result<Self, MemoryError> {
        let n = u64::from(layout.size);
        Ok(Self {
            layout,
            desc: memory.view(layout.desc, n * DESC_BYTES)?,
            avail: memory.view(layout.avail, 6 + 2 * n)?,
            used: memory.view(layout.used, 6 + 8 * n)?,
        })
    }

    /// Where the ring is.
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// Writes a descriptor; `index` must be below the ring's size.
    #[inline]
    pub fn write_desc(&self, index: u16, desc: Desc) {
        self.desc.write(usize::from(index) * 16, &desc.to_bytes());
    }

    /// Puts a head into the available ring, where index `at` falls.
    #[inline]
    pub fn set_avail(&self, at: u16, head: u16) {
        self.avail
            .u16_at(4 + 2 * self.slot(at))
            .store(head.to_le(), Ordering::Relaxed);
    }

    /// As [`set_avail`](Self::set_avail), but an entry that stands there already is left
    /// alone, so that the device keeps its copy of the cache line.
    #[inline]
    pub fn renew_avail(&self, at: u16, head: u16) {
        let entry = self.avail.u16_at(4 + 2 * self.slot(at));
        if entry.load(Ordering::Relaxed) != head.to_le() {
            entry.store(head.to_le(), Ordering::Relaxed);
        }
    }

    /// Publishes the available index; what was written before is seen before it.
    #[inline]
    pub fn publish(&self, index: u16) {
        self.avail.u16_at(2).store(index.to_le(), Ordering::Release);
    }

    /// Publishes the available index that stood at `old`; whether the device wants a kick for it.
    #[inline]
    pub fn offer(&self, old: u16, new: u16, event_idx: bool) -> bool {
        self.publish(new);
        // The index must be out before we look whether the device sleeps: it
        // says that it sleeps, then looks at the index.
        fence(Ordering::SeqCst);
        if event_idx {
            passes(self.avail_event(), new, old)
        } else {
            !self.no_notify()
        }
    }

    /// The available index as it stands.
    pub fn avail_index(&self) -> u16 {
        u16::from_le(self.avail.u16_at(2).load(Ordering::Relaxed))
    }

    /// The used index; what the device wrote before it is seen after it.
    #[inline]
    pub fn used_index(&self) -> u16 {
        u16::from_le(self.used.u16_at(2).load(Ordering::Acquire))
    }

    /// The used element where index `at` falls: (descriptor head, bytes written).
    #[inline]
    pub fn used(&self, at: u16) -> (u32, u32) {
        let mut raw = [0; 8];
        self.used.read(4 + 8 * self.slot(at), &mut raw);
        let [a, b, c, d, e, f, g, h] = raw;
        (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        )
    }

    /// Asks for calls, or for none (without EVENT_IDX).
    pub fn want_calls(&self, want: bool) {
        let flags = if want { 0 } else { NO_INTERRUPT };
        self.avail.u16_at(0).store(flags.to_le(), Ordering::Relaxed);
    }

    /// Asks for a call once the used index passes `index` (with EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        let at = 4 + 2 * usize::from(self.layout.size);
        self.avail
            .u16_at(at)
            .store(index.to_le(), Ordering::Relaxed);
    }

    /// Whether the device wants no kicks (without EVENT_IDX).
    #[inline]
    pub fn no_notify(&self) -> bool {
        u16::from_le(self.used.u16_at(0).load(Ordering::Relaxed)) & NO_NOTIFY != 0
    }

    /// The available index past which the device wants a kick (with EVENT_IDX).
    #[inline]
    pub fn avail_event(&self) -> u16 {
        let at = 4 + 8 * usize::from(self.layout.size);
        u16::from_le(self.used.u16_at(at).load(Ordering::Relaxed))
    }

    #[inline]
    fn slot(&self, at: u16) -> usize {
        let size = self.layout.size;
        if size.is_power_of_two() {
            usize::from(at & (size - 1))
        } else {
            usize::from(at % size)
        }
    }
}

/// Whether moving an index from `old` to `new` passes `event`.
pub fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_once_and_across_the_wrap() {
        assert!(passes(4, 5, 4));
        assert!(!passes(5, 5, 4));
        assert!(!passes(3, 5, 4));
        assert!(passes(0xffff, 0, 0xffff));
        assert!(passes(2, 10, 0));
        assert!(!passes(0, 0, 0), "nothing moved");
    }

    #[test]
    fn fields_land_where_the_standard_says() {
        let mem = GuestMemory::new(1 << 16).unwrap();
        let layout = RingLayout::alloc(&mem, 8).unwrap();
        let ring = SplitRing::new(&mem, layout).unwrap();
        ring.set_avail(9, 3);
        ring.publish(10);
        ring.set_used_event(7);
        let mut avail = [0; 22];
        mem.read(layout.avail, &mut avail).unwrap();
        assert_eq!(avail[2..4], [10, 0]);
        assert_eq!(avail[6..8], [3, 0], "index 9 falls on slot 1");
        assert_eq!(avail[20..22], [7, 0]);
        mem.write(layout.used, &[1, 0, 2, 0, 5, 0, 0, 0, 17, 0, 0, 0])
            .unwrap();
        assert!(ring.no_notify());
        assert_eq!(ring.used_index(), 2);
        assert_eq!(ring.used(0), (5, 17));
    }
}
