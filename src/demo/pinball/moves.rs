//! The guest's disk and NIC, and how both change hosts together.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ferry_bench::frontend::{GuestDevice, Vmm, VmmOptions};
use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use super::{DISK_BYTES, NIC, Shared};
use crate::demo::host::Host;
use crate::demo::{COPY_PATIENCE, micros};
use crate::error::{Done, Failure};

const POLL: Duration = Duration::from_millis(1);
/// What is between daemons and takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a move, until the gap that it made is over for certain.
const AFTER: Duration = Duration::from_millis(500);

/// A device of the guest, and who serves it.
pub struct Plug {
    device: GuestDevice,
    here: Vmm,
    there: Option<Vmm>,
    bases: Vec<u16>,
}

impl Plug {
    /// Plugs a device in that nobody has served yet.
    pub fn start(device: GuestDevice, mut here: Vmm) -> Done<Plug> {
        here.start(&device)?;
        Ok(Plug {
            device,
            here,
            there: None,
            bases: Vec::new(),
        })
    }

    /// Attaches to the next server, as a waiting VMM does.
    fn connect(&mut self, socket: &Path, options: VmmOptions) -> Done {
        let options = VmmOptions {
            required: self.here.features(),
            ..options
        };
        self.there = Some(Vmm::connect(socket, options)?);
        Ok(())
    }

    fn stop(&mut self) -> Done {
        self.bases = self.here.stop()?;
        Ok(())
    }

    /// Starts at the next server.
    fn go_on(&mut self) -> Done {
        let Some(mut there) = self.there.take() else {
            return Err(Failure::Failed("there is no other server".into()));
        };
        there.start_at(&self.device, &self.bases)?;
        self.here = there; // the old connection closes
        Ok(())
    }
}

/// The guest's two devices.
pub struct Machine {
    pub disk: Plug,
    pub nic: Plug,
}

/// One move.
pub struct Move {
    route: String,
    from: usize,
    /// From the stop of the first ring to the start of the last.
    pub stopped: Duration,
    /// The longest time without a frame, about the move.
    pub gap: Duration,
    copy: Duration,
    bytes_sent: u64,
    nic: Value,
}

impl Move {
    pub fn line(&self) -> Value {
        json!({
            "route": self.route,
            "rings_stopped_us": micros(self.stopped),
            "longest_gap_ms": super::report::millis(self.gap),
            "copy_ms": micros(self.copy) / 1000,
            "disk_bytes_sent": self.bytes_sent,
            "nic_blackout_us": self.nic["blackout_us"],
            "frames_captured": self.nic["frames_forwarded"],
        })
    }

    pub fn row(&self) -> Vec<String> {
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        vec![
            self.route.clone(),
            ms(self.copy),
            ms(self.stopped),
            ms(self.gap),
            self.nic["frames_forwarded"].to_string(),
        ]
    }

    /// The frames that its source passed on up to now.
    pub fn settle(&mut self, hosts: &mut [Host; 2]) -> Done {
        self.nic = hosts[self.from].nic_move(NIC)?;
        Ok(())
    }
}

fn await_nic(host: &mut Host, wanted: &[&str]) -> Done<Value> {
    let began = Instant::now();
    loop {
        let nic = host.nic_move(NIC)?;
        let phase = nic["phase"].as_str().unwrap_or_default();
        if wanted.contains(&phase) {
            return Ok(nic);
        }
        if matches!(phase, "failed" | "cancelled") || began.elapsed() > PATIENCE {
            return Err(Failure::Failed(format!("the NIC does not move: {nic}")));
        }
        thread::sleep(POLL);
    }
}

/// Moves the disk and the NIC, and the guest's rings with them.
pub fn move_all(
    id: &DiskId,
    hosts: &mut [Host; 2],
    (from, to): (usize, usize),
    machine: &mut Machine,
    shared: &Arc<Shared>,
) -> Done<Move> {
    let route = format!("{} to {}", hosts[from].name(), hosts[to].name());
    let [a, b] = hosts;
    let (source, target) = if from < to { (a, b) } else { (b, a) };
    shared.tell(&format!("moving... {route}: the disk is copied"));
    target.forget_disk(id)?;
    target.add_disk(id, 1, Some(DISK_BYTES))?;
    machine
        .disk
        .connect(&target.socket(), VmmOptions::default())?;
    machine
        .nic
        .connect(&target.nic_socket(NIC), VmmOptions::net())?;
    let copying = Instant::now();
    source.copy_disk(id, target.peer(), COPY_PATIENCE, |done, total| {
        let percent = done * 100 / total.max(1);
        shared.show(&format!(
            "moving... {route}: the disk is copied, {percent} %"
        ));
        shared.check()
    })?;
    let copy = copying.elapsed();
    source.move_nic(NIC, target.peer())?;
    await_nic(source, &["ready"])?;
    shared.tell(&format!("moving... {route}: disk and NIC change hands"));
    shared.scene().take_gap();

    // The guest stops here. What it goes on to put into its rings waits in them.
    let stopped = Instant::now();
    machine.nic.stop()?;
    machine.disk.stop()?;
    let report = source.release(id)?;
    await_nic(source, &["taken", "activated", "moved"])?;
    machine.disk.go_on()?;
    machine.nic.go_on()?;
    let stopped = stopped.elapsed();

    shared.scene().host = to;
    let nic = await_nic(source, &["activated", "moved"])?;
    thread::sleep(AFTER);
    let gap = shared.scene().take_gap();
    shared.tell(&format!(
        "moved {route}: the rings stood still for {:.1} ms, {:.1} ms between two frames",
        stopped.as_secs_f64() * 1e3,
        gap.as_secs_f64() * 1e3
    ));
    shared.show(&format!("moved {route}"));
    Ok(Move {
        route,
        from,
        stopped,
        gap,
        copy,
        bytes_sent: report["bytes_sent"].as_u64().unwrap_or(0),
        nic,
    })
}
