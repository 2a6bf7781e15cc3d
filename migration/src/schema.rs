//! What is inside an envelope: frozen types, and the runtime types they are checked into.
//!
//! The `*V1` types never change. The runtime types may; they are reached only through validation,
//! so whatever holds one may rely on what the checks say.

pub mod blk_v1;
pub mod net;
pub mod net_v1;
pub mod qos;
pub mod qos_v1;
pub mod queue_v1;

use ferry_dataplane::lifecycle::Geometry;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::envelope::{self, EnvelopeError, OPTIONAL, Section};
use blk_v1::BlkV1;
use qos::{Qos, check_qos};
use qos_v1::QosV1;
use queue_v1::QueueV1;

/// Section kind of a block device.
pub const KIND_BLK: u16 = 1;
/// Section kind of one virtqueue.
pub const KIND_QUEUE: u16 = 2;
/// Section kind of a NIC.
pub const KIND_NET: u16 = 3;
/// Section kind of frames in hand.
pub const KIND_FRAMES: u16 = 4;
/// Section kind of what a disk is to get of its datastore. Without it the device is the same.
pub const KIND_QOS: u16 = 5 | OPTIONAL;

/// More queues than any front-end drives.
pub const QUEUES_MAX: u16 = 256;
/// The largest split ring that virtio allows.
pub const QUEUE_SIZE_MAX: u16 = 32768;

/// Why a state does not make a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The wrapping is wrong.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A section of another time.
    #[error(
        "device state has a section of kind {kind} version {version}, which this Ferry does \
             not know; upgrade it before moving the device here"
    )]
    Unknown {
        /// The section's kind.
        kind: u16,
        /// Its schema version.
        version: u16,
    },
    /// A section that does not decode.
    #[error("a section of kind {0} of the device state does not decode; it is damaged")]
    Body(u16),
    /// Values that no device has.
    #[error("device state is not valid: {0}")]
    Invalid(String),
}

/// A block device's state that passed its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkState {
    /// The device.
    pub blk: BlkV1,
    /// Its queues, by index, without gaps.
    pub queues: Vec<QueueV1>,
    /// What it is to get of its datastore; `None` where whoever wrote the state did not say.
    pub qos: Option<Qos>,
}

impl BlkState {
    /// Checks a device and its queues.
    pub fn new(blk: BlkV1, queues: Vec<QueueV1>) -> Result<BlkState, SchemaError> {
        check_blk(&blk)?;
        if queues.len() != usize::from(blk.num_queues) {
            return Err(invalid(format!(
                "{} queues of {}",
                queues.len(),
                blk.num_queues
            )));
        }
        for (at, queue) in queues.iter().enumerate() {
            check_queue(at, queue)?;
        }
        Ok(BlkState {
            blk,
            queues,
            qos: None,
        })
    }

    /// The same with what the disk is to get, checked too.
    pub fn with_qos(self, qos: Option<Qos>) -> Result<BlkState, SchemaError> {
        qos.iter().try_for_each(check_qos)?;
        Ok(BlkState { qos, ..self })
    }

    /// The state as an envelope.
    pub fn encode(&self) -> Result<Vec<u8>, SchemaError> {
        let mut sections = vec![Section {
            kind: KIND_BLK,
            version: 1,
            bytes: body(&self.blk)?,
        }];
        for queue in &self.queues {
            sections.push(Section {
                kind: KIND_QUEUE,
                version: 1,
                bytes: body(queue)?,
            });
        }
        if let Some(qos) = &self.qos {
            sections.push(Section {
                kind: KIND_QOS,
                version: 1,
                bytes: body(&qos.to_v1())?,
            });
        }
        Ok(envelope::encode(&sections)?)
    }

    /// The state in an envelope.
    pub fn decode(bytes: &[u8]) -> Result<BlkState, SchemaError> {
        let mut blk = None;
        let mut queues = Vec::new();
        let mut qos = None;
        for section in envelope::decode(bytes)? {
            match (section.kind, section.version) {
                (KIND_BLK, 1) if blk.is_none() => blk = Some(parse::<BlkV1>(&section)?),
                (KIND_BLK, 1) => return Err(invalid("it describes two devices".into())),
                (KIND_QUEUE, 1) => queues.push(parse::<QueueV1>(&section)?),
                (KIND_QOS, 1) if qos.is_none() => {
                    qos = Some(Qos::from_v1(parse::<QosV1>(&section)?)?);
                }
                (KIND_QOS, 1) => return Err(invalid("it has two shares of its datastore".into())),
                (kind, _) if kind & OPTIONAL != 0 => {}
                (kind, version) => return Err(SchemaError::Unknown { kind, version }),
            }
        }
        BlkState::new(
            blk.ok_or_else(|| invalid("it describes no block device".into()))?,
            queues,
        )?
        .with_qos(qos)
    }
}

/// Checks a device without its queues, as a peer announces it.
pub fn check_blk(blk: &BlkV1) -> Result<(), SchemaError> {
    let block = u64::from(blk.block_bytes);
    if !blk.block_bytes.is_power_of_two() || !(512..=64 * 1024).contains(&blk.block_bytes) {
        return Err(invalid(format!("block of {block} bytes")));
    }
    if blk.capacity_bytes == 0
        || !blk.capacity_bytes.is_multiple_of(block)
        || i64::try_from(blk.capacity_bytes).is_err()
    {
        return Err(invalid(format!("capacity of {} bytes", blk.capacity_bytes)));
    }
    if blk.num_queues == 0 || blk.num_queues > QUEUES_MAX {
        return Err(invalid(format!("{} queues", blk.num_queues)));
    }
    Ok(())
}

/// The shape of a checked device.
pub fn geometry(blk: &BlkV1) -> Geometry {
    Geometry {
        capacity_bytes: blk.capacity_bytes,
        block_bytes: blk.block_bytes,
    }
}

fn check_queue(at: usize, queue: &QueueV1) -> Result<(), SchemaError> {
    if usize::from(queue.index) != at {
        return Err(invalid(format!("queue {} in place {at}", queue.index)));
    }
    if !queue.size.is_power_of_two() || queue.size > QUEUE_SIZE_MAX {
        return Err(invalid(format!("queue {at} of {} entries", queue.size)));
    }
    Ok(())
}

fn invalid(what: String) -> SchemaError {
    SchemaError::Invalid(what)
}

fn body<T: Serialize>(value: &T) -> Result<Vec<u8>, SchemaError> {
    postcard::to_stdvec(value).map_err(|error| invalid(format!("it does not encode ({error})")))
}

fn parse<T: DeserializeOwned>(section: &Section) -> Result<T, SchemaError> {
    match postcard::take_from_bytes(&section.bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(SchemaError::Body(section.kind)),
    }
}

#[cfg(test)]
mod tests;
