//! Frames on one ordered byte stream.
//!
//! ```text
//!   magic "FRYM" | version u16 | kind u16 | meta length u32 | data length u32 | crc32c u32
//!   meta: postcard of the kind's type        data: only after `Data`
//! ```
//!
//! Little-endian. The checksum covers the header before it and the meta. Data has checksums of its
//! own, one for each 64 KiB, inside the meta; who applies the data verifies them. Both lengths are
//! checked against bounds before anything is allocated.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::envelope::ENVELOPE_BYTES_MAX;
use crate::ids::{Claim, DaemonId, MigrationId, NicId};
use crate::negotiate::{Hello, Ready};
use crate::schema::net_v1::FrameV1;

/// The protocol spoken here. It stands in every frame's header.
pub const PROTOCOL_VERSION: u16 = 1;
/// Most bytes of disk data in one frame.
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// Most bytes of everything else in one frame.
pub const META_BYTES_MAX: usize = ENVELOPE_BYTES_MAX + 8 * 1024;
/// Data is checked in pieces of this size, counted from the start of the frame's data.
pub const CHECKED_BYTES: usize = 64 * 1024;
/// Most bytes of a QMP command or its answer.
pub const QMP_BYTES_MAX: usize = 16 * 1024;
/// Reasons are cut to this.
pub const REASON_BYTES_MAX: usize = 1024;

const MAGIC: [u8; 4] = *b"FRYM";
const HEADER_BYTES: usize = 20;

/// Which of the source's counters a tag belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tag {
    /// A mirrored write or zero of the guest, by the tap's sequence number.
    Guest(u64),
    /// A piece of the bulk copy.
    Bulk(u64),
    /// A flush.
    Flush(u64),
}

/// The head of a data frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// For the acknowledgement.
    pub tag: Tag,
    /// First byte on the disk.
    pub offset_bytes: u64,
    /// crc32c of each [`CHECKED_BYTES`] of the data, the last one maybe shorter.
    pub crcs: Vec<u32>,
}

/// What a range holds, for a destination that kept a copy of an earlier attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// For the answer.
    pub tag: Tag,
    /// First byte on the disk.
    pub offset_bytes: u64,
    /// Length in bytes, at most [`DATA_BYTES_MAX`].
    pub len_bytes: u64,
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
}

/// What the destination has of a range is something else: it has to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differs {
    /// The digest's.
    pub tag: Tag,
    /// First byte on the disk.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// For [`Digest::hash`].
pub fn digest(data: &[u8]) -> [u8; 32] {
    blake3::hash(data).into()
}

/// A range that reads as zeroes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zero {
    /// For the acknowledgement.
    pub tag: Tag,
    /// First byte on the disk.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// The disk is the destination's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// What is granted.
    pub claim: Claim,
    /// The device's state, as an envelope.
    pub device_state: Vec<u8>,
}

/// The source wants to know, or have back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandBack {
    /// What it was.
    pub claim: Claim,
    /// Return it although it was granted. When false, a granted disk stays granted, and only one
    /// that was not is refused from then on.
    pub though_granted: bool,
}

/// The disk is the source's again, and the destination refuses the migration from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// What it was.
    pub claim: Claim,
    /// The daemon that answers.
    pub daemon: DaemonId,
    /// Why, where the destination decided it.
    pub reason: String,
}

/// An answer about a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What it is about.
    pub claim: Claim,
    /// The daemon that answers.
    pub daemon: DaemonId,
}

/// Stop, and throw the copy away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abort {
    /// What is aborted.
    pub claim: Claim,
}

/// No.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Cause and mend, for a person.
    pub reason: String,
    /// Whether the cause passes by itself within seconds: ask again.
    pub passing: bool,
}

/// The destination's rings were started: a VM has arrived there, and this shows whether it is the
/// one that was served here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// What is asked for.
    pub claim: Claim,
    /// Where each queue of the device there begins (SET_VRING_BASE).
    pub bases: Vec<u16>,
}

/// A command for a VMM's monitor on the other host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qmp {
    /// The monitor's socket there.
    pub socket: String,
    /// One JSON object.
    pub command: String,
}

/// The monitor's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QmpReply {
    /// One JSON object.
    pub answer: String,
}

/// A NIC is on offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicHello {
    /// The attempt.
    pub migration: MigrationId,
    /// Its name on both hosts.
    pub nic: NicId,
    /// The daemon that offers.
    pub daemon: DaemonId,
    /// The device as it is now, as an envelope.
    pub shape: Vec<u8>,
}

/// A NIC's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicState {
    /// As an envelope.
    pub device_state: Vec<u8>,
}

/// Frames that reached the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicFrames {
    /// Those of each port in their order.
    pub frames: Vec<FrameV1>,
}

/// Everything that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Source: a disk is on offer.
    Hello(Hello),
    /// Destination: send it.
    Ready(Ready),
    /// Either: no, and why. Ends the conversation.
    Refused(Refused),
    /// Source: bytes of the disk; they follow the frame's meta.
    Data(Data),
    /// Source: zeroes.
    Zero(Zero),
    /// Source: what a range holds.
    Digest(Digest),
    /// Destination: it holds something else here. In the place of an `Ack`.
    Differs(Differs),
    /// Destination: everything up to this is applied (a flush: durable).
    Ack(Tag),
    /// Source: make all before this durable.
    Flush(u64),
    /// Source: the disk is yours.
    Grant(Grant),
    /// Destination: durably mine.
    Granted(Answer),
    /// Destination: served here; no way back.
    Activated(Answer),
    /// Source: give it back, or say that you have it.
    HandBack(HandBack),
    /// Destination: durably yours.
    Returned(Returned),
    /// Source: forget it.
    Abort(Abort),
    /// Source: pass this to the VMM.
    Qmp(Qmp),
    /// Destination: the VMM's answer.
    QmpReply(QmpReply),
    /// Destination: rings were started here.
    Pull(Pull),
    /// Source: no grant for that, and why. The migration goes on.
    NotGranted(Refused),
    /// Either: still here.
    Ping,
    /// Source: a NIC is on offer.
    NicHello(NicHello),
    /// Destination: it is awaited.
    NicReady,
    /// Source: its rings stand still, and this is its state.
    NicState(NicState),
    /// Destination: imported.
    NicTaken,
    /// Source: frames for its guest.
    NicFrames(NicFrames),
    /// Destination: its guest runs here, announced.
    NicActivated,
    /// Source: nothing more comes first.
    NicFence,
    /// Source: its guest runs here again. What was sent is void.
    NicResumed,
    /// Source: the conversation is over. A NIC that was not activated does not come.
    NicDone,
}

/// Why a frame cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The stream failed or fell silent.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// The bytes break the format.
    #[error("the other side broke the protocol: {0}")]
    Protocol(String),
    /// Another version.
    #[error(
        "the other side speaks migration protocol {0}, this Ferry speaks {PROTOCOL_VERSION}; \
         upgrade the older one"
    )]
    Version(u16),
    /// Our own message is over a bound.
    #[error("a message of {0} bytes is too large to send")]
    TooLarge(usize),
}

/// A frame whose data, if any, is still in the stream.
#[derive(Debug)]
pub struct Frame {
    /// What it says.
    pub message: Message,
    /// Bytes of data that follow.
    pub data_bytes: usize,
}

/// Checksums for [`Data::crcs`].
pub fn data_crcs(data: &[u8]) -> Vec<u32> {
    data.chunks(CHECKED_BYTES).map(crc32c::crc32c).collect()
}

/// Whether the data is what its sender read.
pub fn data_intact(data: &[u8], crcs: &[u32]) -> bool {
    data.len().div_ceil(CHECKED_BYTES) == crcs.len()
        && data
            .chunks(CHECKED_BYTES)
            .zip(crcs)
            .all(|(piece, crc)| crc32c::crc32c(piece) == *crc)
}

/// Encodes header and meta of a frame; `data_bytes` of data are to follow on the wire.
pub fn encode(message: &Message, data_bytes: usize) -> Result<Vec<u8>, CodecError> {
    let (kind, meta) = message.encode_meta()?;
    if meta.len() > META_BYTES_MAX {
        return Err(CodecError::TooLarge(meta.len()));
    }
    if data_bytes > DATA_BYTES_MAX {
        return Err(CodecError::TooLarge(data_bytes));
    }
    let length = |n: usize| u32::try_from(n).expect("bounded above").to_le_bytes();
    let mut frame = Vec::with_capacity(HEADER_BYTES + meta.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    frame.extend_from_slice(&kind.to_le_bytes());
    frame.extend_from_slice(&length(meta.len()));
    frame.extend_from_slice(&length(data_bytes));
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame), &meta);
    frame.extend_from_slice(&crc.to_le_bytes());
    frame.extend_from_slice(&meta);
    Ok(frame)
}

/// Writes one frame that carries no data.
pub fn write_message(to: &mut impl Write, message: &Message) -> Result<(), CodecError> {
    to.write_all(&encode(message, 0)?)?;
    Ok(())
}

/// Reads one frame up to its data.
pub fn read_frame(from: &mut impl Read) -> Result<Frame, CodecError> {
    let mut header = [0u8; HEADER_BYTES];
    read_header(from, &mut header)?;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if header[..4] != MAGIC {
        return Err(protocol("not a frame"));
    }
    if u16_at(4) != PROTOCOL_VERSION {
        return Err(CodecError::Version(u16_at(4)));
    }
    let kind = u16_at(6);
    let meta_bytes = bounded(u32_at(8), META_BYTES_MAX)?;
    let data_bytes = bounded(u32_at(12), DATA_BYTES_MAX)?;
    let mut meta = vec![0; meta_bytes];
    from.read_exact(&mut meta)?;
    if crc32c::crc32c_append(crc32c::crc32c(&header[..16]), &meta) != u32_at(16) {
        return Err(protocol("a frame fails its checksum"));
    }
    let message = Message::decode_meta(kind, &meta)?;
    let fits = match &message {
        Message::Data(data) => {
            data_bytes > 0 && data.crcs.len() == data_bytes.div_ceil(CHECKED_BYTES)
        }
        _ => data_bytes == 0,
    };
    if !fits {
        return Err(protocol("a frame's data does not fit its kind"));
    }
    Ok(Frame {
        message,
        data_bytes,
    })
}

/// Reads a header; an end of the stream before its first byte is an orderly close.
fn read_header(from: &mut impl Read, header: &mut [u8]) -> Result<(), CodecError> {
    let first = loop {
        match from.read(header) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Err(CodecError::Closed);
    }
    from.read_exact(&mut header[first..])?;
    Ok(())
}

fn bounded(length: u32, max: usize) -> Result<usize, CodecError> {
    match usize::try_from(length) {
        Ok(length) if length <= max => Ok(length),
        _ => Err(CodecError::Protocol(format!(
            "a frame announces {length} bytes, {max} at most"
        ))),
    }
}

fn protocol(what: &str) -> CodecError {
    CodecError::Protocol(what.to_owned())
}

/// Cuts a reason to what a frame may carry.
pub fn refused(reason: impl Into<String>) -> Message {
    Message::Refused(Refused {
        reason: cut(reason.into()),
        passing: false,
    })
}

/// Cuts text to [`REASON_BYTES_MAX`], between characters.
pub fn cut(mut text: String) -> String {
    if text.len() > REASON_BYTES_MAX {
        let mut end = REASON_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

impl Message {
    fn encode_meta(&self) -> Result<(u16, Vec<u8>), CodecError> {
        match self {
            Message::Hello(m) => pack(1, m),
            Message::Ready(m) => pack(2, m),
            Message::Refused(m) => pack(3, m),
            Message::Data(m) => pack(4, m),
            Message::Zero(m) => pack(5, m),
            Message::Ack(m) => pack(6, m),
            Message::Flush(m) => pack(7, m),
            Message::Grant(m) => pack(8, m),
            Message::Granted(m) => pack(9, m),
            Message::Activated(m) => pack(10, m),
            Message::HandBack(m) => pack(11, m),
            Message::Returned(m) => pack(12, m),
            Message::Abort(m) => pack(13, m),
            Message::Qmp(m) => pack(14, m),
            Message::QmpReply(m) => pack(15, m),
            Message::Ping => pack(16, &()),
            Message::Pull(m) => pack(17, m),
            Message::NotGranted(m) => pack(18, m),
            Message::Digest(m) => pack(19, m),
            Message::Differs(m) => pack(20, m),
            Message::NicHello(m) => pack(21, m),
            Message::NicReady => pack(22, &()),
            Message::NicState(m) => pack(23, m),
            Message::NicTaken => pack(24, &()),
            Message::NicFrames(m) => pack(25, m),
            Message::NicActivated => pack(26, &()),
            Message::NicFence => pack(27, &()),
            Message::NicResumed => pack(28, &()),
            Message::NicDone => pack(29, &()),
        }
    }

    fn decode_meta(kind: u16, meta: &[u8]) -> Result<Message, CodecError> {
        Ok(match kind {
            1 => Message::Hello(unpack(meta)?),
            2 => Message::Ready(unpack(meta)?),
            3 => Message::Refused(unpack(meta)?),
            4 => Message::Data(unpack(meta)?),
            5 => Message::Zero(unpack(meta)?),
            6 => Message::Ack(unpack(meta)?),
            7 => Message::Flush(unpack(meta)?),
            8 => Message::Grant(unpack(meta)?),
            9 => Message::Granted(unpack(meta)?),
            10 => Message::Activated(unpack(meta)?),
            11 => Message::HandBack(unpack(meta)?),
            12 => Message::Returned(unpack(meta)?),
            13 => Message::Abort(unpack(meta)?),
            14 => Message::Qmp(unpack(meta)?),
            15 => Message::QmpReply(unpack(meta)?),
            16 => unpack::<()>(meta).map(|()| Message::Ping)?,
            17 => Message::Pull(unpack(meta)?),
            18 => Message::NotGranted(unpack(meta)?),
            19 => Message::Digest(unpack(meta)?),
            20 => Message::Differs(unpack(meta)?),
            21 => Message::NicHello(unpack(meta)?),
            22 => unpack::<()>(meta).map(|()| Message::NicReady)?,
            23 => Message::NicState(unpack(meta)?),
            24 => unpack::<()>(meta).map(|()| Message::NicTaken)?,
            25 => Message::NicFrames(unpack(meta)?),
            26 => unpack::<()>(meta).map(|()| Message::NicActivated)?,
            27 => unpack::<()>(meta).map(|()| Message::NicFence)?,
            28 => unpack::<()>(meta).map(|()| Message::NicResumed)?,
            29 => unpack::<()>(meta).map(|()| Message::NicDone)?,
            other => {
                return Err(CodecError::Protocol(format!(
                    "unknown message kind {other}"
                )));
            }
        })
    }
}

fn pack<T: Serialize>(kind: u16, value: &T) -> Result<(u16, Vec<u8>), CodecError> {
    match postcard::to_stdvec(value) {
        Ok(meta) => Ok((kind, meta)),
        Err(error) => Err(CodecError::Protocol(format!(
            "a message does not encode: {error}"
        ))),
    }
}

fn unpack<T: DeserializeOwned>(meta: &[u8]) -> Result<T, CodecError> {
    match postcard::take_from_bytes(meta) {
        Ok((value, [])) => Ok(value),
        _ => Err(protocol("a message does not decode")),
    }
}

#[cfg(test)]
mod tests;
