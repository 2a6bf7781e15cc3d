//! A request: walked, carried out, answered.

use virtio_bindings::bindings::virtio_blk as vb;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::disk::StockDisk;

const SECTOR_BYTES: u64 = 512;
const SERIAL: &[u8; 20] = b"stock\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A piece of a request's data.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Where in guest memory.
    pub addr: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// Whether the device may write it.
    writable: bool,
}

/// Room for one request.
#[derive(Debug, Default)]
pub struct Request {
    pieces: Vec<Piece>,
}

impl Request {
    /// Does what a chain asks for, and writes its status. Returns how many bytes
    /// of the guest's memory were written; none for a chain that has no place
    /// for a status.
    pub fn carry_out(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        disk: &StockDisk,
    ) -> u32 {
        self.pieces.clear();
        self.pieces.extend(chain.map(|d| Piece {
            addr: d.addr(),
            len: d.len(),
            writable: d.is_write_only(),
        }));
        let Some(status) = self.pieces.pop().filter(|p| p.writable && p.len >= 1) else {
            return 0;
        };
        let (code, written) = match self.serve(memory, disk) {
            Ok(written) => (vb::VIRTIO_BLK_S_OK, written),
            Err(code) => (code, 0),
        };
        let byte = u8::try_from(code).unwrap_or(u8::MAX);
        match memory.write_obj(byte, status.addr) {
            Ok(()) => written + 1,
            Err(_) => 0,
        }
    }

    fn serve(&self, memory: &GuestMemoryMmap, disk: &StockDisk) -> Result<u32, u32> {
        let failed = vb::VIRTIO_BLK_S_IOERR;
        let (header, data) = self.pieces.split_first().ok_or(failed)?;
        if header.writable || header.len < 16 {
            return Err(failed);
        }
        let mut raw = [0; 16];
        memory
            .read_slice(&mut raw, header.addr)
            .map_err(|_| failed)?;
        let (kind, sector) = parse(&raw);
        let bytes: u64 = data.iter().map(|p| u64::from(p.len)).sum();
        let len = u32::try_from(bytes).map_err(|_| failed)?;
        match kind {
            vb::VIRTIO_BLK_T_IN | vb::VIRTIO_BLK_T_OUT => {
                let reads = kind == vb::VIRTIO_BLK_T_IN;
                let offset = sector.checked_mul(SECTOR_BYTES).ok_or(failed)?;
                let inside = offset
                    .checked_add(bytes)
                    .is_some_and(|end| end <= disk.bytes());
                let sound = data.iter().all(|p| p.writable == reads);
                if !inside || !sound || !bytes.is_multiple_of(SECTOR_BYTES) {
                    return Err(failed);
                }
                disk.transfer(reads, offset, data, memory)
                    .map_err(|_| failed)?;
                Ok(if reads { len } else { 0 })
            }
            vb::VIRTIO_BLK_T_FLUSH => disk.flush().map(|()| 0).map_err(|_| failed),
            vb::VIRTIO_BLK_T_GET_ID => match data {
                [piece] if piece.writable && piece.len >= 20 => memory
                    .write_slice(SERIAL, piece.addr)
                    .map(|()| 20)
                    .map_err(|_| failed),
                _ => Err(failed),
            },
            _ => Err(vb::VIRTIO_BLK_S_UNSUPP),
        }
    }
}

fn parse(raw: &[u8; 16]) -> (u32, u64) {
    let [a, b, c, d, _, _, _, _, sector @ ..] = *raw;
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(sector))
}
