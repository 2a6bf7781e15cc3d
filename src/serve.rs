//! `ferry serve` and `ferry daemon`: processes that serve until they are told to end.

use std::path::Path;
use std::sync::Arc;

use ferry_dataplane::disk::{Disk, Service};
use ferry_dataplane::rebalance::Rebalancer;
use ferry_dataplane::worker::Worker;
use ferry_migration::ids::DaemonId;
use ferry_migration::lease::{Record, RecordStore, chain, identity};
use ferry_migration::phase::Phase;
use ferry_vhost::blk::device::{BlkDevice, BlkOptions};
use ferry_vhost::session;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uuid::Uuid;

use crate::cli::ServeArguments;
use crate::config::{Config, default_run_dir, default_state_dir};
use crate::control;
use crate::daemon::Daemon;
use crate::daemon::place::Place;
use crate::error::{Done, Failure};
use crate::escalation::watch::Watch;
use crate::{doctor, output, workers};

/// One disk, no configuration, no record: what QEMU's own storage daemon is used for.
pub fn serve(arguments: &ServeArguments) -> Done {
    // Before anything that a signal should undo.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let place = Place::of(&arguments.disk)?;
    let disk = match &place {
        Some(place) => place.settle(arguments.disk.clone()),
        None => arguments.disk.clone(),
    };
    // Once for a good error, and once when the image's lock is held and the record stands still:
    // whoever held it before may have moved the disk away.
    refuse_moved(place.as_ref(), arguments.new_identity)?;
    let backend = disk.open(arguments.usage)?;
    refuse_moved(place.as_ref(), arguments.new_identity)?;
    if let (Some(place), true) = (&place, arguments.new_identity) {
        // No record is kept here, so no disk is named either.
        identity::remove(&place.path).map_err(|error| {
            Failure::Failed(format!("the image's identity cannot be removed: {error}"))
        })?;
    }
    let workers = workers::start(arguments.workers.into(), arguments.spin_us)?;
    let handles: Vec<_> = workers.iter().map(Worker::handle).collect();
    let queues = arguments.num_queues;
    let disk = Disk::new(&backend, &handles, 0, queues.into(), Service::Open)?;
    // Whoever comes back to this socket is who was here before.
    let socket = std::path::absolute(&arguments.socket_path)?
        .display()
        .to_string();
    let bytes = disk.geometry().capacity_bytes;
    drop(backend);
    let options = BlkOptions {
        name: "disk".into(),
        num_queues: queues,
        serial: "ferry".into(),
        tracking: arguments.inflight.tracking(&default_run_dir(), &socket),
    };
    let disk = Arc::new(disk);
    let device = BlkDevice::new(disk.clone(), &options);
    let balance = Rebalancer::start(handles, move || vec![disk.clone()])?;
    let listening = session::listen(device, &arguments.socket_path, 0o660)?;
    announce(arguments, bytes);
    signals.forever().next();
    drop(listening);
    drop(balance);
    drop(workers);
    Ok(())
}

/// An image whose record says that it is not here any more is not served. Of a device only the
/// default state directory can be asked: there is no configuration that names another.
fn refuse_moved(place: Option<&Place>, new_identity: bool) -> Done {
    let Some(place) = place else {
        return Ok(());
    };
    if let Some(disk) = chain::shared_disk(&place.path)? {
        return Err(Failure::Failed(format!(
            "{} is disk {disk}, which hosts share: one without a lease must not serve it; use a \
             daemon, and ferry disk add --shared",
            place.path.display()
        )));
    }
    let store = place.record(&default_state_dir());
    let known = store.load()?;
    let becomes_another = new_identity && known.is_none();
    if new_identity && (place.is_device || known.is_some()) {
        return Err(Failure::Usage(format!(
            "--new-identity is for a copy that has no record: {} {}",
            place.path.display(),
            match known {
                Some(_) => format!(
                    "has one, {}; remove that first if it belongs to another disk",
                    store.path().display()
                ),
                None => "is a device".to_owned(),
            }
        )));
    }
    if !(place.is_device || becomes_another) {
        let vacant = || Record::vacant(Uuid::nil(), DaemonId(Uuid::nil()));
        let record = known.clone().unwrap_or_else(vacant);
        identity::check(&place.path, &record, store.path())
            .map_err(|error| Failure::Failed(error.to_string()))?;
    }
    let Some(record) = known else {
        return Ok(());
    };
    if matches!(record.state.phase, Phase::Serving { .. } | Phase::Vacant) {
        return Ok(());
    }
    let peer = record
        .peer
        .map(|peer| peer.address)
        .filter(|address| !address.is_empty());
    Err(Failure::Failed(format!(
        "{} is {} (epoch {}): another host{} may serve it; its record is {}",
        place.path.display(),
        record.state.phase.name(),
        record.state.phase.epoch(),
        peer.map(|peer| format!(", {peer},")).unwrap_or_default(),
        store.path().display()
    )))
}

fn announce(arguments: &ServeArguments, bytes: u64) {
    let socket = std::path::absolute(&arguments.socket_path)
        .unwrap_or_else(|_| arguments.socket_path.clone());
    let lines = qemu_lines(&socket, arguments.num_queues);
    if output::json_mode() {
        output::json_line(&json!({
            "ready": true, "socket": socket, "bytes": bytes,
            "num_queues": arguments.num_queues, "qemu": lines,
        }));
        return;
    }
    println!(
        "{} ({}) is served at {}",
        arguments.disk,
        output::bytes(bytes),
        socket.display()
    );
    println!("\nQEMU (guest memory must be shared; choose its size):\n");
    println!("  {}", lines.join(" \\\n  "));
    println!("\nServing until SIGTERM or Ctrl-C.");
}

/// The options that attach a socket to QEMU.
pub fn qemu_lines(socket: &Path, queues: u16) -> Vec<String> {
    vec![
        "-object memory-backend-memfd,id=mem,size=1G,share=on".into(),
        "-machine memory-backend=mem -m 1G".into(),
        format!(
            "-chardev socket,id=ferry0,path={},reconnect-ms=100",
            socket.display()
        ),
        format!("-device vhost-user-blk-pci,chardev=ferry0,num-queues={queues}"),
    ]
}

/// The daemon, until it is told to end.
pub fn daemon(config: &Path, until_eof: bool) -> Done {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    if until_eof {
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = signal_hook::low_level::raise(SIGTERM);
        });
    }
    let config = Config::load(config)?;
    doctor::warn(&config);
    let control_socket = config.control_socket();
    let daemon = Daemon::start(config)?;
    // First, as it finds out what is wrong with hooks and heartbeats; disks may come later.
    let watch = Watch::start(&daemon)?;
    // Peers last: before the disks are up, their questions would be answered with "not known here".
    daemon.take_up_disks();
    daemon.take_up_nics();
    control::serve(daemon.clone(), &control_socket)?;
    let peers = daemon.listen_for_peers().inspect_err(|_| {
        daemon.stop();
        let _ = std::fs::remove_file(&control_socket);
    })?;
    if output::json_mode() {
        output::json_line(&json!({
            "ready": true, "control": control_socket, "peers": peers.address().to_string(),
        }));
    } else {
        println!(
            "control socket {}, peers at {}",
            control_socket.display(),
            peers.address()
        );
    }
    let balance = daemon.balance()?;
    signals.forever().next();
    tracing::info!("stopping");
    drop(watch);
    drop(balance);
    drop(peers);
    daemon.stop();
    let _ = std::fs::remove_file(&control_socket);
    Ok(())
}
