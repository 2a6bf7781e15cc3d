//! Two daemons, a guest on one of them, and the steps of a move.
//!
//! The steps are those of an orchestrator, one method each, so that a test can
//! break off between any two of them:
//!
//! ```text
//!   prepare      the other side: an incoming disk, a QEMU that waits
//!   copy         `ferry migrate disk`, until the mirror is in sync
//!   switch       QEMU's migration, until `pre-switchover`
//!   release      `ferry migrate release`: the other side owns the disk
//!   images_equal
//!   go_on        `migrate-continue`, then the guest runs on the other side
//! ```

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::daemon::Daemon;
use super::failure::Context;
use super::guest::{Guest, Machine, Qemu, ferry_qmp};
use super::link::Link;
use super::process::Running;
use super::wait::{secs, wait_for};
use super::{Check, Failure, TestDir, image};
use crate::ensure;

/// The id of the one disk.
pub const DISK: &str = "d0";

const COPY_LIMIT: Duration = secs(180);
const SWITCH_LIMIT: Duration = secs(120);
/// As fast as the machine goes.
pub const UNLIMITED: u64 = u64::MAX;
const SIDES: [&str; 2] = ["a", "b"];

/// What the pair's disk is like.
pub struct Options {
    /// The disk's size.
    pub bytes: u64,
    /// Whether it is full from the start; a sparse one is copied in no time.
    pub full: bool,
    /// What the link to the second daemon lets through, so that a copy to it
    /// lasts long enough to be disturbed.
    pub link_bytes_per_second: u64,
    /// Both daemons see one image; so long goes a lease, in milliseconds.
    pub shared_lease_ms: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bytes: 64 * image::MIB,
            full: false,
            link_bytes_per_second: UNLIMITED,
            shared_lease_ms: None,
        }
    }
}

/// Two daemons and one guest with one disk.
pub struct Pair<'d> {
    dir: &'d TestDir,
    options: Options,
    machine: Machine,
    /// The guest. It goes before the daemons, so that the last lines of its log
    /// do not tell of disks that are gone.
    pub guest: Guest,
    daemons: [Daemon<'d>; 2],
    /// From the first daemon to the second.
    pub link: Link,
    /// Where the guest is, an index of `daemons`.
    here: usize,
    qemus: u32,
}

/// The other side, made ready for a move.
pub struct Arrival {
    /// The QEMU that waits.
    pub qemu: Qemu,
    /// Where it waits.
    pub uri: String,
}

impl<'d> Pair<'d> {
    /// Starts both daemons, and the guest at the first.
    pub fn start(dir: &'d TestDir, options: Options) -> Check<Self> {
        let machine = Machine::default();
        let shared = options.shared_lease_ms;
        let datastore = dir.path("datastore");
        std::fs::create_dir_all(&datastore)?;
        let image = match shared {
            Some(_) => datastore.join("d.img"),
            None => dir.path("a.img"),
        };
        if options.full {
            image::create_full(&image, options.bytes)?;
        } else {
            image::create(&image, options.bytes)?;
        }
        let extra = shared.map_or(String::new(), |lease_ms| {
            format!(
                "[[datastore]]\npath = {datastore:?}\nfence = \"lock-coherent\"\n\
                 lease_ms = {lease_ms}\nio_ms = 500\n"
            )
        });
        let daemon = |side: &str| Daemon::spawn(dir, side, &[ferry_qmp(dir, side)], &extra);
        let daemons = [daemon("a")?, daemon("b")?];
        let path = image.display().to_string();
        let socket = match shared {
            Some(_) => daemons[0].add_shared(DISK, &path, machine.queues, false)?,
            None => daemons[0].add_disk(DISK, &path, machine.queues)?,
        };
        let guest = Guest::boot(dir, "a-0", &machine, &[&socket])?;
        let link = Link::new(&daemons[1].address(), options.link_bytes_per_second)?;
        Ok(Self {
            dir,
            options,
            machine,
            daemons,
            link,
            here: 0,
            qemus: 0,
            guest,
        })
    }

    /// The daemon the guest is at.
    pub fn source(&mut self) -> &mut Daemon<'d> {
        &mut self.daemons[self.here]
    }

    /// The daemon it is to move to.
    pub fn destination(&mut self) -> &mut Daemon<'d> {
        &mut self.daemons[1 - self.here]
    }

    fn image_path(&self, side: usize) -> PathBuf {
        match self.options.shared_lease_ms {
            Some(_) => self.dir.path("datastore").join("d.img"),
            None => self.dir.path(format!("{}.img", SIDES[side])),
        }
    }

    /// Makes the other side ready. A disk that is known there, from an earlier
    /// move or one that was broken off, must be good for another as it is.
    pub fn prepare(&mut self) -> Check<Arrival> {
        let mut arrival = self.prepare_closed()?;
        arrival.qemu.listen(&arrival.uri)?;
        Ok(arrival)
    }

    /// As [`Pair::prepare`], but that the QEMU is not told to listen yet.
    pub fn prepare_closed(&mut self) -> Check<Arrival> {
        let socket = self.stand_by()?;
        let name = self.next_name(1 - self.here);
        let qemu = Qemu::incoming(self.dir, &name, &self.machine, &[&socket])?;
        // As for the daemons: freed before QEMU takes it.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let uri = format!("tcp:127.0.0.1:{port}");
        Ok(Arrival { qemu, uri })
    }

    /// Starts the copy of the disk.
    pub fn start_copy(&mut self) -> Check<Running> {
        let to = match self.here {
            0 => self.link.address().to_owned(),
            _ => self.destination().address(),
        };
        self.source()
            .start_command(&["migrate", "disk", DISK, "--to", &to])
    }

    /// Waits until the copy is done and the mirror in sync.
    pub fn finish_copy(&mut self, copy: Running) -> Check {
        let output = copy
            .finish(COPY_LIMIT)
            .context(|| "ferry migrate disk".to_owned())?;
        self.source().succeeded(&["migrate", "disk"], &output)?;
        Ok(())
    }

    /// Copies the disk, until the mirror is in sync.
    pub fn copy(&mut self) -> Check {
        let copy = self.start_copy()?;
        self.finish_copy(copy)
    }

    /// Starts a copy and returns in the middle of it: some of the disk has
    /// gone over the link, and not all.
    pub fn copy_half_way(&mut self) -> Check<Running> {
        let mut copy = self.start_copy()?;
        let wanted = self.link.passed() + self.options.bytes / 8;
        wait_for("the copy to get going", COPY_LIMIT, || {
            ensure_running(&mut copy)?;
            Ok((self.link.passed() >= wanted).then_some(()))
        })?;
        Ok(copy)
    }

    /// Starts QEMU's migration, with the capabilities as they were set.
    pub fn start_switch(&mut self, arrival: &Arrival) -> Check {
        self.guest
            .qmp()
            .execute("migrate", &json!({ "uri": arrival.uri }))?;
        Ok(())
    }

    /// Runs QEMU's migration up to where the guest stands and nothing is
    /// switched yet.
    pub fn switch(&mut self, arrival: &Arrival) -> Check {
        self.guest.qmp().prepare_migration()?;
        self.start_switch(arrival)?;
        self.guest
            .qmp()
            .wait_migration("pre-switchover", SWITCH_LIMIT)?;
        Ok(())
    }

    /// Hands the disk over; on return the other side holds it durably, and
    /// nobody serves it. Returns what it cost.
    pub fn release(&mut self) -> Check<Value> {
        let report = self.source().expect(&["migrate", "release", DISK])?;
        self.ensure_phases("handed", "granted")?;
        Ok(report)
    }

    /// Requires that the records of both sides soon tell who owns the disk.
    pub fn ensure_phases(&self, here: &str, there: &str) -> Check {
        let phase = |side: usize| -> Check<String> {
            let disk = self.daemons[side].disk(DISK)?;
            let phase = disk.as_ref().and_then(|disk| disk["phase"].as_str());
            Ok(phase.unwrap_or("unknown").to_owned())
        };
        let mut found = (String::new(), String::new());
        wait_for(
            &format!("the disk to be {here} here and {there} there"),
            secs(10),
            || {
                found = (phase(self.here)?, phase(1 - self.here)?);
                ensure!(
                    found != ("serving".to_owned(), "serving".to_owned()),
                    "both daemons serve the disk"
                );
                Ok((found.0 == here && found.1 == there).then_some(()))
            },
        )
        .map_err(|Failure(words)| Failure(format!("{words}; it is {found:?}")))
    }

    /// Compares the two images. They are at rest only between the release and
    /// the moment the guest runs again.
    pub fn images_equal(&self) -> Check {
        let open = |side| {
            let path = self.image_path(side);
            File::open(&path).context(|| path.display().to_string())
        };
        image::ensure_equal(&open(self.here)?, &open(1 - self.here)?)
    }

    /// Lets the migration go on, and the guest run on the other side.
    pub fn go_on(&mut self, mut arrival: Arrival) -> Check {
        self.guest.qmp().migrate_continue()?;
        self.guest.qmp().wait_migration("completed", SWITCH_LIMIT)?;
        arrival.qemu.qmp.wait_status("paused", secs(20))?;
        arrival.qemu.qmp.run("cont")?;
        self.arrived(arrival)
    }

    /// QEMU's own migration and nothing else: the disk follows its guest.
    pub fn switch_plainly(&mut self, arrival: &mut Arrival) -> Check {
        self.guest.qmp().prepare_plain_migration()?;
        self.start_switch(arrival)?;
        self.guest.qmp().wait_migration("completed", SWITCH_LIMIT)?;
        arrival.qemu.qmp.wait_status("paused", secs(20))
    }

    /// The host of the guest dies, and a fresh guest boots at the other; its
    /// disk is added there by now.
    pub fn boot_there(&mut self) -> Check {
        self.guest.qemu().process().kill()?;
        self.source().kill()?;
        self.here = 1 - self.here;
        let name = self.next_name(self.here);
        let socket = self.daemons[self.here].socket(DISK);
        self.guest = Guest::boot(self.dir, &name, &self.machine, &[&socket])?;
        Ok(())
    }

    /// Starts a QEMU at the other side, where the disk waits, that boots a
    /// guest of its own. The guest here runs on.
    pub fn boot_stranger(&mut self) -> Check<Qemu> {
        let name = self.next_name(1 - self.here);
        let socket = self.destination().socket(DISK);
        Qemu::boot(self.dir, &name, &self.machine, &[&socket])
    }

    /// Adds the disk at the other side, where it waits, unless it is known
    /// there. Returns its socket.
    pub fn stand_by(&mut self) -> Check<PathBuf> {
        let there = 1 - self.here;
        let path = self.image_path(there).display().to_string();
        let queues = self.machine.queues;
        let daemon = &self.daemons[there];
        match daemon.disk(DISK)? {
            Some(_) => Ok(daemon.socket(DISK)),
            None if self.options.shared_lease_ms.is_some() => {
                daemon.add_shared(DISK, &path, queues, true)
            }
            None => daemon.add_incoming(DISK, &path, queues, self.options.bytes),
        }
    }

    /// The name of one more QEMU at a side.
    fn next_name(&mut self, side: usize) -> String {
        self.qemus += 1;
        format!("{}-{}", SIDES[side], self.qemus)
    }

    /// Takes note that the guest has moved.
    pub fn arrived(&mut self, arrival: Arrival) -> Check {
        drop(self.arrived_from(arrival));
        self.guest.qmp().wait_status("running", secs(20))
    }

    /// The same; the QEMU it came from lives on.
    pub fn arrived_from(&mut self, arrival: Arrival) -> Qemu {
        self.here = 1 - self.here;
        self.guest.arrive(arrival.qemu)
    }

    /// A whole move, with the images compared on the way. Returns what the
    /// disk's handover cost.
    pub fn move_guest(&mut self) -> Check<Value> {
        let arrival = self.prepare()?;
        self.copy()?;
        self.switch(&arrival)?;
        let report = self.release()?;
        self.images_equal()?;
        self.go_on(arrival)?;
        Ok(report)
    }

    /// Gives up QEMU's migration and waits until the guest runs again here.
    pub fn cancel_switch(&mut self) -> Check {
        self.guest.qmp().run("migrate_cancel")?;
        self.guest.qmp().wait_migration("cancelled", secs(30))?;
        self.guest.qmp().wait_status("running", secs(30))
    }

    /// Gives up the move of the disk.
    pub fn cancel_copy(&mut self) -> Check {
        self.source().expect(&["migrate", "cancel", DISK])?;
        Ok(())
    }
}

/// Fails when a copy that should be under way has ended.
pub fn ensure_running(copy: &mut Running) -> Check {
    if let Some(output) = copy.ended()? {
        ensure!(
            output.code != Some(0),
            "the copy was over before it could be disturbed: make it slower"
        );
        crate::fail!("the copy failed: {}{}", output.out, output.err);
    }
    Ok(())
}
