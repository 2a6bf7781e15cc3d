//! A slow link between two daemons: a relay that lets through so many bytes a
//! second, so that a copy lasts long enough to be disturbed in its middle.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Check;

const PIECE_BYTES: usize = 32 * 1024;

/// A relay to one address. Its threads end with the connections they serve.
pub struct Link {
    address: String,
    bytes_per_second: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
}

impl Link {
    /// Relays what comes to [`Link::address`] to `to`.
    pub fn new(to: &str, bytes_per_second: u64) -> Check<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let link = Self {
            address: listener.local_addr()?.to_string(),
            bytes_per_second: Arc::new(AtomicU64::new(bytes_per_second)),
            passed: Arc::default(),
        };
        let (to, rate) = (to.to_owned(), Arc::clone(&link.bytes_per_second));
        let passed = Arc::clone(&link.passed);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // A destination that is dead is seen as a link that closes.
                if let Ok(far) = TcpStream::connect(&to) {
                    relay(&near, &far, &rate, &passed);
                }
            }
        });
        Ok(link)
    }

    /// Where the relay listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The bytes that have gone to the destination.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Changes the rate, for connections that are open too.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.bytes_per_second
            .store(bytes_per_second, Ordering::Relaxed);
    }
}

fn relay(near: &TcpStream, far: &TcpStream, rate: &Arc<AtomicU64>, passed: &Arc<AtomicU64>) {
    let unlimited = Arc::new(AtomicU64::new(u64::MAX));
    for (from, to, rate, count) in [
        (near, far, rate, passed),
        (far, near, &unlimited, &Arc::default()),
    ] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        // A small answer must not wait for a full segment.
        let _ = to.set_nodelay(true);
        let (rate, count) = (Arc::clone(rate), Arc::clone(count));
        thread::spawn(move || pass(from, to, &rate, &count));
    }
}

/// Passes bytes on until either side is closed.
fn pass(mut from: TcpStream, mut to: TcpStream, rate: &AtomicU64, count: &AtomicU64) {
    let mut buffer = vec![0; PIECE_BYTES];
    let mut free_at = Instant::now();
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        thread::sleep(free_at.saturating_duration_since(Instant::now()));
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
        count.fetch_add(length as u64, Ordering::Relaxed);
        let nanos = length as u64 * 1_000_000_000 / rate.load(Ordering::Relaxed).max(1);
        free_at = free_at.max(Instant::now()) + Duration::from_nanos(nanos);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
