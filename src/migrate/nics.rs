//! NICs on their way to other hosts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ferry_migration::ids::{MigrationId, NicId};
use ferry_migration::nic::{self, NicHandle, NicParams, NicPhase, NicStatus};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::error::{Done, Failure};
use crate::name::Name;

const POLL: Duration = Duration::from_millis(2);

/// A NIC to be moved.
#[derive(Debug, Clone, Deserialize)]
pub struct MoveNic {
    pub id: Name,
    /// The other daemon.
    pub to: String,
}

struct Leaving {
    handle: Arc<NicHandle>,
    peer: String,
}

/// The last move of each NIC.
#[derive(Default)]
pub struct NicMoves(Mutex<BTreeMap<Name, Leaving>>);

impl NicMoves {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Name, Leaving>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to move a NIC. One that is on its way there already goes on.
    pub fn start(&self, daemon: &Daemon, wanted: &MoveNic) -> Done<Arc<NicHandle>> {
        let (id, peer) = (&wanted.id, &wanted.to);
        let device = daemon.nic(id)?;
        let mut all = self.all();
        if let Some(leaving) = all.get(id) {
            let phase = leaving.handle.status().phase;
            // One that is there passes stragglers on; that ends when it leaves again.
            if !phase.is_over() && phase != NicPhase::Activated {
                if leaving.peer == *peer {
                    return Ok(leaving.handle.clone());
                }
                return Err(Failure::Failed(format!(
                    "nic {id} is being moved to {}; cancel that first: ferry migrate cancel --nic {id}",
                    leaving.peer
                )));
            }
        }
        let nic = NicId::try_from(id.as_str().to_owned()).map_err(Failure::of)?;
        let handle = nic::start(NicParams {
            nic: device,
            id: nic,
            migration: MigrationId::random(),
            daemon: daemon.id,
            peer: peer.clone(),
        })?;
        let handle = Arc::new(handle);
        let leaving = Leaving {
            handle: handle.clone(),
            peer: peer.clone(),
        };
        all.insert(id.clone(), leaving);
        Ok(handle)
    }

    /// Calls a NIC's move off.
    pub fn cancel(&self, id: &Name) -> Done {
        let handle = self.all().get(id).map(|leaving| leaving.handle.clone());
        let Some(handle) = handle else {
            return Err(Failure::Failed(format!(
                "nic {id} is not being moved; start with: ferry migrate nic {id} --to HOST:PORT"
            )));
        };
        let phase = handle.status().phase;
        if phase == NicPhase::Activated {
            return Err(Failure::Failed(format!(
                "nic {id} is where its guest runs by now; migrate its VM back"
            )));
        }
        handle.cancel();
        handle.join();
        Ok(())
    }

    /// A NIC that is removed is not moved.
    pub fn forget(&self, id: &Name) {
        let leaving = self.all().remove(id);
        if let Some(leaving) = leaving {
            leaving.handle.cancel();
            leaving.handle.join();
        }
    }

    /// The end of the daemon.
    pub fn stop(&self) {
        let all = std::mem::take(&mut *self.all());
        for leaving in all.values() {
            leaving.handle.cancel();
        }
        for leaving in all.values() {
            leaving.handle.join();
        }
    }

    /// A line for each.
    pub fn lines(&self) -> Vec<Value> {
        let all = self.all();
        let line = |(id, leaving): (&Name, &Leaving)| line(id, &leaving.handle, &leaving.peer);
        all.iter().map(line).collect()
    }
}

/// A NIC's move, as it is shown.
pub fn line(id: &Name, handle: &NicHandle, peer: &str) -> Value {
    let mut line = serde_json::to_value(handle.status()).unwrap_or_default();
    line["id"] = json!(id);
    line["to"] = json!(peer);
    line
}

/// Waits until a NIC's move is where it is wanted, at most so long.
pub fn wait(
    id: &Name,
    handle: &NicHandle,
    patience: Duration,
    wanted: &dyn Fn(NicPhase) -> bool,
) -> Done<NicStatus> {
    let began = Instant::now();
    loop {
        let status = handle.status();
        if wanted(status.phase) {
            return Ok(status);
        }
        let why = status.reason.clone().unwrap_or_else(|| "no answer".into());
        if status.phase.is_over() {
            return Err(Failure::Failed(format!("nic {id} is not moved: {why}")));
        }
        if began.elapsed() > patience {
            return Err(Failure::Failed(format!(
                "nic {id} is not ready to move after {} s: {why}",
                patience.as_secs()
            )));
        }
        std::thread::sleep(POLL);
    }
}
