//! A qcow2 header, read and checked before anything else looks at the image: what a table may
//! point to, which features are served, and what the image rests on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::ThinError;
use crate::limits::SECTOR_BYTES;

/// "QFI\xfb".
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header, and of the shortest of version 3.
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;
/// Longest name of a base, by the specification.
const NAME_BYTES_MAX: usize = 1023;
/// Header extension that holds the format of the base; 0 ends the extensions.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Header extension with names of features, for messages, and the bytes of one entry.
const FEATURE_NAMES: u32 = 0x6803_f857;
const FEATURE_NAME_BYTES: u64 = 48;
/// Extensions looked at; images have a handful.
const EXTENSIONS_MAX: usize = 64;
/// Longest L1 table, in bytes, as QEMU has it.
const L1_BYTES_MAX: u64 = 32 << 20;
/// Longest reference table, in bytes, as QEMU has it.
const REFTABLE_BYTES_MAX: u64 = 8 << 20;

/// What an image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// qcow2.
    Qcow2,
}

impl Format {
    /// As qcow2 headers and `qemu-img` spell it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            other => Err(format!(
                "{other:?} is no format served here; use raw or qcow2"
            )),
        }
    }
}

/// What an image says of its base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    pub name: String,
    pub format: Option<String>,
}

/// The fields that Ferry looks at.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size_bytes: u64,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub refcount_bits: u32,
    pub snapshots: u32,
    pub backing: Option<Backing>,
}

impl Header {
    /// Reads and checks the header of an image of `file_bytes`.
    pub fn read(file: &File, path: &Path, file_bytes: u64) -> Result<Header, ThinError> {
        let mut start = [0; V3_BYTES];
        let got = read_up_to(file, &mut start, 0).map_err(|source| ThinError::Io {
            path: path.to_owned(),
            source,
        })?;
        if got < V2_BYTES || be32(&start, 0) != MAGIC {
            return Err(ThinError::NotQcow2 {
                path: path.to_owned(),
            });
        }
        let header = Header::parse(file, path, &start[..got])?;
        header.check(path, file_bytes)?;
        Ok(header)
    }

    fn parse(file: &File, path: &Path, start: &[u8]) -> Result<Header, ThinError> {
        let malformed = |what: &str| ThinError::Malformed {
            path: path.to_owned(),
            what: what.into(),
        };
        let unsupported = |what: &str, mend: &str| ThinError::Unsupported {
            path: path.to_owned(),
            what: what.into(),
            mend: mend.into(),
        };
        let convert = format!(
            "convert it: qemu-img convert -O qcow2 {} new.qcow2",
            path.display()
        );
        let version = be32(start, 4);
        if !matches!(version, 2 | 3) {
            return Err(unsupported(&format!("qcow2 version {version}"), &convert));
        }
        let cluster_bits = be32(start, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(malformed(&format!("clusters of 2^{cluster_bits} bytes")));
        }
        if be32(start, 32) != 0 {
            return Err(unsupported("encryption", &convert));
        }
        let (mut refcount_bits, mut header_bytes) = (16, V2_BYTES as u64);
        if version == 3 {
            if start.len() < V3_BYTES {
                return Err(malformed("it ends within its header"));
            }
            let incompatible = be64(start, 72);
            if incompatible & 1 != 0 {
                return Err(ThinError::Inconsistent {
                    path: path.to_owned(),
                    what: "it is marked dirty".into(),
                });
            }
            if incompatible & 2 != 0 {
                return Err(ThinError::Inconsistent {
                    path: path.to_owned(),
                    what: "it is marked corrupt".into(),
                });
            }
            if incompatible != 0 {
                let what = match incompatible {
                    4 => "an external data file".into(),
                    8 => "compression other than deflate".into(),
                    16 => "subclusters".into(),
                    other => format!("features {other:#x}"),
                };
                return Err(unsupported(&what, &convert));
            }
            let order = be32(start, 96);
            if order > 6 {
                return Err(malformed(&format!("reference counts of 2^{order} bits")));
            }
            refcount_bits = 1 << order;
            header_bytes = u64::from(be32(start, 100));
            if header_bytes < V3_BYTES as u64 || header_bytes > 1 << cluster_bits {
                return Err(malformed(&format!("a header of {header_bytes} bytes")));
            }
        }
        Ok(Header {
            version,
            cluster_bits,
            size_bytes: be64(start, 24),
            l1_entries: be32(start, 36),
            l1_offset: be64(start, 40),
            reftable_offset: be64(start, 48),
            reftable_clusters: be32(start, 56),
            refcount_bits,
            snapshots: be32(start, 60),
            backing: read_backing(file, path, start, header_bytes, cluster_bits)?,
        })
    }

    /// Checks what the fields say against each other and the file.
    fn check(&self, path: &Path, file_bytes: u64) -> Result<(), ThinError> {
        let malformed = |what: String| {
            Err(ThinError::Malformed {
                path: path.to_owned(),
                what,
            })
        };
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(SECTOR_BYTES) {
            return malformed(format!(
                "its disk is {} bytes, not whole sectors above 0",
                self.size_bytes
            ));
        }
        let needed = self.size_bytes.div_ceil(self.l1_entry_bytes());
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > L1_BYTES_MAX || needed > u64::from(self.l1_entries) {
            return malformed(format!(
                "a first table of {} entries for a disk of {} bytes",
                self.l1_entries, self.size_bytes
            ));
        }
        let reftable_bytes = u64::from(self.reftable_clusters) << self.cluster_bits;
        if reftable_bytes == 0 || reftable_bytes > REFTABLE_BYTES_MAX {
            return malformed(format!("a reference table of {reftable_bytes} bytes"));
        }
        let tables = [
            ("first table", self.l1_offset, l1_bytes),
            ("reference table", self.reftable_offset, reftable_bytes),
        ];
        for (what, offset, bytes) in tables {
            let inside = offset
                .checked_add(bytes)
                .is_some_and(|end| end <= file_bytes.next_multiple_of(self.cluster_bytes()));
            if offset == 0 || !offset.is_multiple_of(self.cluster_bytes()) || !inside {
                return malformed(format!("its {what} is at {offset:#x}"));
            }
        }
        Ok(())
    }

    /// What an image that is written to must also be.
    pub fn check_writable(&self, path: &Path) -> Result<(), ThinError> {
        let unsupported = |what: &str, mend: String| {
            Err(ThinError::Unsupported {
                path: path.to_owned(),
                what: what.into(),
                mend,
            })
        };
        let shown = path.display();
        if self.version < 3 {
            let mend = format!("bring it up to version 3: qemu-img amend -o compat=1.1 {shown}");
            return unsupported("qcow2 version 2", mend);
        }
        if self.snapshots > 0 {
            let mend =
                format!("remove them: qemu-img snapshot -l {shown}; qemu-img snapshot -d ...");
            return unsupported("snapshots inside", mend);
        }
        if self.clusters_wanted(self.size_bytes) > self.clusters_counted() {
            let mend = format!(
                "copy it to one with larger clusters: qemu-img convert -O qcow2 {shown} new.qcow2"
            );
            return unsupported("a reference table that is too small for its disk", mend);
        }
        Ok(())
    }

    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that one entry of the first table stands for: one second table full.
    pub fn l1_entry_bytes(&self) -> u64 {
        1 << (2 * self.cluster_bits - 3)
    }

    /// Clusters that one block of reference counts stands for.
    pub fn refblock_entries(&self) -> u64 {
        (self.cluster_bytes() * 8) / u64::from(self.refcount_bits)
    }

    /// Clusters whose references the table can count. It is never made larger.
    pub fn clusters_counted(&self) -> u64 {
        let entries = (u64::from(self.reftable_clusters) << self.cluster_bits) / 8;
        entries * self.refblock_entries()
    }

    /// Clusters that a disk of `size_bytes` takes when every byte of it was written, with its
    /// tables and with room to make the first table anew.
    pub fn clusters_wanted(&self, size_bytes: u64) -> u64 {
        let data = size_bytes.div_ceil(self.cluster_bytes());
        let second = size_bytes.div_ceil(self.l1_entry_bytes());
        let first = (second * 8).div_ceil(self.cluster_bytes()) + 1;
        let counts = (data + second).div_ceil(self.refblock_entries()) + 1;
        1 + u64::from(self.reftable_clusters) + data + second + 2 * first + counts
    }
}

fn read_backing(
    file: &File,
    path: &Path,
    start: &[u8],
    header_bytes: u64,
    cluster_bits: u32,
) -> Result<Option<Backing>, ThinError> {
    let malformed = |what: &str| ThinError::Malformed {
        path: path.to_owned(),
        what: what.into(),
    };
    let format = read_extensions(file, path, header_bytes, cluster_bits)?;
    let (offset, len) = (be64(start, 8), be32(start, 16) as usize);
    if offset == 0 {
        return Ok(None);
    }
    let cluster = 1u64 << cluster_bits;
    let ends = offset
        .checked_add(len as u64)
        .is_some_and(|end| end < cluster);
    if len == 0 || len > NAME_BYTES_MAX || !ends {
        return Err(malformed(
            "the name of its base is not in its first cluster",
        ));
    }
    let mut name = vec![0; len];
    file.read_exact_at(&mut name, offset)
        .map_err(|source| ThinError::Io {
            path: path.to_owned(),
            source,
        })?;
    let name = String::from_utf8(name).map_err(|_| malformed("the name of its base is no text"))?;
    if name.contains('\0') {
        return Err(malformed("the name of its base is no text"));
    }
    Ok(Some(Backing { name, format }))
}

/// Looks through the header extensions, for the format of the base. The driver reads them all once
/// more, and takes a table of names that does not end with an entry badly.
fn read_extensions(
    file: &File,
    path: &Path,
    header_bytes: u64,
    cluster_bits: u32,
) -> Result<Option<String>, ThinError> {
    let malformed = |what: &str| {
        Err(ThinError::Malformed {
            path: path.to_owned(),
            what: what.into(),
        })
    };
    let failed = |source| ThinError::Io {
        path: path.to_owned(),
        source,
    };
    let cluster = 1u64 << cluster_bits;
    let (mut at, mut format) = (header_bytes, None);
    for _ in 0..EXTENSIONS_MAX {
        if at + 8 > cluster {
            return malformed("its header extensions leave the first cluster");
        }
        let mut head = [0; 8];
        read_up_to(file, &mut head, at).map_err(failed)?;
        let (kind, len) = (be32(&head, 0), u64::from(be32(&head, 4)));
        at += 8;
        if kind == 0 {
            return Ok(format);
        }
        if at + len > cluster {
            return malformed("a header extension leaves the first cluster");
        }
        if kind == FEATURE_NAMES && !len.is_multiple_of(FEATURE_NAME_BYTES) {
            return malformed("its table of feature names ends within an entry");
        }
        if kind == BACKING_FORMAT && len <= 64 {
            let mut text = vec![0; usize::try_from(len).expect("64 at most")];
            read_up_to(file, &mut text, at).map_err(failed)?;
            format = Some(String::from_utf8_lossy(&text).into_owned());
        }
        at += len.next_multiple_of(8);
    }
    malformed("it has too many header extensions")
}

/// Reads as much as there is, up to the whole of `buf`.
pub(super) fn read_up_to(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < buf.len() {
        match file.read_at(&mut buf[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(bytes) => got += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
