//! The record's JSON, version 1. Frozen: a change is a new file.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Peer, Record};
use crate::envelope::ENVELOPE_BYTES_MAX;
use crate::ids::{BadDiskId, DaemonId, MEMBERS_MAX, Member, MigrationId};
use crate::phase::{Phase, REFUSED_MAX, RefusedId, State};

#[derive(Serialize, Deserialize)]
struct LeaseV1 {
    version: u32,
    disk_uuid: Uuid,
    owner: Uuid,
    phase: PhaseV1,
    refused: Vec<RefusedV1>,
    peer: Option<PeerV1>,
    /// Hexadecimal.
    device_state: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    members: Vec<MemberV1>,
}

#[derive(Serialize, Deserialize)]
struct MemberV1 {
    disk: String,
    epoch: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseV1 {
    Serving { epoch: u64, through: Option<Uuid> },
    Released { migration: Uuid, epoch: u64 },
    Handed { migration: Uuid, epoch: u64 },
    Moved { migration: Uuid, epoch: u64 },
    Incoming { migration: Uuid, epoch: u64 },
    Granted { migration: Uuid, epoch: u64 },
    Returned { migration: Uuid, epoch: u64 },
    Taken { epoch: u64 },
    Vacant,
}

#[derive(Serialize, Deserialize)]
struct RefusedV1 {
    migration: Uuid,
    epoch: u64,
}

#[derive(Serialize, Deserialize)]
struct PeerV1 {
    address: String,
    daemon: Uuid,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

pub(super) fn print(record: &Record) -> Vec<u8> {
    let lease = LeaseV1 {
        version: 1,
        disk_uuid: record.disk_uuid,
        owner: record.owner.0,
        phase: frozen(record.state.phase),
        refused: record
            .state
            .refused
            .iter()
            .map(|r| RefusedV1 {
                migration: r.migration.0,
                epoch: r.epoch,
            })
            .collect(),
        peer: record.peer.as_ref().map(|p| PeerV1 {
            address: p.address.clone(),
            daemon: p.daemon.0,
        }),
        device_state: record.device_state.as_deref().map(hex),
        members: record
            .members
            .iter()
            .map(|member| MemberV1 {
                disk: member.disk.to_string(),
                epoch: member.epoch,
            })
            .collect(),
    };
    let mut text = serde_json::to_vec_pretty(&lease).expect("plain data prints");
    text.push(b'\n');
    text
}

pub(super) fn parse(text: &[u8]) -> Result<Record, String> {
    // The version first: a later one need not have this shape.
    let VersionOnly { version } =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if version != 1 {
        return Err(format!(
            "it has version {version}, this Ferry knows version 1"
        ));
    }
    let lease: LeaseV1 = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let device_state = lease.device_state.as_deref().map(unhex).transpose()?;
    if device_state
        .as_ref()
        .is_some_and(|state| state.len() > ENVELOPE_BYTES_MAX)
    {
        return Err("its device state is too large".into());
    }
    let phase = runtime(&lease.phase);
    if matches!(phase, Phase::Granted { .. }) && device_state.is_none() {
        return Err("it is granted and has no device state".into());
    }
    if phase != Phase::Vacant && phase.epoch() == 0 {
        return Err("epoch 0".into());
    }
    if lease.members.len() > MEMBERS_MAX {
        return Err("it moves with too many disks".into());
    }
    let members = lease.members.into_iter().map(|member| {
        Ok(Member {
            disk: member
                .disk
                .parse()
                .map_err(|error: BadDiskId| error.to_string())?,
            epoch: member.epoch,
        })
    });
    let members = members.collect::<Result<_, String>>()?;
    if lease.refused.len() > REFUSED_MAX {
        return Err("it refuses too many migrations".into());
    }
    let refused = lease
        .refused
        .iter()
        .map(|r| RefusedId {
            migration: MigrationId(r.migration),
            epoch: r.epoch,
        })
        .collect();
    Ok(Record {
        disk_uuid: lease.disk_uuid,
        owner: DaemonId(lease.owner),
        state: State { phase, refused },
        peer: lease.peer.map(|p| Peer {
            address: p.address,
            daemon: DaemonId(p.daemon),
        }),
        device_state,
        members,
    })
}

fn frozen(phase: Phase) -> PhaseV1 {
    match phase {
        Phase::Vacant => PhaseV1::Vacant,
        Phase::Taken { epoch } => PhaseV1::Taken { epoch },
        Phase::Serving { epoch, through } => PhaseV1::Serving {
            epoch,
            through: through.map(|m| m.0),
        },
        Phase::Released { migration, epoch } => PhaseV1::Released {
            migration: migration.0,
            epoch,
        },
        Phase::Handed { migration, epoch } => PhaseV1::Handed {
            migration: migration.0,
            epoch,
        },
        Phase::Moved { migration, epoch } => PhaseV1::Moved {
            migration: migration.0,
            epoch,
        },
        Phase::Incoming { migration, epoch } => PhaseV1::Incoming {
            migration: migration.0,
            epoch,
        },
        Phase::Granted { migration, epoch } => PhaseV1::Granted {
            migration: migration.0,
            epoch,
        },
        Phase::Returned { migration, epoch } => PhaseV1::Returned {
            migration: migration.0,
            epoch,
        },
    }
}

fn runtime(phase: &PhaseV1) -> Phase {
    let id = |uuid: &Uuid| MigrationId(*uuid);
    match phase {
        PhaseV1::Vacant => Phase::Vacant,
        PhaseV1::Taken { epoch } => Phase::Taken { epoch: *epoch },
        PhaseV1::Serving { epoch, through } => Phase::Serving {
            epoch: *epoch,
            through: through.as_ref().map(id),
        },
        PhaseV1::Released {
            migration: m,
            epoch: e,
        } => Phase::Released {
            migration: id(m),
            epoch: *e,
        },
        PhaseV1::Handed {
            migration: m,
            epoch: e,
        } => Phase::Handed {
            migration: id(m),
            epoch: *e,
        },
        PhaseV1::Moved {
            migration: m,
            epoch: e,
        } => Phase::Moved {
            migration: id(m),
            epoch: *e,
        },
        PhaseV1::Incoming {
            migration: m,
            epoch: e,
        } => Phase::Incoming {
            migration: id(m),
            epoch: *e,
        },
        PhaseV1::Granted {
            migration: m,
            epoch: e,
        } => Phase::Granted {
            migration: id(m),
            epoch: *e,
        },
        PhaseV1::Returned {
            migration: m,
            epoch: e,
        } => Phase::Returned {
            migration: id(m),
            epoch: *e,
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn unhex(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err("its device state has half a byte".into());
    }
    digits
        .chunks_exact(2)
        .map(|pair| {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            match (digit(0), digit(1)) {
                (Some(high), Some(low)) => Ok(u8::try_from(high * 16 + low).unwrap_or(0)),
                _ => Err("its device state is not hexadecimal".to_owned()),
            }
        })
        .collect()
}
