//! What overlays rest on. A base is opened once for this process, whatever number of clones rests
//! on it, and its lock is shared: it may be read by many, and written by nobody.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use imago::FormatAccess;
use imago::qcow2::Qcow2;
use imago::raw::Raw;

use super::error::ThinError;
use super::header::{Backing, Format, Header};
use super::storage::{Access, ThinFile, size_of};
use crate::backend::file::{ImageError, lock, names};
use crate::limits::THIN_CHAIN_MAX;

/// A base that is open, and the number of images it is made of.
#[derive(Clone)]
pub(super) struct Base {
    pub access: Arc<Access>,
    pub height: usize,
}

/// Device, inode and format of a base.
type Key = (u64, u64, Format);

/// The bases that are open, and how high each stands.
type Bases = HashMap<Key, (Weak<Access>, usize)>;

static OPEN: Mutex<Option<Bases>> = Mutex::new(None);

/// The base that `overlay` names.
pub(super) fn of(overlay: &Path, backing: &Backing) -> Result<Base, ThinError> {
    named(overlay, backing, 1)
}

fn named(overlay: &Path, backing: &Backing, depth: usize) -> Result<Base, ThinError> {
    let Some(format) = &backing.format else {
        return Err(ThinError::NoBackingFormat {
            path: overlay.to_owned(),
            base: backing.name.clone(),
        });
    };
    let format = format.parse().map_err(|what| ThinError::Unsupported {
        path: overlay.to_owned(),
        what: format!("a base of format {format}: {what}"),
        mend: "convert the base to raw, and rest the overlay on that: qemu-img rebase -F raw -b"
            .into(),
    })?;
    let path = resolve(overlay, &backing.name)?;
    open(&path, format, depth)
}

/// Opens a base, or finds it open; `depth` images rest on it.
pub(super) fn open(path: &Path, format: Format, depth: usize) -> Result<Base, ThinError> {
    let file = open_file(path, false)?;
    let metadata = file
        .metadata()
        .map_err(|source| open_failed(path, source))?;
    let key = (metadata.dev(), metadata.ino(), format);
    let deep = |height: usize| {
        if depth + height > THIN_CHAIN_MAX {
            Err(ThinError::TooDeep {
                path: path.to_owned(),
            })
        } else {
            Ok(())
        }
    };
    deep(1)?;
    if let Some(base) = found(key) {
        deep(base.height)?;
        return Ok(base);
    }
    lock(&file, path, true).map_err(|error| match error {
        ImageError::Locked { path } => ThinError::BaseInUse { path },
        other => other.into(),
    })?;
    if !names(path, &file).map_err(|source| open_failed(path, source))? {
        return Err(ImageError::Replaced {
            path: path.to_owned(),
        }
        .into());
    }
    let base = read(file, path, format, depth)?;
    Ok(keep(key, base))
}

fn read(file: File, path: &Path, format: Format, depth: usize) -> Result<Base, ThinError> {
    let failed = |source| ThinError::Io {
        path: path.to_owned(),
        source,
    };
    let bytes = size_of(&file).map_err(failed)?;
    let (access, below) = match format {
        Format::Raw => {
            let raw =
                Raw::open_image(ThinFile::new(Arc::new(file), None), false).map_err(failed)?;
            (FormatAccess::new(raw), 0)
        }
        Format::Qcow2 => {
            let header = Header::read(&file, path, bytes)?;
            let below = header.backing.as_ref();
            let below = below
                .map(|below| named(path, below, depth + 1))
                .transpose()?;
            let height = below.as_ref().map_or(0, |below| below.height);
            let file = ThinFile::new(Arc::new(file), None);
            (driver(file, false, below).map_err(failed)?, height)
        }
    };
    Ok(Base {
        access: Arc::new(access),
        height: below + 1,
    })
}

/// A qcow2 driver on `file`, which opens nothing by itself.
pub(super) fn driver(
    file: ThinFile,
    writable: bool,
    below: Option<Base>,
) -> std::io::Result<Access> {
    let mut image = Qcow2::<ThinFile, Arc<Access>>::open_image(file, writable)?;
    image.set_data_file(None);
    image.set_backing(below.map(|below| below.access));
    Ok(FormatAccess::new(image))
}

fn found(key: Key) -> Option<Base> {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (access, height) = open.as_ref()?.get(&key)?;
    Some(Base {
        access: access.upgrade()?,
        height: *height,
    })
}

/// Keeps a base for the next clone, or takes the one that another thread has opened meanwhile.
fn keep(key: Key, base: Base) -> Base {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    open.retain(|_, (access, _)| access.strong_count() > 0);
    if let Some((access, height)) = open.get(&key)
        && let Some(access) = access.upgrade()
    {
        return Base {
            access,
            height: *height,
        };
    }
    open.insert(key, (Arc::downgrade(&base.access), base.height));
    base
}

/// Where the name of a base leads to: seen from the overlay's directory.
fn resolve(overlay: &Path, name: &str) -> Result<PathBuf, ThinError> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let first = name.split('/').next().unwrap_or_default();
    if first.contains(':') {
        return Err(ThinError::Unsupported {
            path: overlay.to_owned(),
            what: format!("the base {name:?}, no path"),
            mend: "put the base into a file, and name that: qemu-img rebase".into(),
        });
    }
    Ok(overlay.parent().unwrap_or(Path::new("/")).join(name))
}

/// Opens a regular file or block device, through the page cache.
pub(super) fn open_file(path: &Path, write: bool) -> Result<File, ThinError> {
    let failed = |source| open_failed(path, source);
    let check = |kind: std::fs::FileType| {
        if kind.is_file() || kind.is_block_device() {
            Ok(())
        } else {
            Err(ImageError::Kind {
                path: path.to_owned(),
            })
        }
    };
    // Before it is opened: to open a pipe or a tape is to do something with it.
    check(std::fs::metadata(path).map_err(failed)?.file_type())?;
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).map_err(failed)?;
    check(file.metadata().map_err(failed)?.file_type())?;
    Ok(file)
}

fn open_failed(path: &Path, source: std::io::Error) -> ThinError {
    ImageError::Open {
        path: path.to_owned(),
        source,
    }
    .into()
}
