//! Moving a machine: its disks first, then QEMU's own migration around the handover.
//!
//! ```text
//!   copy the disks, until in sync                           undo: cancel them
//!   QEMU: pause-before-switchover, migrate                  undo: migrate_cancel
//!   at pre-switchover: release each disk                    undo: the source's rings restart,
//!   migrate-continue, until completed                             and each disk is asked back
//!   cont at the destination                                 no undo: the machine runs there
//! ```
//!
//! The destination's QEMU is to be started with `-incoming defer -S`: it runs only when told so at
//! the very end, so that a failure before finds nobody running there.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_migration::destination;
use ferry_migration::ids::DiskId;
use ferry_migration::source::{SourceHandle, SourcePhase};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ended, wait_in_sync};
use crate::daemon::Daemon;
use crate::error::{Done, Failure};
use crate::qmp::{Qmp, result_of};

const POLL: Duration = Duration::from_millis(20);
/// For the guest's memory, after the disks.
const MEMORY_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// For a step during which the machine stands still.
const STOPPED_PATIENCE: Duration = Duration::from_secs(60);
/// For the disks to come back after a failure.
const RETURN_PATIENCE: Duration = Duration::from_secs(30);

/// What `ferry migrate vm` asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineRequest {
    /// All disks of the machine that this daemon serves.
    pub disks: Vec<DiskId>,
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
}

struct Progress {
    step: &'static str,
    error: Option<String>,
    handovers: Vec<Value>,
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

    /// Asks it to stop; it does so before the disks are released, and not after.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
    }

    pub fn moves(&self, disk: &DiskId) -> bool {
        self.request.disks.contains(disk)
    }

    /// Its line in the status.
    pub fn line(&self) -> Value {
        let progress = self.progress();
        json!({
            "disks": self.request.disks,
            "to": self.request.to,
            "step": progress.step,
            "over": progress.over,
            "error": progress.error,
            "handovers": progress.handovers,
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
    if request.disks.is_empty() {
        return Err(Failure::Usage("name the machine's disks: --disk ID".into()));
    }
    let machine = Arc::new(MachineMove {
        request,
        progress: Mutex::new(Progress {
            step: "starting",
            error: None,
            handovers: Vec::new(),
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
        let ran = running(&here.execute("query-status", json!({}))?);
        self.check_there()?;
        self.machine.step("copying the disks");
        let mut disks = Vec::new();
        let copied = self.copy_disks(&mut disks);
        let moved = copied.and_then(|()| self.move_memory(&mut here, &disks));
        match moved {
            Ok(()) => self.machine.step("starting the machine there"),
            Err(error) => return Err(self.undo(&mut here, &disks, ran, error)),
        }
        if ran && let Err(error) = self.there("cont", json!({})) {
            return Err(self.undo(&mut here, &disks, ran, error));
        }
        Ok(())
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

    fn copy_disks(&self, disks: &mut Vec<Arc<SourceHandle>>) -> Done {
        for id in &self.request().disks {
            disks.push(
                self.daemon
                    .migrations
                    .start(self.daemon, id, &self.request().to)?,
            );
        }
        let cancelled = || self.machine.cancelled.load(Ordering::SeqCst);
        disks
            .iter()
            .try_for_each(|disk| wait_in_sync(disk, &cancelled))
    }

    fn move_memory(&self, here: &mut Qmp, disks: &[Arc<SourceHandle>]) -> Done {
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
        here.execute("migrate", json!({ "uri": request.migrate_uri }))?;
        self.await_state(here, "pre-switchover", MEMORY_PATIENCE, true)?;
        self.machine.step("handing the disks over");
        for disk in disks {
            let report = disk.release(super::RELEASE_PATIENCE)?;
            let report = serde_json::to_value(report).unwrap_or_default();
            self.machine.progress().handovers.push(report);
        }
        self.machine.step("completing the machine's migration");
        here.execute("migrate-continue", json!({ "state": "pre-switchover" }))?;
        let done = self.await_state(here, "completed", STOPPED_PATIENCE, false)?;
        self.machine.progress().downtime_ms = done["downtime"].as_u64();
        Ok(())
    }

    /// Waits for a state of QEMU's migration.
    fn await_state(
        &self,
        here: &mut Qmp,
        wanted: &str,
        patience: Duration,
        may_cancel: bool,
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
            if may_cancel {
                self.machine.stop_if_cancelled()?;
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
    fn undo(
        &self,
        here: &mut Qmp,
        disks: &[Arc<SourceHandle>],
        ran: bool,
        error: Failure,
    ) -> Failure {
        self.machine.step("undoing");
        for disk in disks {
            // Refused after a release: the disk is asked back when its rings restart.
            let _ = disk.cancel();
        }
        let revived = self
            .revive(here, ran)
            .and_then(|()| if ran { disks_are_back(disks) } else { Ok(()) });
        match revived {
            Ok(()) => Failure::Failed(format!("{error}; undone: the machine is here as before")),
            Err(trouble) => Failure::Failed(format!(
                "{error}; and undoing it met trouble: {trouble}; see ferry migrate status"
            )),
        }
    }

    fn revive(&self, here: &mut Qmp, ran: bool) -> Done {
        // No migration under way is an error of its own, and fine.
        let _ = here.execute("migrate_cancel", json!({}));
        let began = Instant::now();
        loop {
            let state = here.execute("query-migrate", json!({}))?;
            let status = state["status"].as_str().unwrap_or("none");
            if matches!(status, "none" | "failed" | "cancelled" | "completed") {
                break;
            }
            if began.elapsed() > STOPPED_PATIENCE {
                return Err(Failure::Failed(format!("QEMU's migration stays {status}")));
            }
            std::thread::sleep(POLL);
        }
        if ran && !running(&here.execute("query-status", json!({}))?) {
            here.execute("cont", json!({}))?;
        }
        Ok(())
    }
}

/// Waits until every released disk was given back.
fn disks_are_back(disks: &[Arc<SourceHandle>]) -> Done {
    for disk in disks {
        let began = Instant::now();
        loop {
            let status = disk.status();
            if ended(status.phase) {
                if status.phase == SourcePhase::Moved {
                    return Err(Failure::Failed(
                        "a disk is served at the destination already".into(),
                    ));
                }
                break;
            }
            if began.elapsed() > RETURN_PATIENCE {
                let why = status.reason.unwrap_or_else(|| "no answer yet".into());
                return Err(Failure::Failed(format!("a disk is not back yet: {why}")));
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
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
