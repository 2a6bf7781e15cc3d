//! The bytes of the copy: each range is checked, verified and written before it is acknowledged.

use std::io::Read;

use ferry_dataplane::backend::file::Image;

use super::Session;
use crate::codec::{self, DATA_BYTES_MAX, Data, Differs, Digest, Message, Zero, data_intact};
use crate::destination::TargetBytes;

impl Session<'_> {
    pub(super) fn data(
        &mut self,
        data: &Data,
        len: usize,
        from: &mut impl Read,
    ) -> Result<(), String> {
        self.receiving()?;
        self.check_range(data.offset_bytes, len as u64)?;
        from.read_exact(&mut self.buffer[..len])
            .map_err(|error| error.to_string())?;
        if !data_intact(&self.buffer[..len], &data.crcs) {
            return Err(format!(
                "data for byte {} arrived damaged (its checksum is wrong); check the network \
                 and the memory of both hosts, then migrate again",
                data.offset_bytes
            ));
        }
        self.image()?
            .write_at(data.offset_bytes, &self.buffer, len)
            .map_err(|error| self.disk_failed("write", data.offset_bytes, &error))?;
        self.acknowledge(data.tag)
    }

    pub(super) fn zero(&mut self, zero: &Zero) -> Result<(), String> {
        self.receiving()?;
        self.check_range(zero.offset_bytes, zero.len_bytes)?;
        self.image()?
            .zero(zero.offset_bytes..zero.offset_bytes + zero.len_bytes)
            .map_err(|error| self.disk_failed("zero", zero.offset_bytes, &error))?;
        self.acknowledge(zero.tag)
    }

    /// Whether what was kept of an earlier attempt is what the source has.
    pub(super) fn digest(&mut self, digest: &Digest) -> Result<(), String> {
        self.receiving()?;
        let (offset, len_bytes) = (digest.offset_bytes, digest.len_bytes);
        self.check_range(offset, len_bytes)?;
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        if len > DATA_BYTES_MAX {
            return Err("the source broke the protocol: a digest of too much".into());
        }
        let TargetBytes::Copy { image, .. } = &self.target.bytes else {
            return Err("the source broke the protocol: it asks about a shared disk".into());
        };
        image
            .read_at(offset, &mut self.buffer, len)
            .map_err(|error| self.disk_failed("read", offset, &error))?;
        if codec::digest(&self.buffer[..len]) == digest.hash {
            return self.acknowledge(digest.tag);
        }
        let differs = Message::Differs(Differs {
            tag: digest.tag,
            offset_bytes: offset,
            len_bytes,
        });
        self.voice.say(&differs).map_err(|error| error.to_string())
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), String> {
        let block = u64::from(self.hello.shape.block_bytes);
        let end = offset.checked_add(len);
        let inside = end.is_some_and(|end| end <= self.hello.shape.capacity_bytes);
        if inside && len > 0 && offset.is_multiple_of(block) && len.is_multiple_of(block) {
            return Ok(());
        }
        Err(format!(
            "the source broke the protocol: {len} bytes at {offset} are not on the disk"
        ))
    }

    pub(super) fn flush(&self) -> Result<(), String> {
        match &self.target.bytes {
            TargetBytes::Copy { image, .. } => image
                .flush()
                .map_err(|error| self.disk_failed("flush", 0, &error)),
            // Nothing was sent.
            TargetBytes::Shared(_) => Ok(()),
        }
    }

    fn image(&self) -> Result<&Image, String> {
        match &self.target.bytes {
            TargetBytes::Copy { image, .. } => Ok(image),
            TargetBytes::Shared(_) => {
                Err("the source broke the protocol: it sends bytes of a shared disk".into())
            }
        }
    }

    fn disk_failed(&self, doing: &str, offset: u64, error: &std::io::Error) -> String {
        // What the page cache says it has is not to be compared with.
        self.failed.set(true);
        let path = self.image().map(|image| image.path().display().to_string());
        let path = path.unwrap_or_else(|_| "the disk".into());
        format!("cannot {doing} {path} at byte {offset}: {error}")
    }
}
