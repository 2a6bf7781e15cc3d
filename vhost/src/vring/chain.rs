//! Chains of descriptors: copied once, and only the copy is checked.
#![allow(unsafe_code)]

use ferry_dataplane::segments::Segments;

use super::{CHAIN_MAX, DESC_BYTES, Vring};
use crate::memory::{Access, MemoryMap};

pub(super) const DESC_NEXT: u16 = 1;
pub(super) const DESC_WRITE: u16 = 2;
pub(super) const DESC_INDIRECT: u16 = 4;
const DESC_BYTES_U32: u32 = 16;

/// One buffer of a chain, copied from its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest physical address.
    pub guest: u64,
    /// Length in bytes.
    pub len: u32,
}

/// A chain, copied and checked for shape: bounded, without loops, readable before writable.
#[derive(Debug, Default)]
pub struct Chain {
    buffers: Vec<Buffer>,
    writable_from: usize,
}

impl Chain {
    /// Room for the longest chain, so that none is allocated for later.
    pub fn new() -> Chain {
        Chain {
            buffers: Vec::with_capacity(CHAIN_MAX),
            writable_from: 0,
        }
    }

    /// A chain of these buffers, for tests of what reads one.
    #[cfg(test)]
    pub(crate) fn of(readable: &[Buffer], writable: &[Buffer]) -> Chain {
        Chain {
            buffers: [readable, writable].concat(),
            writable_from: readable.len(),
        }
    }

    /// What the device reads.
    pub fn readable(&self) -> &[Buffer] {
        &self.buffers[..self.writable_from]
    }

    /// What the device writes.
    pub fn writable(&self) -> &[Buffer] {
        &self.buffers[self.writable_from..]
    }
}

/// Bytes in all the buffers.
pub fn length(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|b| u64::from(b.len)).sum()
}

/// Copies `into.len()` bytes from byte `skip` of the buffers; false when there are not so many, or they
/// are not guest memory.
#[must_use]
pub fn copy_bytes(buffers: &[Buffer], skip: u64, into: &mut [u8], map: &MemoryMap) -> bool {
    let mut done = 0;
    pieces(buffers, skip, into.len() as u64, |guest, len| {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let read = map.read(guest, &mut into[done..done + len]);
        done += len;
        read
    })
}

/// Adds `len` bytes from byte `skip` of the buffers to the segments; false when there are not so many,
/// they are not guest memory, or the segments are full.
#[must_use]
pub fn push_bytes(
    buffers: &[Buffer],
    skip: u64,
    len: u64,
    map: &MemoryMap,
    segments: &mut Segments,
) -> bool {
    pieces(buffers, skip, len, |guest, len| {
        map.push_segments(guest, len, segments)
    })
}

/// Calls `visit` with each run of bytes `skip..skip + len` of the buffers, until it says no; false
/// then, and when there are too few bytes.
#[inline]
fn pieces(
    buffers: &[Buffer],
    skip: u64,
    len: u64,
    mut visit: impl FnMut(u64, u64) -> bool,
) -> bool {
    let (mut skip, mut left) = (skip, len);
    if let [one] = buffers {
        let fits = skip
            .checked_add(len)
            .is_some_and(|end| end <= u64::from(one.len));
        return fits && one.guest.checked_add(skip).is_some_and(|at| visit(at, len));
    }
    for buffer in buffers {
        if left == 0 {
            break;
        }
        let size = u64::from(buffer.len);
        if skip >= size {
            skip -= size;
            continue;
        }
        let piece = (size - skip).min(left);
        let Some(guest) = buffer.guest.checked_add(skip) else {
            return false;
        };
        if !visit(guest, piece) {
            return false;
        }
        left -= piece;
        skip = 0;
    }
    left == 0
}

impl Vring {
    /// Copies the chain at `head`. An error names what is wrong with it; the chain then holds what
    /// was copied before.
    #[inline]
    pub fn copy_chain(&self, head: u16, chain: &mut Chain) -> Result<(), &'static str> {
        chain.buffers.clear();
        chain.writable_from = 0;
        let first = self.descriptor(head)?;
        let (buffer, flags, _) = first;
        // As most frames are.
        if flags & (DESC_NEXT | DESC_INDIRECT) == 0 {
            chain.writable_from = usize::from(flags & DESC_WRITE == 0);
            chain.buffers.push(buffer);
            return Ok(());
        }
        self.copy_longer(first, chain)
    }

    /// Whether a descriptor with these flags is all of a chain, and is for this.
    #[inline]
    pub(super) fn is_one_buffer(flags: u16, access: Access) -> bool {
        let wanted = match access {
            Access::Read => 0,
            Access::Write => DESC_WRITE,
        };
        flags & (DESC_NEXT | DESC_INDIRECT | DESC_WRITE) == wanted
    }

    /// Copies a chain of several buffers, of which the first descriptor has been read.
    fn copy_longer(
        &self,
        first: (Buffer, u16, u16),
        chain: &mut Chain,
    ) -> Result<(), &'static str> {
        let mut writable = false;
        let (mut read, mut index) = (Some(first), 0);
        let mut table: Option<Buffer> = None;
        let mut left = self.setup.size;
        loop {
            left = left.checked_sub(1).ok_or("longer than the queue")?;
            let (buffer, flags, next) = match (read.take(), table) {
                (Some(first), _) => first,
                (None, None) => self.descriptor(index)?,
                (None, Some(table)) => {
                    let at = table.guest + u64::from(index) * DESC_BYTES as u64;
                    let mut raw = [0; DESC_BYTES];
                    if !self.map().read(at, &mut raw) {
                        return Err("an indirect table outside guest memory");
                    }
                    decode(&raw)
                }
            };
            if flags & DESC_INDIRECT != 0 {
                if table.is_some() || flags & DESC_NEXT != 0 || !self.setup.indirect {
                    return Err("an indirect table where none may be");
                }
                let entries = buffer.len / DESC_BYTES_U32;
                if entries == 0 || !buffer.len.is_multiple_of(DESC_BYTES_U32) {
                    return Err("an indirect table of an odd length");
                }
                buffer
                    .guest
                    .checked_add(u64::from(buffer.len))
                    .ok_or("an indirect table that wraps")?;
                left = u16::try_from(entries).unwrap_or(u16::MAX);
                table = Some(buffer);
                index = 0;
                continue;
            }
            if flags & DESC_WRITE != 0 {
                writable = true;
            } else if writable {
                return Err("a readable buffer after a writable one");
            } else {
                chain.writable_from += 1;
            }
            if chain.buffers.len() == CHAIN_MAX {
                return Err("more buffers than this device takes");
            }
            chain.buffers.push(buffer);
            if flags & DESC_NEXT == 0 {
                return Ok(());
            }
            if table.is_some_and(|table| u32::from(next) >= table.len / DESC_BYTES_U32) {
                return Err("a descriptor past the end of its table");
            }
            index = next;
        }
    }

    #[inline]
    pub(super) fn descriptor(&self, index: u16) -> Result<(Buffer, u16, u16), &'static str> {
        if index >= self.setup.size {
            return Err("a descriptor past the end of its table");
        }
        let parts = self.parts.ok_or("the ring is not mapped")?;
        let mut raw = [0u8; DESC_BYTES];
        // SAFETY: `index` is below the size of the table, which is mapped by the invariant. The
        // guest may write it meanwhile; only this copy is looked at.
        unsafe {
            let from = parts.desc.add(usize::from(index) * raw.len());
            std::ptr::copy_nonoverlapping(from, raw.as_mut_ptr(), raw.len());
        }
        Ok(decode(&raw))
    }
}

fn decode(raw: &[u8; DESC_BYTES]) -> (Buffer, u16, u16) {
    let guest = u64::from_le_bytes(raw[0..8].try_into().expect("eight bytes"));
    let len = u32::from_le_bytes(raw[8..12].try_into().expect("four bytes"));
    let flags = u16::from_le_bytes([raw[12], raw[13]]);
    let next = u16::from_le_bytes([raw[14], raw[15]]);
    (Buffer { guest, len }, flags, next)
}
