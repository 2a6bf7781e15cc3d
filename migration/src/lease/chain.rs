//! Who owns each epoch of a disk on a datastore that several hosts share.
//!
//! ```text
//!   DATASTORE/image              DATASTORE/image.ferry          "shared", and the disk's uuid
//!   DATASTORE/.ferry/UUID.1      DATASTORE/.ferry/UUID.2 ...    one file an epoch: its owner
//! ```
//!
//! An epoch is claimed by creating its file exclusively, and only when the one before is there. No
//! claim is ever changed or removed, so of all who want an epoch one gets it, and one who was asleep
//! meanwhile finds it taken. The owner of the newest epoch is the one host that may serve the disk.
//!
//! A claim that comes of no move is *open* until its owner has made sure that whoever had the disk
//! before serves it no more, and has said so beside it (`UUID.N.settled`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::{DaemonId, MigrationId};

/// A claim is a line; a file beyond this is none.
const CLAIM_BYTES_MAX: u64 = 4096;

/// The directory beside the images, for claims and heartbeats.
pub const DIR: &str = ".ferry";

/// Who has an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Link {
    /// The daemon.
    pub owner: DaemonId,
    /// Where its peers reach it.
    pub address: String,
    /// The move by which the epoch came to it; none for a new disk and a takeover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<MigrationId>,
}

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The epoch is this daemon's, now or since before.
    Mine,
    /// The epoch, or a later one, is another's. The newest is named.
    Lost {
        /// The newest epoch.
        epoch: u64,
        /// Its owner.
        link: Link,
    },
}

/// Where claims are kept. Nothing on it is ever changed.
pub trait Shelf {
    /// Makes the claim of an epoch, whole and durable, if there is none; whether it did.
    fn create_new(&self, epoch: u64, link: &Link) -> io::Result<bool>;
    /// Who has an epoch.
    fn read(&self, epoch: u64) -> io::Result<Option<Link>>;
    /// Writes down, durably, that nobody from before this epoch serves the disk any more.
    fn settle(&self, epoch: u64) -> io::Result<()>;
    /// Whether that was written down.
    fn is_settled(&self, epoch: u64) -> io::Result<bool>;
    /// The newest epoch that is claimed.
    fn newest(&self) -> io::Result<Option<u64>>;
}

/// Claims an epoch for `me`.
pub fn claim(shelf: &impl Shelf, epoch: u64, me: &Link) -> io::Result<Claimed> {
    let newest = shelf.newest()?.unwrap_or(0);
    if newest.checked_add(1).is_none_or(|next| epoch > next) {
        return Err(io::Error::other(format!(
            "epoch {epoch} cannot be claimed when the newest is {newest}"
        )));
    }
    if newest < epoch && shelf.create_new(epoch, me)? {
        return Ok(Claimed::Mine);
    }
    // It was there before, or another was faster.
    let newest = shelf.newest()?.unwrap_or(epoch);
    let link = read(shelf, newest)?;
    if newest == epoch && link.owner == me.owner && link.through == me.through {
        return Ok(Claimed::Mine);
    }
    Ok(Claimed::Lost {
        epoch: newest,
        link,
    })
}

fn read(shelf: &impl Shelf, epoch: u64) -> io::Result<Link> {
    let gone = || io::Error::other(format!("the claim of epoch {epoch} is gone"));
    shelf.read(epoch)?.ok_or_else(gone)
}

/// Whoever had the disk before the owner of `newest` and may still serve it, newest first: the owner
/// before an open claim, the one before that if that claim is open too, and so on.
pub fn unsettled(shelf: &impl Shelf, newest: u64, me: &Link) -> io::Result<Vec<Link>> {
    let mut owners: Vec<Link> = Vec::new();
    for epoch in (2..=newest).rev() {
        if read(shelf, epoch)?.through.is_some() || shelf.is_settled(epoch)? {
            break;
        }
        let before = read(shelf, epoch - 1)?;
        let known = |link: &Link| link.owner == before.owner;
        if before.owner != me.owner && !owners.iter().any(known) {
            owners.push(before);
        }
    }
    Ok(owners)
}

/// Claims in files.
#[derive(Debug)]
pub struct Dir {
    dir: PathBuf,
    disk: Uuid,
    /// An epoch that is known to be claimed: they are looked for from there.
    known: AtomicU64,
}

impl Dir {
    /// The claims of a disk whose image is in `datastore`.
    pub fn new(datastore: &Path, disk: Uuid) -> io::Result<Dir> {
        let dir = datastore.join(DIR);
        fs::create_dir_all(&dir)?;
        let claims = Dir {
            dir,
            disk,
            known: AtomicU64::new(0),
        };
        let prefix = format!("{disk}.");
        let newest = fs::read_dir(&claims.dir)?.flatten().filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix(&prefix)?.parse().ok()
        });
        claims
            .known
            .store(newest.max().unwrap_or(0), Ordering::Relaxed);
        Ok(claims)
    }

    fn path(&self, epoch: u64) -> PathBuf {
        self.dir.join(format!("{}.{epoch}", self.disk))
    }

    fn settled(&self, epoch: u64) -> PathBuf {
        self.dir.join(format!("{}.{epoch}.settled", self.disk))
    }
}

impl Shelf for Dir {
    fn create_new(&self, epoch: u64, link: &Link) -> io::Result<bool> {
        // Of nobody else, not even of another thread: what is linked is not written to again.
        let whole = self.dir.join(format!(".{}", Uuid::new_v4()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&whole)?;
        let mut text = serde_json::to_vec(link)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        // A link is made or not, and only if its name is free: on NFS too.
        let made = fs::hard_link(&whole, self.path(epoch));
        let _ = fs::remove_file(&whole);
        match made {
            Ok(()) => {
                File::open(&self.dir)?.sync_all()?;
                Ok(true)
            }
            // A reply that was lost may have been a success: whose it is says its text.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(&self, epoch: u64) -> io::Result<Option<Link>> {
        let path = self.path(epoch);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(CLAIM_BYTES_MAX).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            io::Error::other(format!("{} is not a claim: {error}", path.display()))
        })
    }

    fn settle(&self, epoch: u64) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        options.mode(0o644).open(self.settled(epoch))?.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }

    fn is_settled(&self, epoch: u64) -> io::Result<bool> {
        self.settled(epoch).try_exists()
    }

    fn newest(&self) -> io::Result<Option<u64>> {
        // A network file system remembers for a while that a name was not there, until the directory
        // is opened anew.
        File::open(&self.dir)?;
        let mut epoch = self.known.load(Ordering::Relaxed);
        // Contiguous: the first that is not there ends them.
        while let Some(next) = epoch.checked_add(1)
            && self.path(next).try_exists()?
        {
            epoch = next;
        }
        self.known.fetch_max(epoch, Ordering::Relaxed);
        Ok((epoch > 0).then_some(epoch))
    }
}

#[derive(Serialize, Deserialize)]
struct Mark {
    version: u32,
    shared: Uuid,
}

/// The file beside an image that says that it is shared.
fn mark(image: &Path) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(".ferry");
    name.into()
}

/// The uuid of a disk that is shared between hosts; nothing where the image is no such disk's.
pub fn shared_disk(image: &Path) -> io::Result<Option<Uuid>> {
    let text = match fs::read(mark(image)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(serde_json::from_slice::<Mark>(&text)
        .ok()
        .map(|mark| mark.shared))
}

/// Makes an image that has no record a shared disk; the disk's uuid, which another host may have
/// chosen at the same time.
pub fn share(image: &Path, disk: Uuid) -> io::Result<Uuid> {
    let path = mark(image);
    let mut whole = path.as_os_str().to_owned();
    whole.push(format!(".{disk}"));
    let whole = PathBuf::from(whole);
    let mark = Mark {
        version: 2,
        shared: disk,
    };
    let mut file = File::create(&whole)?;
    file.write_all(&serde_json::to_vec(&mark)?)?;
    file.sync_all()?;
    let made = fs::hard_link(&whole, &path);
    let _ = fs::remove_file(&whole);
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    shared_disk(image)?.ok_or_else(|| {
        io::Error::other(format!(
            "{} is the record of a disk of one host",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(n: u128) -> Link {
        Link {
            owner: DaemonId(Uuid::from_u128(n)),
            address: format!("host{n}:7077"),
            through: None,
        }
    }

    #[test]
    fn an_epoch_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Uuid::new_v4();
        let claims = || Dir::new(dir.path(), disk).unwrap();
        let (a, b) = (claims(), claims());
        assert_eq!(a.newest().unwrap(), None);
        assert!(claim(&a, 2, &link(1)).is_err(), "a gap");
        assert_eq!(claim(&a, 1, &link(1)).unwrap(), Claimed::Mine);
        assert_eq!(claim(&a, 1, &link(1)).unwrap(), Claimed::Mine);
        let lost = |epoch, n| Claimed::Lost {
            epoch,
            link: link(n),
        };
        assert_eq!(claim(&b, 1, &link(2)).unwrap(), lost(1, 1));
        assert_eq!(claim(&b, 2, &link(2)).unwrap(), Claimed::Mine);
        // What was one's own is no more.
        assert_eq!(claim(&a, 1, &link(1)).unwrap(), lost(2, 2));
        assert_eq!(claims().newest().unwrap(), Some(2));
        assert_eq!(
            fs::read_dir(dir.path().join(DIR)).unwrap().count(),
            2,
            "nothing half-made stays"
        );
    }

    #[test]
    fn an_open_claim_leads_to_those_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Dir::new(dir.path(), Uuid::new_v4()).unwrap();
        let through = |n, migration| Link {
            through: Some(MigrationId(Uuid::from_u128(migration))),
            ..link(n)
        };
        let before = |newest, me| {
            let owners = unsettled(&claims, newest, &link(me)).unwrap();
            owners.iter().map(|it| it.owner).collect::<Vec<_>>()
        };
        let who = |n| link(n).owner;
        claim(&claims, 1, &link(1)).unwrap();
        assert_eq!(before(1, 9), []);
        claim(&claims, 2, &through(2, 7)).unwrap();
        assert_eq!(before(2, 9), [], "the move has seen to it");
        claim(&claims, 3, &link(3)).unwrap();
        claim(&claims, 4, &link(1)).unwrap();
        assert_eq!(before(4, 9), [who(3), who(2)]);
        assert_eq!(before(4, 3), [who(2)], "of itself one knows");
        claims.settle(4).unwrap();
        assert_eq!(before(4, 9), []);
        claim(&claims, 5, &link(2)).unwrap();
        assert_eq!(before(5, 9), [who(1)]);
        assert_eq!(
            Dir::new(dir.path(), claims.disk).unwrap().newest().unwrap(),
            Some(5)
        );
        // One's own claim by a takeover is not one's own by a move.
        assert_ne!(claim(&claims, 5, &through(2, 7)).unwrap(), Claimed::Mine);
    }

    #[test]
    fn of_many_who_claim_at_once_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Uuid::new_v4();
        for epoch in 1..=50 {
            let start = std::sync::Barrier::new(4);
            let contend = |n| {
                let claims = Dir::new(dir.path(), disk).unwrap();
                start.wait();
                claim(&claims, epoch, &link(n)).unwrap() == Claimed::Mine
            };
            let winners = std::thread::scope(|scope| {
                let contend = &contend;
                let threads: Vec<_> = (1..=4).map(|n| scope.spawn(move || contend(n))).collect();
                let won = threads.into_iter().map(|thread| thread.join().unwrap());
                won.filter(|won| *won).count()
            });
            assert_eq!(winners, 1, "epoch {epoch}");
        }
    }

    #[test]
    fn an_image_is_shared_once() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("d.raw");
        assert_eq!(shared_disk(&image).unwrap(), None);
        let disk = share(&image, Uuid::new_v4()).unwrap();
        assert_eq!(share(&image, Uuid::new_v4()).unwrap(), disk);
        assert_eq!(shared_disk(&image).unwrap(), Some(disk));
        let own = dir.path().join("own.raw");
        fs::write(mark(&own), "{\"version\":1}").unwrap();
        assert_eq!(shared_disk(&own).unwrap(), None);
        assert!(share(&own, Uuid::new_v4()).is_err());
    }
}
