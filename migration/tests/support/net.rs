//! A network between the two ends that can be cut, at a byte, and made to lie.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
struct Rules {
    down: AtomicBool,
    /// Nothing passes, and nobody is told.
    dark: AtomicBool,
    /// Bytes that may still pass to the destination; negative for no limit.
    forward_left: AtomicI64,
    /// Bytes that may still pass to the source; negative for no limit.
    back_left: AtomicI64,
    /// Flip a bit of the byte this far ahead; negative for never.
    corrupt_in: AtomicI64,
    open: Mutex<Vec<TcpStream>>,
}

pub struct Net {
    pub address: SocketAddr,
    rules: Arc<Rules>,
}

impl Net {
    pub fn before(server: SocketAddr) -> Net {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let rules = Arc::new(Rules::default());
        rules.forward_left.store(-1, Ordering::SeqCst);
        rules.back_left.store(-1, Ordering::SeqCst);
        rules.corrupt_in.store(-1, Ordering::SeqCst);
        let ours = rules.clone();
        std::thread::spawn(move || {
            for inside in listener.incoming().flatten() {
                if ours.down.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(outside) = TcpStream::connect(server) else {
                    continue;
                };
                let _ = (inside.set_nodelay(true), outside.set_nodelay(true));
                ours.open
                    .lock()
                    .unwrap()
                    .extend([inside.try_clone().unwrap(), outside.try_clone().unwrap()]);
                for (from, to, forward) in [
                    (
                        inside.try_clone().unwrap(),
                        outside.try_clone().unwrap(),
                        true,
                    ),
                    (outside, inside, false),
                ] {
                    let rules = ours.clone();
                    std::thread::spawn(move || pump(from, to, forward, &rules));
                }
            }
        });
        Net { address, rules }
    }

    /// Cuts every connection and lets none through.
    pub fn cut(&self) {
        self.rules.cut();
    }

    /// Lets new connections through again.
    pub fn heal(&self) {
        self.rules.forward_left.store(-1, Ordering::SeqCst);
        self.rules.back_left.store(-1, Ordering::SeqCst);
        self.rules.corrupt_in.store(-1, Ordering::SeqCst);
        self.rules.dark.store(false, Ordering::SeqCst);
        self.rules.down.store(false, Ordering::SeqCst);
    }

    /// Swallows everything from now on.
    pub fn go_dark(&self) {
        self.rules.dark.store(true, Ordering::SeqCst);
    }

    /// Cuts after so many more bytes to the destination.
    pub fn cut_forward_after(&self, bytes: i64) {
        self.rules.forward_left.store(bytes, Ordering::SeqCst);
    }

    /// Cuts after so many more bytes to the source.
    pub fn cut_back_after(&self, bytes: i64) {
        self.rules.back_left.store(bytes, Ordering::SeqCst);
    }

    /// Damages one bit on the way to the destination.
    pub fn corrupt_in(&self, bytes: i64) {
        self.rules.corrupt_in.store(bytes, Ordering::SeqCst);
    }
}

impl Rules {
    fn cut(&self) {
        self.down.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, forward: bool, rules: &Rules) {
    let mut buf = vec![0; 16 * 1024];
    let left = if forward {
        &rules.forward_left
    } else {
        &rules.back_left
    };
    while let Ok(mut len) = from.read(&mut buf) {
        if len == 0 {
            break;
        }
        while rules.dark.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let limit = left.load(Ordering::SeqCst);
        let cut = limit >= 0 && i64::try_from(len).unwrap() > limit;
        if cut {
            len = usize::try_from(limit).unwrap();
        } else if limit >= 0 {
            left.fetch_sub(i64::try_from(len).unwrap(), Ordering::SeqCst);
        }
        let ahead = rules.corrupt_in.load(Ordering::SeqCst);
        if forward && ahead >= 0 {
            match buf[..len].get_mut(usize::try_from(ahead).unwrap()) {
                Some(byte) => {
                    *byte ^= 0x10;
                    rules.corrupt_in.store(-1, Ordering::SeqCst);
                }
                None => {
                    rules
                        .corrupt_in
                        .fetch_sub(i64::try_from(len).unwrap(), Ordering::SeqCst);
                }
            }
        }
        if to.write_all(&buf[..len]).is_err() {
            break;
        }
        if cut {
            rules.cut();
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
