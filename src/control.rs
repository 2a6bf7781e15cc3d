//! The control socket: JSON-RPC 2.0, a line each way.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ferry_migration::ids::{DaemonId, DiskId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::DiskConfig;
use crate::daemon::Daemon;
use crate::error::{Done, Failure};
use crate::escalation::hooks::HookEvent;
use crate::events::{About, What};
use crate::files::{self, Receiver};
use crate::migrate::nics::{self, MoveNic};
use crate::migrate::{MachineRequest, MoveDisks};
use crate::name::Name;
use crate::qos::datastore::DatastoreQos;
use crate::workers;

/// Longest request taken, in bytes.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// JSON-RPC's codes for the two kinds of failure.
const BAD_REQUEST: i64 = -32602;
const FAILED: i64 = -32000;

#[derive(Deserialize)]
struct OneDisk {
    id: DiskId,
}

#[derive(Deserialize)]
struct MaybeDisk {
    id: Option<DiskId>,
}

#[derive(Deserialize)]
struct FencedDisk {
    id: DiskId,
    fenced: DaemonId,
}

#[derive(Deserialize)]
struct ResizeDisk {
    id: DiskId,
    bytes: u64,
}

#[derive(Deserialize)]
struct OneNic {
    id: Name,
}

#[derive(Deserialize)]
struct OneSwitch {
    name: Name,
}

#[derive(Deserialize)]
struct OneGroup {
    name: Name,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SomeDisks {
    /// None for all.
    #[serde(default)]
    ids: Vec<DiskId>,
}

#[derive(Deserialize)]
struct OneVm {
    name: Name,
}

#[derive(Deserialize)]
struct TryHook {
    name: Name,
    event: Trial,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Trial {
    Restart,
    Escalate,
    Takeover,
}

/// Answers requests until the process ends.
pub fn serve(daemon: Arc<Daemon>, socket: &Path) -> Done {
    if UnixStream::connect(socket).is_ok() {
        return Err(Failure::Failed(format!(
            "{} is in use: another daemon runs there; stop it, or set another run_dir",
            socket.display()
        )));
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(|error| {
        Failure::Failed(format!("cannot listen on {}: {error}", socket.display()))
    })?;
    std::fs::set_permissions(socket, PermissionsExt::from_mode(0o600))?;
    std::thread::Builder::new()
        .name("ferry-control".into())
        .spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let daemon = daemon.clone();
                let spawned = std::thread::Builder::new()
                    .name("ferry-client".into())
                    .spawn(move || converse(&daemon, &stream));
                if let Err(error) = spawned {
                    tracing::warn!(%error, "a control client could not be served");
                }
            }
        })?;
    Ok(())
}

fn converse(daemon: &Arc<Daemon>, stream: &UnixStream) {
    let mut reader = BufReader::new(Receiver::new(stream));
    loop {
        let mut line = Vec::new();
        match reader
            .by_ref()
            .take(REQUEST_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let answer = answer(daemon, &line, reader.get_ref().take());
        let mut writer = stream;
        if writeln!(writer, "{answer}").is_err() {
            return;
        }
    }
}

fn answer(daemon: &Arc<Daemon>, line: &[u8], files: Vec<OwnedFd>) -> Value {
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            return json!({ "jsonrpc": "2.0", "id": null,
                "error": { "code": -32700, "message": error.to_string() } });
        }
    };
    let method = request["method"].as_str().unwrap_or_default();
    let parameters = request["params"].clone();
    let result = match method {
        "nic.add" => take(parameters).and_then(|config| daemon.add_nic(&config, files)),
        _ => dispatch(daemon, method, parameters),
    };
    if result.is_ok() {
        note_command(daemon, method, &request["params"]);
    }
    let mut answer = json!({ "jsonrpc": "2.0", "id": request["id"] });
    match result {
        Ok(value) => answer["result"] = value,
        Err(failure) => {
            let code = if matches!(failure, Failure::Usage(_)) {
                BAD_REQUEST
            } else {
                FAILED
            };
            answer["error"] = json!({ "code": code, "message": failure.to_string() });
        }
    }
    answer
}

fn dispatch(daemon: &Arc<Daemon>, method: &str, parameters: Value) -> Done<Value> {
    let migrations = &daemon.migrations;
    match method {
        "disk.add" => Ok(daemon.add_disk(take::<DiskConfig>(parameters)?)?.line()),
        "disk.list" => {
            // Not under the lock: one that hangs would keep everybody from all the others.
            let disks: Vec<_> = daemon.disks().values().cloned().collect();
            let disks: Vec<Value> = disks.iter().map(|disk| disk.line()).collect();
            Ok(json!({ "disks": disks }))
        }
        "disk.remove" => {
            let disk: OneDisk = take(parameters)?;
            daemon.remove_disk(&disk.id)?;
            Ok(json!({ "removed": disk.id }))
        }
        "disk.resize" => {
            let disk: ResizeDisk = take(parameters)?;
            daemon.resize_disk(&disk.id, disk.bytes)
        }
        "disk.set" => daemon.set_disk(&take(parameters)?),
        "datastore.list" => Ok(daemon.datastore_lines()),
        "datastore.set" => {
            let (path, qos) = datastore_change(parameters)?;
            daemon.set_datastore(&path, &qos)
        }
        "group.list" => Ok(daemon.group_lines()),
        "group.set" => daemon.set_group(&take(parameters)?),
        "group.remove" => daemon.remove_group(&take::<OneGroup>(parameters)?.name),
        "iostat" => daemon.iostat(&take::<SomeDisks>(parameters)?.ids),
        "nic.set" => daemon.set_nic(&take(parameters)?),
        "nic.list" => Ok(daemon.nic_lines()),
        "nic.remove" => daemon.remove_nic(&take::<OneNic>(parameters)?.id),
        "switch.add" => daemon.add_switch(&take(parameters)?),
        "switch.list" => Ok(daemon.switch_lines()),
        "switch.remove" => daemon.remove_switch(&take::<OneSwitch>(parameters)?.name),
        "vm.list" => Ok(daemon.escalation.vm_lines(daemon)),
        "vm.show" => {
            let vm: OneVm = take(parameters)?;
            daemon.escalation.vm_shown(daemon, &vm.name)
        }
        "vm.try_hook" => try_hook(daemon, take(parameters)?),
        "events" => Ok(daemon.events.lines()),
        "worker.list" => Ok(workers::lines(&daemon.workers())),
        "migrate.disk" => {
            let started = migrations.start(daemon, &take::<MoveDisks>(parameters)?)?;
            let status = started.iter().map(|(handle, _)| handle.status());
            serde_json::to_value(status.collect::<Vec<_>>()).map_err(Failure::of)
        }
        "migrate.nic" => {
            let wanted: MoveNic = take(parameters)?;
            let handle = migrations.nics.start(daemon, &wanted)?;
            Ok(nics::line(&wanted.id, &handle, &wanted.to))
        }
        "migrate.cancel_nic" => {
            let nic: OneNic = take(parameters)?;
            migrations.cancel_nic(&nic.id)?;
            Ok(json!({ "cancelled": nic.id }))
        }
        "migrate.machine" => {
            let request: MachineRequest = take(parameters)?;
            Ok(migrations.start_machine(daemon.clone(), request)?.line())
        }
        "migrate.release" => {
            let mut reports = migrations.release(&take::<OneDisk>(parameters)?.id)?;
            Ok(match reports.len() {
                1 => reports.remove(0),
                _ => json!({ "handovers": reports }),
            })
        }
        "migrate.cancel" => {
            let disk: OneDisk = take(parameters)?;
            migrations.cancel(&disk.id)?;
            Ok(json!({ "cancelled": disk.id }))
        }
        "migrate.resolve" => {
            let request: FencedDisk = take(parameters)?;
            migrations.resolve(&request.id, request.fenced)?;
            Ok(daemon.disk(&request.id)?.line())
        }
        "lease.show" => daemon.leases(take::<MaybeDisk>(parameters)?.id.as_ref()),
        "lease.break" => {
            let request: FencedDisk = take(parameters)?;
            daemon.break_lease(&request.id, request.fenced)
        }
        "migrate.status" => Ok(migrations.status()),
        _ => Err(Failure::Usage(format!("there is no method {method:?}"))),
    }
}

/// The datastore, and beside it what is to be changed.
fn datastore_change(mut parameters: Value) -> Done<(PathBuf, DatastoreQos)> {
    let path = parameters
        .as_object_mut()
        .and_then(|it| it.remove("path"))
        .unwrap_or_default();
    Ok((take(path)?, take(parameters)?))
}

/// Runs a machine's hook as if something had happened.
fn try_hook(daemon: &Daemon, trial: TryHook) -> Done<Value> {
    let TryHook { name: vm, event } = trial;
    let shown = daemon.escalation.vm_shown(daemon, &vm)?;
    if shown["hook"].is_null() {
        return Err(Failure::Failed(format!(
            "vm {vm} has no hook; set hook in its section of the configuration, or in [escalation]"
        )));
    }
    let reason = "a trial: nothing has happened".to_owned();
    let attempt = 1;
    let event = match event {
        Trial::Restart => HookEvent::Restart {
            vm,
            attempt,
            reason,
        },
        Trial::Escalate => HookEvent::Escalate {
            vm,
            attempts: attempt,
            reason,
        },
        Trial::Takeover => {
            let disks = daemon.config.vm(&vm).map(|vm| &vm.disks);
            let Some(id) = disks.and_then(|disks| disks.first()) else {
                return Err(Failure::Failed(format!("vm {vm} lists no disks")));
            };
            HookEvent::Takeover {
                disk: id.clone(),
                epoch: daemon.disk(id)?.ownership.phase().epoch(),
                from: "nowhere".into(),
            }
        }
    };
    daemon.hooks().try_out(event);
    Ok(json!({ "begun": true }))
}

/// What commands have changed is told as events.
fn note_command(daemon: &Daemon, method: &str, parameters: &Value) {
    let changes = matches!(
        method,
        "disk.add"
            | "disk.remove"
            | "disk.resize"
            | "disk.set"
            | "datastore.set"
            | "group.set"
            | "group.remove"
    );
    if !changes && (!method.starts_with("migrate.") || method == "migrate.status") {
        return;
    }
    let disk = serde_json::from_value::<DiskId>(parameters["id"].clone()).ok();
    if let ("disk.add" | "disk.remove", Some(id)) = (method, &disk) {
        daemon.escalation.clear_problem(id);
    }
    let about = About {
        vm: None,
        disk: disk.as_ref(),
    };
    let to = parameters["to"].as_str().map(|to| format!(" to {to}"));
    let named = ["path", "name"].map(|key| parameters[key].as_str());
    let whose = match (method.split_once('.'), named) {
        (Some(("datastore", _)), [Some(name), _]) | (Some(("group", _)), [_, Some(name)]) => {
            format!(" {name}")
        }
        _ => String::new(),
    };
    let text = format!("{method}{whose}{}", to.unwrap_or_default());
    daemon.events.note(What::Command, about, text);
}

fn take<T: DeserializeOwned>(parameters: Value) -> Done<T> {
    serde_json::from_value(parameters).map_err(|error| Failure::Usage(error.to_string()))
}

/// A connection to a daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon at `socket`.
    pub fn connect(socket: &Path) -> Done<Client> {
        let stream = UnixStream::connect(socket).map_err(|error| {
            Failure::Failed(format!(
                "no daemon answers at {}: {error}; start one with: ferry daemon --config FILE, or \
                 name its socket with --control",
                socket.display()
            ))
        })?;
        Ok(Client {
            reader: BufReader::new(stream),
        })
    }

    /// Calls a method and waits for its answer.
    pub fn call(&mut self, method: &str, parameters: Value) -> Done<Value> {
        self.call_with(method, parameters, &[])
    }

    /// The same, with open files beside the request.
    pub fn call_with(&mut self, method: &str, parameters: Value, files: &[OwnedFd]) -> Done<Value> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": parameters });
        files::send(
            self.reader.get_ref(),
            format!("{request}\n").as_bytes(),
            files,
        )?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(Failure::Failed(
                "the daemon ended before it answered".into(),
            ));
        }
        let mut answer: Value = serde_json::from_str(&line)?;
        if let Some(error) = answer.get("error") {
            let message = error["message"]
                .as_str()
                .unwrap_or("no reason given")
                .to_owned();
            return Err(if error["code"] == BAD_REQUEST {
                Failure::Usage(message)
            } else {
                Failure::Failed(message)
            });
        }
        Ok(answer["result"].take())
    }
}
