//! Fifty moves there and back under a load that is verified, with a fault in each.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rustix::fs::XattrFlags;

use crate::rig::{Guest, Host, MIB, PATIENCE, Pair, eventually, ferry, text};

const BYTES: u64 = 24 * MIB;
/// The guest uses the disk's first and last sectors, which the cursor comes to first and last.
const SECTORS: u64 = 256;

/// The same numbers in every run: a failure comes again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    None,
    SourceKilledInTheCopy,
    DestinationKilledInTheCopy,
    DestinationStoppedInTheCopy,
    CancelledInTheCopy,
    SourceKilledInTheRelease,
    DestinationKilledInTheRelease,
    SourceKilledWhenReleased,
    DestinationKilledWhenGranted,
    VmGoesBack,
    VmGoesBackAndDestinationIsKilled,
    DestinationKilledWhenActivated,
    SourceKilledWhenPulled,
}

const FAULTS: [Fault; 13] = [
    Fault::None,
    Fault::SourceKilledInTheCopy,
    Fault::DestinationKilledInTheCopy,
    Fault::DestinationStoppedInTheCopy,
    Fault::CancelledInTheCopy,
    Fault::SourceKilledInTheRelease,
    Fault::DestinationKilledInTheRelease,
    Fault::SourceKilledWhenReleased,
    Fault::DestinationKilledWhenGranted,
    Fault::VmGoesBack,
    Fault::VmGoesBackAndDestinationIsKilled,
    Fault::DestinationKilledWhenActivated,
    Fault::SourceKilledWhenPulled,
];

/// A guest that knows what it wrote.
struct Load {
    guest: Guest,
    written: BTreeMap<u64, u64>,
    newest: u64,
    dice: Dice,
}

impl Load {
    fn sector(&mut self) -> u64 {
        let at = self.dice.below(SECTORS);
        if at < SECTORS / 2 {
            at
        } else {
            BYTES / 512 - SECTORS + at
        }
    }

    fn some(&mut self, operations: u64) {
        for _ in 0..operations {
            let sector = self.sector();
            if self.dice.below(3) == 0 {
                self.verify(sector);
                continue;
            }
            self.newest += 1;
            let mut bytes = [0; 512];
            for chunk in bytes.chunks_exact_mut(16) {
                chunk[..8].copy_from_slice(&self.newest.to_le_bytes());
                chunk[8..].copy_from_slice(&sector.to_le_bytes());
            }
            assert!(
                self.guest.write_sector(sector, &bytes, PATIENCE),
                "a write hangs"
            );
            self.written.insert(sector, self.newest);
        }
    }

    fn verify(&mut self, sector: u64) {
        let bytes = self.guest.read_sector(sector, PATIENCE);
        let bytes = bytes.expect("a read hangs");
        let Some(stamp) = self.written.get(&sector) else {
            assert_eq!(bytes, [0x5a; 512], "sector {sector}");
            return;
        };
        for chunk in bytes.chunks_exact(16) {
            assert_eq!(chunk[..8], stamp.to_le_bytes(), "sector {sector}");
            assert_eq!(chunk[8..], sector.to_le_bytes(), "sector {sector}");
        }
    }

    fn verify_all(&mut self) {
        let sectors: Vec<u64> = self.written.keys().copied().collect();
        sectors.into_iter().for_each(|sector| self.verify(sector));
    }

    /// Behind a daemon that was started again.
    fn reconnect(&mut self, host: &Host) {
        let bases = [self.guest.used()];
        self.arrives_at(host, &bases);
    }

    fn arrives_at(&mut self, host: &Host, bases: &[u16]) {
        self.guest.attach(&host.socket("d"), bases);
    }
}

/// Copies under load; whether that came to its end.
fn copy(fault: Fault, load: &mut Load, a: &mut Host, b: &mut Host) -> bool {
    let mut words = vec!["migrate", "disk", "d", "--to"];
    let (to, control) = (b.peer(), a.dir.join("run/control.sock"));
    words.extend([&to, "--json", "--control", text(&control)]);
    let before = load.dice.below(150);
    let said = std::thread::scope(|scope| {
        let copy = scope.spawn(|| ferry(&words));
        load.some(before);
        match fault {
            Fault::SourceKilledInTheCopy => {
                a.restart();
                load.reconnect(a);
            }
            Fault::DestinationKilledInTheCopy => b.restart(),
            Fault::DestinationStoppedInTheCopy => {
                b.signal("STOP");
                load.some(5);
                std::thread::sleep(Duration::from_millis(300));
                b.signal("CONT");
            }
            Fault::CancelledInTheCopy => {
                a.run(&["migrate", "cancel", "d"]);
            }
            _ => {}
        }
        load.some(50);
        copy.join().unwrap()
    });
    let in_sync = said.code == Some(0);
    let disturbed = matches!(
        fault,
        Fault::SourceKilledInTheCopy
            | Fault::DestinationKilledInTheCopy
            | Fault::DestinationStoppedInTheCopy
            | Fault::CancelledInTheCopy
    );
    assert!(in_sync || disturbed, "{fault:?}: {said:?}");
    in_sync && a.phase() == "serving" && b.phase() == "incoming"
}

/// Kills one side so many microseconds after the release began.
fn release_and_kill(a: &mut Host, b: &mut Host, source: bool, pause: Duration) {
    let control = a.dir.join("run/control.sock");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            ferry(&[
                "migrate",
                "release",
                "d",
                "--json",
                "--control",
                text(&control),
            ])
        });
        std::thread::sleep(pause);
        if source { a.restart() } else { b.restart() }
    });
}

/// Who has the disk once both daemons have talked: true for the destination.
fn is_there(a: &Host, b: &Host) -> bool {
    let mut there = false;
    eventually("one side has the disk", || {
        match (a.phase().as_str(), b.phase().as_str()) {
            ("serving", "returned" | "incoming" | "") => true,
            ("handed" | "moved", "granted" | "serving") => {
                there = true;
                true
            }
            _ => false,
        }
    });
    there
}

/// One move; true when the guest is at the destination in the end.
fn once(fault: Fault, load: &mut Load, a: &mut Host, b: &mut Host) -> bool {
    if b.disk("d").is_none() {
        b.add_incoming(BYTES);
    }
    if !copy(fault, load, a, b) {
        a.run(&["migrate", "cancel", "d"]);
        return false;
    }
    if fault == Fault::SourceKilledWhenPulled {
        let bases = load.guest.stop();
        load.arrives_at(b, &bases);
        load.some(20);
        a.restart();
        load.some(20);
        return true;
    }
    let bases = load.guest.stop();
    let pause = Duration::from_micros(load.dice.below(12_000));
    match fault {
        Fault::SourceKilledInTheRelease => release_and_kill(a, b, true, pause),
        Fault::DestinationKilledInTheRelease => release_and_kill(a, b, false, pause),
        _ => {
            a.run(&["migrate", "release", "d"]).ok();
        }
    }
    match fault {
        Fault::SourceKilledWhenReleased => a.restart(),
        Fault::DestinationKilledWhenGranted => b.restart(),
        Fault::VmGoesBackAndDestinationIsKilled => b.restart(),
        _ => {}
    }
    let goes_back = matches!(
        fault,
        Fault::VmGoesBack | Fault::VmGoesBackAndDestinationIsKilled
    );
    if goes_back {
        load.guest.resume(&bases);
        load.some(20);
        return false;
    }
    if !is_there(a, b) {
        load.arrives_at(a, &bases);
        return false;
    }
    load.arrives_at(b, &bases);
    load.some(20);
    if fault == Fault::DestinationKilledWhenActivated {
        b.restart();
        load.reconnect(b);
    }
    true
}

fn moves(count: u64) {
    let Pair { mut a, mut b, dir } = Pair::of(BYTES);
    let guest = Guest::at(&a.socket("d"));
    let mut load = Load {
        guest,
        written: BTreeMap::new(),
        newest: 0,
        dice: Dice(0x9e37_79b9_7f4a_7c15),
    };
    let mut seen: BTreeMap<Fault, (u32, u32)> = BTreeMap::new();
    for number in 0..count {
        // Each comes, and then by chance.
        let at = if number < FAULTS.len() as u64 {
            number
        } else {
            load.dice.below(FAULTS.len() as u64)
        };
        let fault = FAULTS[usize::try_from(at).unwrap()];
        let went = once(fault, &mut load, &mut a, &mut b);
        load.some(30);
        load.verify_all();
        let count = seen.entry(fault).or_default();
        *count = (count.0 + u32::from(went), count.1 + 1);
        if went {
            eventually("the move is known at the source", || {
                ["moved", ""].contains(&a.phase().as_str())
            });
            std::mem::swap(&mut a, &mut b);
        }
        assert_eq!(a.phase(), "serving", "{fault:?}");
        assert_ne!(b.phase(), "serving", "{fault:?}: two owners");
    }
    for (fault, (went, all)) in seen {
        println!("{fault:?}: {all} times, {went} at the destination after it");
    }
    println!("{} writes in {count} moves, all verified", load.newest);
    whole(&mut load);
    drop(dir);
}

/// What was never written is as it was, all over the disk.
fn whole(load: &mut Load) {
    for sector in (0..BYTES / 512).step_by(97) {
        load.verify(sector);
    }
}

/// The daemon died between making room for a copy and recording that it arrives.
#[test]
fn a_copy_that_was_never_recorded_makes_room() {
    let Pair { a, b, dir: _dir } = Pair::of(MIB);
    let void = b.image();
    for (number, marked) in [(0, false), (1, true)] {
        b.run(&["disk", "remove", "d"]);
        std::fs::write(&void, if marked { "bytes" } else { "" }).unwrap();
        if marked {
            rustix::fs::setxattr(&void, "user.ferry.copy", b"1", XattrFlags::empty()).unwrap();
        }
        b.add_incoming(MIB);
        let to = b.peer();
        a.run(&["migrate", "disk", "d", "--to", &to]).ok();
        a.run(&["migrate", "cancel", "d"]).ok();
        eventually(&format!("{number}: the copy is gone"), || !void.exists());
    }
    // Anybody's data stays.
    b.run(&["disk", "remove", "d"]);
    std::fs::remove_file(void.with_extension("raw.ferry")).unwrap();
    std::fs::write(&void, "bytes").unwrap();
    b.add_incoming(MIB);
    let to = b.peer();
    a.run(&["migrate", "disk", "d", "--to", &to])
        .refused(&["is not overwritten"]);
    assert_eq!(std::fs::read(&void).unwrap(), b"bytes");
}

#[test]
fn fifty_moves_with_a_fault_in_each() {
    moves(50);
}

/// Here so that the rig's own path is tested too.
#[test]
fn a_stamped_disk_is_read_back() {
    let Pair { a, dir: _dir, .. } = Pair::of(BYTES);
    assert!(Path::new(&a.image()).exists());
    let mut load = Load {
        guest: Guest::at(&a.socket("d")),
        written: BTreeMap::new(),
        newest: 0,
        dice: Dice(7),
    };
    load.some(500);
    load.verify_all();
    whole(&mut load);
}
