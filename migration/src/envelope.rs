//! The wrapping of a device's state, independent of what is inside.
//!
//! ```text
//!   magic "FRYS" | version u16 | sections u16 | body length u32 | crc32c u32 | body
//!   body: sections of   kind u16 | schema version u16 | length u32 | bytes
//! ```
//!
//! Little-endian throughout. The checksum covers the header before it and the whole body. A
//! section whose kind has [`OPTIONAL`] set may be skipped by a reader that does not know it; any
//! other unknown section is refused, because a device without it would not be the same device.

/// No device needs more.
pub const ENVELOPE_BYTES_MAX: usize = 64 * 1024;
/// One for the device and one for each of its queues, with room.
pub const SECTIONS_MAX: usize = 600;
/// Set in a kind that a reader may ignore.
pub const OPTIONAL: u16 = 0x8000;

const MAGIC: [u8; 4] = *b"FRYS";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const SECTION_HEADER_BYTES: usize = 8;

/// One typed part of a device's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it describes; the numbers stand in [`crate::schema`].
    pub kind: u16,
    /// The version of its schema.
    pub version: u16,
    /// The body, in the schema's encoding.
    pub bytes: Vec<u8>,
}

/// Why bytes are not an envelope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Shorter or longer than it says.
    #[error("device state is {got} bytes where {want} were announced; it was cut or padded")]
    Length {
        /// Bytes at hand.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// Beyond a bound of this module.
    #[error("device state has {0}, more than any device of this version; refused")]
    TooLarge(String),
    /// Not an envelope at all.
    #[error("not a Ferry device state (the first bytes are wrong)")]
    Magic,
    /// From another time.
    #[error("device state has envelope version {0}; this Ferry reads version 1, so upgrade it")]
    Version(u16),
    /// Damaged.
    #[error("device state fails its checksum; it was damaged on the way, so send it again")]
    Checksum,
}

/// Wraps sections.
pub fn encode(sections: &[Section]) -> Result<Vec<u8>, EnvelopeError> {
    if sections.len() > SECTIONS_MAX {
        return Err(EnvelopeError::TooLarge(format!(
            "{} sections",
            sections.len()
        )));
    }
    let body: usize = sections
        .iter()
        .map(|s| SECTION_HEADER_BYTES + s.bytes.len())
        .sum();
    if HEADER_BYTES + body > ENVELOPE_BYTES_MAX {
        return Err(EnvelopeError::TooLarge(format!("{body} bytes")));
    }
    let mut out = Vec::with_capacity(HEADER_BYTES + body);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&small_u16(sections.len()).to_le_bytes());
    out.extend_from_slice(&small_u32(body).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    for section in sections {
        out.extend_from_slice(&section.kind.to_le_bytes());
        out.extend_from_slice(&section.version.to_le_bytes());
        out.extend_from_slice(&small_u32(section.bytes.len()).to_le_bytes());
        out.extend_from_slice(&section.bytes);
    }
    let crc = checksum(&out);
    out[12..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// Unwraps sections; every byte is accounted for or all of it is refused.
pub fn decode(bytes: &[u8]) -> Result<Vec<Section>, EnvelopeError> {
    if bytes.len() > ENVELOPE_BYTES_MAX {
        return Err(EnvelopeError::TooLarge(format!("{} bytes", bytes.len())));
    }
    if bytes.len() < HEADER_BYTES {
        return Err(EnvelopeError::Length {
            got: bytes.len(),
            want: HEADER_BYTES,
        });
    }
    if bytes[..4] != MAGIC {
        return Err(EnvelopeError::Magic);
    }
    let version = u16_at(bytes, 4);
    if version != VERSION {
        return Err(EnvelopeError::Version(version));
    }
    let count = usize::from(u16_at(bytes, 6));
    if count > SECTIONS_MAX {
        return Err(EnvelopeError::TooLarge(format!("{count} sections")));
    }
    let want = HEADER_BYTES.saturating_add(usize::try_from(u32_at(bytes, 8)).unwrap_or(usize::MAX));
    if bytes.len() != want {
        return Err(EnvelopeError::Length {
            got: bytes.len(),
            want,
        });
    }
    if u32_at(bytes, 12) != checksum(bytes) {
        return Err(EnvelopeError::Checksum);
    }
    sections(&bytes[HEADER_BYTES..], count)
}

fn sections(mut rest: &[u8], count: usize) -> Result<Vec<Section>, EnvelopeError> {
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        if rest.len() < SECTION_HEADER_BYTES {
            return Err(EnvelopeError::Length {
                got: rest.len(),
                want: SECTION_HEADER_BYTES,
            });
        }
        let (head, tail) = rest.split_at(SECTION_HEADER_BYTES);
        let len = usize::try_from(u32_at(head, 4)).unwrap_or(usize::MAX);
        if tail.len() < len {
            return Err(EnvelopeError::Length {
                got: tail.len(),
                want: len,
            });
        }
        let (body, after) = tail.split_at(len);
        found.push(Section {
            kind: u16_at(head, 0),
            version: u16_at(head, 2),
            bytes: body.to_vec(),
        });
        rest = after;
    }
    if !rest.is_empty() {
        return Err(EnvelopeError::Length {
            got: rest.len(),
            want: 0,
        });
    }
    Ok(found)
}

/// Over the header up to the checksum, and the body.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[HEADER_BYTES..])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// For counts that a bound above keeps small.
fn small_u16(n: usize) -> u16 {
    u16::try_from(n).expect("bounded by SECTIONS_MAX")
}

fn small_u32(n: usize) -> u32 {
    u32::try_from(n).expect("bounded by ENVELOPE_BYTES_MAX")
}
