//! Why a thin disk cannot be used.

use std::io;
use std::path::PathBuf;

use crate::backend::file::ImageError;
use crate::limits::THIN_CHAIN_MAX;

/// Why a qcow2 image, or one it rests on, cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ThinError {
    /// It cannot be opened or locked.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No qcow2 image.
    #[error("{path} is not a qcow2 image: serve it as what it is, without qcow2: before its path")]
    NotQcow2 {
        /// The image.
        path: PathBuf,
    },
    /// Broken, or made to look like an image.
    #[error("{path} is malformed: {what}. See what is left of it: qemu-img check {path}")]
    Malformed {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Its reference counts and its tables do not agree, as a crash of the host can leave them.
    #[error("{path} does not hold together: {what}. Repair it: qemu-img check -r all {path}")]
    Inconsistent {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A well-formed image with something in it that is not served.
    #[error("{path} has {what}, which Ferry does not serve; {mend}")]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// What it has.
        what: String,
        /// What to do.
        mend: String,
    },
    /// The format of the base is not written down, and is never guessed.
    #[error(
        "{path} does not say what format its base {base} has, and a guess would let a guest choose \
         it. Write it down: qemu-img rebase -u -F raw -b {base} {path} (or -F qcow2)"
    )]
    NoBackingFormat {
        /// The overlay.
        path: PathBuf,
        /// The base it names.
        base: String,
    },
    /// The base is written by somebody.
    #[error(
        "{path}, a base, is in use: another process, or this daemon, holds its lock to write to it. \
         A base may not change while clones of it exist; stop whoever serves it"
    )]
    BaseInUse {
        /// The base.
        path: PathBuf,
    },
    /// A chain that is too long, or a circle.
    #[error(
        "{path} rests on more than {THIN_CHAIN_MAX} images, or on itself; flatten it: qemu-img \
         convert -O qcow2 {path} flat.qcow2"
    )]
    TooDeep {
        /// The image that was one too many.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}
