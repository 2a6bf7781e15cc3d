//! The statistics file in memory, and what goes wrong with it.

use ferry_dataplane::qos::stats_file::{BLOCK_BYTES, Block, Id, encode};

use super::spec::{Damage, Fault};

/// The file.
#[derive(Debug, Default)]
pub(super) struct File {
    blocks: Vec<[u8; BLOCK_BYTES]>,
    /// What each host wrote first.
    first: Vec<(usize, [u8; BLOCK_BYTES])>,
    pub faults: Vec<Fault>,
}

/// What a host signs its block with.
pub(super) fn id_of(host: usize) -> Id {
    let mut id = *b"simulated host  ";
    id[14] = u8::try_from(host).unwrap_or(u8::MAX);
    id
}

impl File {
    pub fn blocks(&self) -> &[[u8; BLOCK_BYTES]] {
        &self.blocks
    }

    /// A host writes its block, if nothing goes wrong.
    pub fn write(&mut self, now_ns: u64, host: usize, place: usize, block: &Block) {
        let mut bytes = encode(block);
        if !self.first.iter().any(|it| it.0 == host) {
            self.first.push((host, bytes));
        }
        if self.blocks.len() <= place {
            self.blocks.resize(place + 1, [0; BLOCK_BYTES]);
        }
        let hit = |fault: &&Fault| fault.host == host && fault.time_ns.contains(&now_ns);
        let damage = self.faults.iter().find(hit).map(|fault| fault.damage);
        let before = &mut self.blocks[place];
        match damage {
            Some(Damage::Lost) => return,
            Some(Damage::Torn) => bytes[64..].copy_from_slice(&before[64..]),
            Some(Damage::Flipped) => bytes[BLOCK_BYTES / 2] ^= 1,
            Some(Damage::FromTheFuture) => from_the_future(&mut bytes),
            Some(Damage::Stale) => {
                let first = self.first.iter().find(|it| it.0 == host);
                bytes = first.map_or(bytes, |it| it.1);
            }
            None => {}
        }
        *before = bytes;
    }
}

/// A later version, with a checksum that is right.
fn from_the_future(bytes: &mut [u8; BLOCK_BYTES]) {
    bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
    bytes[12..16].fill(0);
    let checksum = crc32c::crc32c(bytes);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
}
