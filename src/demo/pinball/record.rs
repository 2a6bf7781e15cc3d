//! What crosses the NIC: a frame's record, to the screen and to the disk, and a key's, to the guest.

use super::table::Table;

/// Bytes of a frame's record.
pub const RECORD_BYTES: usize = 64;
/// Bytes of a key's.
pub const KEY_BYTES: usize = 8;
/// Bytes of a sector; a frame's holds its record over and over.
pub const SECTOR_BYTES: usize = 512;

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// Counts from 0.
    pub frame: u64,
    pub ball: (f64, f64),
    pub speed: (f64, f64),
    pub score: u32,
    pub balls: u16,
    /// The keys that were pressed in this frame.
    pub keys: u8,
    /// A bit for each bumper that was just hit.
    pub lit: u8,
    /// How far each flipper is up.
    pub lifts: [u8; 2],
    /// Key records that the guest has had.
    pub heard: u32,
    /// The game's.
    pub run: u32,
}

impl Record {
    /// The table after a frame.
    pub fn of(table: &Table, frame: u64, keys: u8, (heard, run): (u32, u32)) -> Record {
        Record {
            frame,
            ball: (table.x, table.y),
            speed: (table.vx, table.vy),
            score: table.score,
            balls: table.balls,
            keys,
            lit: table.lit(),
            lifts: table.lifts(),
            heard,
            run,
        }
    }

    pub fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[..8].copy_from_slice(&self.frame.to_le_bytes());
        let numbers = [self.ball.0, self.ball.1, self.speed.0, self.speed.1];
        for (at, number) in (8..).step_by(8).zip(numbers) {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        out[40..44].copy_from_slice(&self.score.to_le_bytes());
        out[44..46].copy_from_slice(&self.balls.to_le_bytes());
        [out[46], out[47], out[48], out[49]] = [self.keys, self.lit, self.lifts[0], self.lifts[1]];
        out[52..56].copy_from_slice(&self.heard.to_le_bytes());
        out[56..60].copy_from_slice(&self.run.to_le_bytes());
        let sum = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// None unless the checksum is right.
    pub fn parse(raw: &[u8; RECORD_BYTES]) -> Option<Record> {
        let word = |at: usize| raw[at..].first_chunk().map(|it| u32::from_le_bytes(*it));
        let long = |at: usize| raw[at..].first_chunk().map(|it| u64::from_le_bytes(*it));
        let number = |at: usize| long(at).map(f64::from_bits);
        if word(60)? != crc32c::crc32c(&raw[..60]) {
            return None;
        }
        Some(Record {
            frame: long(0)?,
            ball: (number(8)?, number(16)?),
            speed: (number(24)?, number(32)?),
            score: word(40)?,
            balls: u16::from_le_bytes([raw[44], raw[45]]),
            keys: raw[46],
            lit: raw[47],
            lifts: [raw[48], raw[49]],
            heard: word(52)?,
            run: word(56)?,
        })
    }
}

/// A sector of the disk with a frame's record in it.
pub fn sector(record: &[u8; RECORD_BYTES]) -> Vec<u8> {
    record.repeat(SECTOR_BYTES / RECORD_BYTES)
}

/// Keys that were pressed; `number` counts from 0.
pub fn key_bytes(number: u32, keys: u8) -> [u8; KEY_BYTES] {
    let [a, b, c, d] = number.to_le_bytes();
    [a, b, c, d, keys, !a, !b, !keys]
}

/// The keys, if this is the one of that number and whole.
pub fn key_of(raw: &[u8; KEY_BYTES], number: u32) -> Option<u8> {
    (*raw == key_bytes(number, raw[4])).then_some(raw[4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were_and_damage_shows() {
        let mut table = Table::new(7);
        table.frame(1);
        let record = Record::of(&table, 9, 1, (3, 5));
        let bytes = record.to_bytes();
        assert_eq!(Record::parse(&bytes), Some(record));
        for at in 0..RECORD_BYTES {
            let mut damaged = bytes;
            damaged[at] ^= 1;
            assert_eq!(Record::parse(&damaged), None, "byte {at}");
        }
        assert_eq!(sector(&bytes).len(), SECTOR_BYTES);
        assert_eq!(key_of(&key_bytes(4, 2), 4), Some(2));
        assert_eq!(key_of(&key_bytes(4, 2), 5), None);
    }
}
