//! Moving a machine: its disks first, then QEMU's own migration around the handover.
//!
//! ```text
//!   have the NICs awaited there                     undo: cancel that
//!   copy the disks, until in sync                   undo: cancel those begun here
//!   QEMU: pause-before-switchover, migrate          undo: migrate_cancel
//!   at pre-switchover: the NICs' state is there     undo: their guest has what was kept
//!   release the disks as one                        undo: ask each back, and only then `cont`
//!   migrate-continue, until completed               undo: the same
//!   cont at the destination                         no undo: the machine runs there
//! ```
//!
//! The destination's QEMU is to be started with `-incoming defer -S`: it runs only when told so at
//! the very end, so that a failure before finds nobody running there. When it is not known whether
//! it was told, nothing is undone: one machine that waits for a person is better than two that run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_migration::destination;
use ferry_migration::ids::DiskId;
use ferry_migration::nic::{NicHandle, NicPhase};
use ferry_migration::source::{SourceError, SourceHandle, SourcePhase};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::nics::{self, MoveNic};
use super::{MoveDisks, wait_in_sync};
use crate::daemon::Daemon;
use crate::error::{Done, Failure};
use crate::name::Name;
use crate::qmp::{self, Qmp, result_of};

const POLL: Duration = Duration::from_millis(20);
/// For the guest's memory, after the disks.
const MEMORY_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// For a step during which the machine stands still.
const STOPPED_PATIENCE: Duration = Duration::from_secs(60);
/// How often a refused `cont` is tried again, and how long after.
const CONT_TRIES: u32 = 5;
const CONT_PAUSE: Duration = Duration::from_millis(500);
/// For the other daemon to await a NIC, and for it to have its state.
const NIC_PATIENCE: Duration = Duration::from_secs(10);
/// For the disks to come back after a failure.
const RETURN_PATIENCE: Duration = Duration::from_secs(30);

/// What `ferry migrate vm` asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineRequest {
    /// All disks of the machine that this daemon serves.
    pub disks: Vec<DiskId>,
    /// All its NICs that this daemon serves.
    #[serde(default)]
    pub nics: Vec<Name>,
    /// The other daemon.
    pub to: String,
    /// Monitor of the QEMU here.
    pub qmp: PathBuf,
    /// Monitor of the QEMU there, as the other daemon sees it.
    pub dest_qmp: PathBuf,
    /// Where QEMU sends the machine.
    pub migrate_uri: String,
    /// Where the other QEMU listens for it, if that is written differently there.
    pub incoming_uri: Option<String>,
    /// Whether the disks' images stay here, under other names.
    #[serde(default = "super::yes")]
    pub keep_source: bool,
}

impl MachineRequest {
    /// Whether both have a device in common.
    pub fn shares_with(&self, other: &MachineRequest) -> bool {
        self.disks.iter().any(|id| other.disks.contains(id))
            || self.nics.iter().any(|id| other.nics.contains(id))
    }
}

struct Progress {
    step: &'static str,
    error: Option<String>,
    handovers: Vec<Value>,
    nics: Vec<Value>,
    downtime_ms: Option<u64>,
    over: bool,
}

/// A machine that is being moved, or was.
pub struct MachineMove {
    request: MachineRequest,
    progress: Mutex<Progress>,
    cancelled: AtomicBool,
}

impl MachineMove {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, step: &'static str) {
        self.progress().step = step;
        tracing::info!(to = %self.request.to, step, "moving a machine");
    }

    pub fn is_over(&self) -> bool {
        self.progress().over
    }

    /// Waits for its end.
    pub fn wait_over(&self, patience: Duration) {
        let began = Instant::now();
        while !self.is_over() && began.elapsed() < patience {
            std::thread::sleep(POLL);
        }
    }

    /// Asks it to stop; it does so before the disks are released, and not after.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    pub fn request(&self) -> &MachineRequest {
        &self.request
    }

    pub fn moves_nic(&self, nic: &Name) -> bool {
        self.request.nics.contains(nic)
    }

    pub fn moves(&self, disk: &DiskId) -> bool {
        self.request.disks.contains(disk)
    }

    /// Its line in the status.
    pub fn line(&self) -> Value {
        let progress = self.progress();
        json!({
            "disks": self.request.disks,
            "nics": self.request.nics,
            "to": self.request.to,
            "step": progress.step,
            "over": progress.over,
            "error": progress.error,
            "handovers": progress.handovers,
            "nic_moves": progress.nics,
            "downtime_ms": progress.downtime_ms,
        })
    }

    fn stop_if_cancelled(&self) -> Done {
        if self.cancelled.load(Ordering::SeqCst) {
            return Err(Failure::Failed("cancelled".into()));
        }
        Ok(())
    }
}

/// Checks what can be checked at once, and starts.
pub fn start(daemon: Arc<Daemon>, request: MachineRequest) -> Done<Arc<MachineMove>> {
    if request.disks.is_empty() && request.nics.is_empty() {
        return Err(Failure::Usage(
            "name the machine's disks and NICs: --disk ID, --nic ID".into(),
        ));
    }
    let machine = Arc::new(MachineMove {
        request,
        progress: Mutex::new(Progress {
            step: "starting",
            error: None,
            handovers: Vec::new(),
            nics: Vec::new(),
            downtime_ms: None,
            over: false,
        }),
        cancelled: AtomicBool::new(false),
    });
    let own = machine.clone();
    std::thread::Builder::new()
        .name("ferry-machine".into())
        .spawn(move || {
            let result = Run {
                daemon: &daemon,
                machine: &own,
            }
            .carry_out();
            let mut progress = own.progress();
            match result {
                Ok(()) => progress.step = "done",
                Err(error) => {
                    tracing::warn!(%error, "the machine was not moved");
                    progress.step = "failed";
                    progress.error = Some(error.to_string());
                }
            }
            progress.over = true;
        })?;
    Ok(machine)
}

/// A disk of the machine.
struct Disk {
    handle: Arc<SourceHandle>,
    /// Its copy was under way before.
    joined: bool,
}

/// What there is to undo.
#[derive(Default)]
struct Made {
    disks: Vec<Disk>,
    nics: Vec<(Name, Arc<NicHandle>)>,
    /// QEMU was told to migrate.
    migrating: bool,
    /// The machine ran when it was.
    ran: bool,
}

impl Made {
    /// Fails when the copy of a disk has ended: it cannot be handed over.
    fn still_copied(&self) -> Done {
        let over = |disk: &Disk| match disk.handle.wait_in_sync(Duration::ZERO) {
            Ok(()) | Err(SourceError::TimedOut(_)) => Ok(()),
            Err(error) => Err(error.into()),
        };
        self.disks.iter().try_for_each(over)
    }
}

/// Why the machine does not run at the destination, as far as is known.
enum NotStarted {
    Certainly(Failure),
    Perhaps(Failure),
}

struct Run<'a> {
    daemon: &'a Arc<Daemon>,
    machine: &'a MachineMove,
}

impl Run<'_> {
    fn request(&self) -> &MachineRequest {
        &self.machine.request
    }

    fn carry_out(&self) -> Done {
        self.machine.step("checking both machines");
        let mut here = Qmp::connect(&self.request().qmp)?;
        self.check_there()?;
        let mut made = Made::default();
        let moved = self
            .announce_nics(&mut made)
            .and_then(|()| self.copy_disks(&mut made))
            .and_then(|()| self.move_memory(&mut here, &mut made));
        let ended = match moved {
            Err(error) => Err(NotStarted::Certainly(error)),
            Ok(()) if !made.ran => Ok(()),
            Ok(()) => self.start_there(),
        };
        match ended {
            Ok(()) => {
                self.report_nics(&made);
                Ok(())
            }
            Err(NotStarted::Certainly(error)) => Err(self.undo(&mut here, &made, &error)),
            Err(NotStarted::Perhaps(error)) => Err(Failure::Failed(format!(
                "{error}; it is not known whether the machine runs at {}, so it is not started \
                 here: look at both, then give one of them cont",
                self.request().to
            ))),
        }
    }

    /// Lets the machine run at the destination.
    fn start_there(&self) -> Result<(), NotStarted> {
        self.machine.step("starting the machine there");
        let began = Instant::now();
        let mut refusals = 0;
        loop {
            let Err(error) = self.there("cont", json!({})) else {
                return Ok(());
            };
            match self.there("query-status", json!({})) {
                Ok(status) if running(&status) => return Ok(()),
                Ok(_) if refusals >= CONT_TRIES => return Err(NotStarted::Certainly(error)),
                Ok(_) => refusals += 1,
                Err(gone) if gone.to_string().contains(qmp::GONE) => {
                    return Err(NotStarted::Certainly(gone));
                }
                Err(_) if began.elapsed() > STOPPED_PATIENCE => {
                    return Err(NotStarted::Perhaps(error));
                }
                Err(_) => {}
            }
            std::thread::sleep(CONT_PAUSE);
        }
    }

    fn check_there(&self) -> Done {
        let status = self.there("query-status", json!({}))?;
        if status["status"] != "inmigrate" {
            return Err(Failure::Failed(format!(
                "the QEMU at {} is {}, and does not wait for a machine; start it with -incoming \
                 defer -S",
                self.request().dest_qmp.display(),
                status["status"]
            )));
        }
        Ok(())
    }

    /// Has the other daemon await the NICs.
    fn announce_nics(&self, made: &mut Made) -> Done {
        self.machine.step("announcing the NICs");
        for id in &self.request().nics {
            let wanted = MoveNic {
                id: id.clone(),
                to: self.request().to.clone(),
            };
            let handle = self.daemon.migrations.nics.start(self.daemon, &wanted)?;
            made.nics.push((id.clone(), handle));
        }
        self.await_nics(made, |phase| phase != NicPhase::Connecting)
    }

    fn await_nics(&self, made: &Made, wanted: impl Fn(NicPhase) -> bool) -> Done {
        let mut nics = made.nics.iter();
        nics.try_for_each(|(id, handle)| {
            nics::wait(id, handle, NIC_PATIENCE, &|phase| {
                !phase.is_over() && wanted(phase)
            })?;
            Ok(())
        })
    }

    /// What became of them. Their guest runs by now; nothing depends on it.
    fn report_nics(&self, made: &Made) {
        for (id, handle) in &made.nics {
            let there = |phase| matches!(phase, NicPhase::Activated | NicPhase::Moved);
            if let Err(error) = nics::wait(id, handle, NIC_PATIENCE, &there) {
                tracing::warn!(%error, "a NIC's guest is not heard of");
            }
            let line = nics::line(id, handle, &self.request().to);
            self.machine.progress().nics.push(line);
        }
    }

    fn copy_disks(&self, made: &mut Made) -> Done {
        if self.request().disks.is_empty() {
            return Ok(());
        }
        self.machine.step("copying the disks");
        let migrations = &self.daemon.migrations;
        let request = self.request();
        // A copy that was in sync before is left as it was if this fails.
        let disks = MoveDisks {
            ids: request.disks.clone(),
            to: request.to.clone(),
            keep_source: request.keep_source,
        };
        let started = migrations.start(self.daemon, &disks)?;
        let disk = |(handle, joined)| Disk { handle, joined };
        made.disks.extend(started.into_iter().map(disk));
        let cancelled = || self.machine.cancelled.load(Ordering::SeqCst);
        made.disks
            .iter()
            .try_for_each(|disk| wait_in_sync(&disk.handle, &cancelled))
    }

    fn move_memory(&self, here: &mut Qmp, made: &mut Made) -> Done {
        let request = self.request();
        self.machine.step("moving the memory");
        let pause =
            json!({ "capabilities": [{ "capability": "pause-before-switchover", "state": true }] });
        here.execute("migrate-set-capabilities", pause)?;
        let incoming = request
            .incoming_uri
            .as_ref()
            .unwrap_or(&request.migrate_uri);
        self.there("migrate-incoming", json!({ "uri": incoming }))?;
        // Now, as its operator may have stopped it during the copy.
        made.ran = running(&here.execute("query-status", json!({}))?);
        here.execute("migrate", json!({ "uri": request.migrate_uri }))?;
        made.migrating = true;
        self.await_state(here, "pre-switchover", MEMORY_PATIENCE, Some(made))?;
        self.machine.step("handing the NICs over");
        self.await_nics(made, |phase| {
            matches!(phase, NicPhase::Taken | NicPhase::Activated)
        })?;
        if let Some(first) = request.disks.first() {
            self.machine.step("handing the disks over");
            let reports = self.daemon.migrations.release(first)?;
            self.machine.progress().handovers.extend(reports);
        }
        self.machine.step("completing the machine's migration");
        here.execute("migrate-continue", json!({ "state": "pre-switchover" }))?;
        let done = self.await_state(here, "completed", STOPPED_PATIENCE, None)?;
        self.machine.progress().downtime_ms = done["downtime"].as_u64();
        Ok(())
    }

    /// Waits for a state of QEMU's migration. Before the switch it may be given up, and is when what
    /// was `made` has come to nothing: QEMU by itself waits for a dead link as long as TCP does.
    fn await_state(
        &self,
        here: &mut Qmp,
        wanted: &str,
        patience: Duration,
        before_the_switch: Option<&Made>,
    ) -> Done<Value> {
        let began = Instant::now();
        loop {
            let state = here.execute("query-migrate", json!({}))?;
            match state["status"].as_str().unwrap_or("none") {
                status if status == wanted => return Ok(state),
                status @ ("failed" | "cancelled" | "cancelling") => {
                    let why = state["error-desc"].as_str().unwrap_or("no reason given");
                    return Err(Failure::Failed(format!("QEMU's migration {status}: {why}")));
                }
                _ => {}
            }
            if let Some(made) = before_the_switch {
                self.machine.stop_if_cancelled()?;
                made.still_copied()?;
            }
            if began.elapsed() > patience {
                return Err(Failure::Failed(format!(
                    "QEMU's migration did not get to {wanted} in {patience:?}"
                )));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Runs a command at the other QEMU, through the other daemon.
    fn there(&self, command: &str, arguments: Value) -> Done<Value> {
        let request = self.request();
        ask_there(&request.to, &request.dest_qmp, command, arguments)
    }

    /// Brings the machine back to life here, with its disks. Gives the error back, with what became
    /// of the machine.
    fn undo(&self, here: &mut Qmp, made: &Made, error: &Failure) -> Failure {
        self.machine.step("undoing");
        for (_, nic) in &made.nics {
            nic.cancel();
        }
        for disk in made.disks.iter().filter(|disk| !disk.joined) {
            // Refused after a release: the disk is asked back below.
            let _ = disk.handle.cancel();
        }
        match self.revive(here, made) {
            Ok(()) => Failure::Failed(format!("{error}; undone: the machine is here as before")),
            Err(trouble) => Failure::Failed(format!(
                "{error}; and undoing it met trouble: {trouble}; see ferry migrate status"
            )),
        }
    }

    fn revive(&self, here: &mut Qmp, made: &Made) -> Done {
        if made.migrating {
            stop_migration(here)?;
        }
        // First the disks: a machine must not run here while it could at the other side.
        made.disks
            .iter()
            .try_for_each(|disk| take_back(&disk.handle))?;
        if made.migrating && made.ran && !running(&here.execute("query-status", json!({}))?) {
            here.execute("cont", json!({}))?;
        }
        Ok(())
    }
}

/// Ends QEMU's migration, however far it is.
fn stop_migration(here: &mut Qmp) -> Done {
    // None under way is an error of its own, and fine.
    let _ = here.execute("migrate_cancel", json!({}));
    let began = Instant::now();
    loop {
        let state = here.execute("query-migrate", json!({}))?;
        let status = state["status"].as_str().unwrap_or("none");
        if matches!(status, "none" | "failed" | "cancelled" | "completed") {
            return Ok(());
        }
        if began.elapsed() > STOPPED_PATIENCE {
            return Err(Failure::Failed(format!("QEMU's migration stays {status}")));
        }
        std::thread::sleep(POLL);
    }
}

/// Has a disk that was released given back.
fn take_back(disk: &SourceHandle) -> Done {
    use SourcePhase::{Granted, InDoubt, Moved};
    let began = Instant::now();
    disk.ask_back();
    loop {
        let status = disk.status();
        match status.phase {
            Moved => {
                return Err(Failure::Failed(
                    "a disk is served at the destination already".into(),
                ));
            }
            Granted | InDoubt if began.elapsed() <= RETURN_PATIENCE => std::thread::sleep(POLL),
            Granted | InDoubt => {
                let why = status.reason.unwrap_or_else(|| "no answer yet".into());
                return Err(Failure::Failed(format!("a disk is not back yet: {why}")));
            }
            _ => return Ok(()),
        }
    }
}

fn running(status: &Value) -> bool {
    status["running"].as_bool().unwrap_or(false)
}

fn ask_there(peer: &str, socket: &Path, command: &str, arguments: Value) -> Done<Value> {
    let mut request = json!({ "execute": command });
    if arguments.as_object().is_some_and(|map| !map.is_empty()) {
        request["arguments"] = arguments;
    }
    let answer = destination::qmp(peer, &socket.display().to_string(), &request.to_string())
        .map_err(Failure::Failed)?;
    result_of(command, serde_json::from_str(&answer)?)
}
