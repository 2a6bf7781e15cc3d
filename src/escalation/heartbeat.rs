//! Heartbeats of guests: a file that changes, or bytes that come in through a socket.
//!
//! A thread of its own looks for each, because a file's file system may hang; all it tells is how
//! many looks have found a beat. Whoever ages that needs no clock of the guest's, nor the file's.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::settings::HeartbeatAt;
use crate::error::{Done, Failure};

/// Of a file so much is compared, in bytes.
const CONTENTS_MAX: u64 = 4096;

/// Senders at one time; one more takes the place of the first.
const SENDERS_MAX: usize = 4;

/// Taken from a sender in one look, in bytes.
const TAKEN_MAX: usize = 64 << 10;

/// Permissions of a heartbeat's socket.
const SOCKET_MODE: u32 = 0o660;

/// A heartbeat that is listened for, until it is dropped.
pub struct Heartbeat {
    shared: Arc<Shared>,
    socket: Option<PathBuf>,
}

#[derive(Default)]
struct Shared {
    beats: AtomicU64,
    over: AtomicBool,
}

impl Heartbeat {
    /// Looks for beats every `interval`.
    pub fn start(at: &HeartbeatAt, interval: Duration) -> Done<Heartbeat> {
        let mut ear = match at {
            HeartbeatAt::File(path) => Ear::File {
                path: path.clone(),
                seen: Seen::of(path),
            },
            HeartbeatAt::Socket(path) => Ear::Socket {
                listener: bind(path)?,
                senders: VecDeque::new(),
            },
        };
        let socket = match at {
            HeartbeatAt::Socket(path) => Some(path.clone()),
            HeartbeatAt::File(_) => None,
        };
        let shared = Arc::<Shared>::default();
        let heartbeat = Heartbeat {
            shared: shared.clone(),
            socket,
        };
        std::thread::Builder::new()
            .name("ferry-heartbeat".into())
            .spawn(move || {
                while !shared.over.load(Ordering::Relaxed) {
                    if ear.hears() {
                        shared.beats.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(interval);
                }
            })?;
        Ok(heartbeat)
    }

    /// Looks that found a beat.
    pub fn beats(&self) -> u64 {
        self.shared.beats.load(Ordering::Relaxed)
    }

    /// The socket, if it is one.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // The thread is not waited for: its file may hang.
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket);
        }
    }
}

fn bind(path: &Path) -> Done<UnixListener> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::Failed(format!(
            "cannot listen for heartbeats on {}: {error}",
            path.display()
        ))
    };
    if UnixStream::connect(path).is_ok() {
        return Err(failed(
            &"somebody listens there already; stop that, or give the heartbeat another path",
        ));
    }
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(failed(
                &"there is a file that is no socket; remove it first",
            ));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|error| failed(&error))?;
    fs::set_permissions(path, PermissionsExt::from_mode(SOCKET_MODE))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What a file showed at one look.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// A guest that maps the file changes no time of it.
    contents: Vec<u8>,
}

impl Seen {
    fn of(path: &Path) -> Option<Seen> {
        // A pipe would be waited for.
        let there = fs::metadata(path).ok().filter(|it| it.is_file())?;
        let mut contents = Vec::new();
        if let Ok(file) = File::open(path) {
            let _ = file.take(CONTENTS_MAX).read_to_end(&mut contents);
        }
        Some(Seen {
            inode: there.ino(),
            bytes: there.len(),
            modified: (there.mtime(), there.mtime_nsec()),
            contents,
        })
    }
}

enum Ear {
    File {
        path: PathBuf,
        seen: Option<Seen>,
    },
    Socket {
        listener: UnixListener,
        senders: VecDeque<UnixStream>,
    },
}

impl Ear {
    /// Whether there was a beat since the last look. Of a socket this never waits.
    fn hears(&mut self) -> bool {
        match self {
            Ear::File { path, seen } => {
                let now = Seen::of(path);
                // One that is gone for a moment is being replaced.
                let beats = now.is_some() && now != *seen;
                if beats {
                    *seen = now;
                }
                beats
            }
            Ear::Socket { listener, senders } => {
                for _ in 0..SENDERS_MAX {
                    let Ok((sender, _)) = listener.accept() else {
                        break;
                    };
                    if sender.set_nonblocking(true).is_err() {
                        continue;
                    }
                    if senders.len() == SENDERS_MAX {
                        senders.pop_front();
                    }
                    senders.push_back(sender);
                }
                let mut beats = false;
                senders.retain_mut(|sender| {
                    let (bytes, stays) = take(sender);
                    beats |= bytes > 0;
                    stays
                });
                beats
            }
        }
    }
}

/// Takes what a sender has sent; how much that was, and whether it is there still.
fn take(sender: &mut UnixStream) -> (usize, bool) {
    let mut taken = 0;
    let mut buffer = [0; 4096];
    while taken < TAKEN_MAX {
        match sender.read(&mut buffer) {
            Ok(0) => return (taken, false),
            Ok(bytes) => taken += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return (taken, false),
        }
    }
    (taken, true)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn ear(at: &HeartbeatAt) -> Ear {
        match at {
            HeartbeatAt::File(path) => Ear::File {
                path: path.clone(),
                seen: Seen::of(path),
            },
            HeartbeatAt::Socket(path) => Ear::Socket {
                listener: bind(path).unwrap(),
                senders: VecDeque::new(),
            },
        }
    }

    #[test]
    fn a_file_beats_when_it_changes_in_whatever_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("beat");
        fs::write(&path, "0").unwrap();
        let mut ear = ear(&HeartbeatAt::File(path.clone()));
        assert!(!ear.hears(), "what is left of an earlier run is no beat");
        fs::write(&path, "1").unwrap();
        assert!(ear.hears() && !ear.hears());
        // The same contents at another time.
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(later).unwrap();
        assert!(ear.hears() && !ear.hears());
        // Other contents at the same time.
        fs::write(&path, "2").unwrap();
        file.set_modified(later).unwrap();
        assert!(ear.hears() && !ear.hears());
        fs::remove_file(&path).unwrap();
        assert!(!ear.hears());
        fs::write(&path, "2").unwrap();
        assert!(ear.hears() && !ear.hears());
    }

    #[test]
    fn a_socket_beats_with_any_byte_of_any_sender() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("beat.sock");
        let mut ear = ear(&HeartbeatAt::Socket(path.clone()));
        assert!(!ear.hears());
        let mut first = UnixStream::connect(&path).unwrap();
        assert!(!ear.hears(), "to connect is no beat");
        first.write_all(b"x").unwrap();
        assert!(ear.hears() && !ear.hears());
        let others: Vec<_> = (0..10).map(|_| UnixStream::connect(&path)).collect();
        (0..10).for_each(|_| assert!(!ear.hears()));
        let Ear::Socket { senders, .. } = &ear else {
            unreachable!()
        };
        assert_eq!(senders.len(), SENDERS_MAX);
        others
            .last()
            .unwrap()
            .as_ref()
            .unwrap()
            .write_all(b"y")
            .unwrap();
        assert!(ear.hears() && !ear.hears());
        // What was sent before the end counts.
        let mut last = UnixStream::connect(&path).unwrap();
        last.write_all(b"z").unwrap();
        drop(last);
        assert!(ear.hears() && !ear.hears());
    }

    #[test]
    fn only_a_socket_is_replaced_and_only_one_that_nobody_listens_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("beat.sock");
        let said = |path: &Path| bind(path).map(drop).unwrap_err().to_string();
        let kept = bind(&path).unwrap();
        assert!(said(&path).contains("listens there already"));
        drop(kept);
        bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(said(&path).contains("no socket"));
    }
}
