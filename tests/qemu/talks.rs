//! A guest's traffic with a peer on another host, verified to the last byte.

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::net_pair::{DISK, LONG_RING, NetPair, Options, TAP, Wiring};
use crate::harness::talk::{ALL, Capture, lost_after};
use crate::harness::trial::with_networks;
use crate::harness::wait::secs;
use crate::harness::{Check, TestDir};

pub fn trials() -> Vec<Trial> {
    with_networks(&[
        ("traffic_through_a_tap_is_whole", by_tap),
        ("traffic_through_a_switch_is_whole", by_switch),
    ])
}

fn by_tap(dir: &TestDir) -> Check {
    is_whole(dir, Wiring::Tap)
}

fn by_switch(dir: &TestDir) -> Check {
    is_whole(dir, Wiring::Switch)
}

/// A hundred connections, datagrams and echoes lose nothing, also while the disk is copied to the
/// other host, and while that is cut off.
fn is_whole(dir: &TestDir, wiring: Wiring) -> Check {
    let options = Options {
        wiring,
        properties: LONG_RING.to_owned(),
    };
    let mut pair = NetPair::start(dir, options)?;
    let capture = Capture::of_datagrams(dir, "at-the-tap", pair.host(), TAP)?;
    let words = [ALL, &["--lossless"]].concat();
    let report = pair.talk(&words, |pair| {
        std::thread::sleep(secs(4));
        pair.segment.cut()?;
        let to = pair.destination().address();
        let copy = pair
            .source()
            .start_command(&["migrate", "disk", DISK, "--to", &to])?;
        std::thread::sleep(secs(4));
        pair.segment.mend()?;
        drop(copy);
        std::thread::sleep(secs(4));
        Ok(())
    })?;
    if let Some(capture) = capture {
        let passed = capture.numbers()?;
        let received = &report["there"]["udp"]["received"]["received"];
        ensure!(
            received.as_u64() == Some(passed.len() as u64),
            "{} datagrams passed the tap, {received} came",
            passed.len()
        );
        ensure!(lost_after(&report, &passed).is_empty(), "some were lost");
    }
    let nic = pair.nic()?;
    println!("{nic}");
    for cause in ["malformed", "spoofed", "too_large"] {
        ensure!(nic["dropped"][cause] == 0, "{cause}: {nic}");
    }
    Ok(())
}
