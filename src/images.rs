//! `ferry disk clone` and `ferry disk create`: images, made without a daemon.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use ferry_dataplane::backend::thin::{self, Format};
use serde_json::json;

use crate::cli::show;
use crate::error::{Done, Failure};
use crate::output;
use crate::spec::parse_size;

/// `ferry disk clone`.
#[derive(Args)]
pub struct CloneArguments {
    /// The image to clone. It may not be written to while clones of it exist.
    base: PathBuf,
    /// Where the clone is made: a qcow2 image with the differences.
    overlay: PathBuf,
    /// What the base holds, raw or qcow2; raw unless given.
    #[arg(long)]
    base_format: Option<Format>,
    /// Size of the clone, if larger than the base.
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
}

/// `ferry disk create`.
#[derive(Args)]
pub struct CreateArguments {
    /// Where the image is made.
    path: PathBuf,
    /// Its size.
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// raw or qcow2.
    #[arg(long, default_value = "raw")]
    format: Format,
}

/// Makes an overlay.
pub fn clone(arguments: &CloneArguments) -> Done {
    let base_format = match arguments.base_format {
        Some(format) => format,
        None if begins_like_qcow2(&arguments.base) => {
            return Err(Failure::Usage(format!(
                "{} begins like a qcow2 image; say what it is: --base-format qcow2, or raw if its \
                 guest wrote that",
                arguments.base.display()
            )));
        }
        None => Format::Raw,
    };
    arguments.size.map_or(Ok(()), check_size)?;
    let clone = thin::LinkedClone {
        base: &arguments.base,
        base_format,
        overlay: &arguments.overlay,
        size_bytes: arguments.size,
    };
    let bytes = clone.make()?;
    let made = json!({
        "overlay": arguments.overlay, "base": arguments.base, "base_format": base_format.name(),
        "bytes": bytes,
    });
    show(&made, |_| {
        let overlay = arguments.overlay.display();
        format!(
            "{overlay}: a clone of {}, {}\nnext: ferry serve qcow2:{overlay} --socket-path SOCKET, \
             or ferry disk add ID --path qcow2:{overlay}",
            arguments.base.display(),
            output::bytes(bytes)
        )
    });
    Ok(())
}

/// Makes an empty image.
pub fn create(arguments: &CreateArguments) -> Done {
    check_size(arguments.size)?;
    thin::create(&arguments.path, arguments.format, arguments.size)?;
    let made = json!({
        "path": arguments.path, "format": arguments.format.name(), "bytes": arguments.size,
    });
    show(&made, |_| {
        let (path, format) = (arguments.path.display(), arguments.format.name());
        format!("{path}: {format}, {}", output::bytes(arguments.size))
    });
    Ok(())
}

fn check_size(bytes: u64) -> Done {
    if bytes == 0 || !bytes.is_multiple_of(512) {
        return Err(Failure::Usage(format!(
            "{bytes} bytes: a size is a multiple of 512 above 0"
        )));
    }
    Ok(())
}

/// Not to choose a format, but to have one chosen.
fn begins_like_qcow2(path: &Path) -> bool {
    let mut magic = [0; 4];
    // A pipe would be waited for; opening it properly says what it is.
    path.is_file()
        && File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == *b"QFI\xfb"
}
