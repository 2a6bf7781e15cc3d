//! One of the demo's two hosts: a daemon in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use crate::control::Client;
use crate::error::{Done, Failure};

const POLL: Duration = Duration::from_millis(20);

/// A daemon and its directory. Dropping it ends the daemon.
pub struct Host {
    name: &'static str,
    dir: PathBuf,
    peer: String,
    process: Child,
    client: Client,
}

impl Host {
    /// Starts a daemon under `dir`.
    pub fn start(name: &'static str, dir: &Path) -> Done<Host> {
        let dir = dir.join(name);
        std::fs::create_dir(&dir)?;
        let config = dir.join("ferry.toml");
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\n[migration]\nlisten = \"127.0.0.1:0\"\n",
            dir.join("state"),
            dir.join("run")
        );
        std::fs::write(&config, text)?;
        let log = std::fs::File::create(dir.join("log"))?;
        let mut process = Command::new(std::env::current_exe()?)
            .args(["daemon", "--json", "--until-eof", "--config"])
            .arg(&config)
            .stdin(Stdio::piped()) // its end is this process's end
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let ready: Value = serde_json::from_str(&line).map_err(|_| {
            let why = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            Failure::Failed(format!("daemon {name} did not start: {}", why.trim()))
        })?;
        let word = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
        let client = Client::connect(Path::new(&word("control")))?;
        Ok(Host {
            name,
            dir,
            peer: word("peers"),
            process,
            client,
        })
    }

    pub fn name(&self) -> &str {
        self.name
    }

    /// Where its peers reach it.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join("disk.raw")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("disk.sock")
    }

    /// Serves the image, or awaits a disk of `incoming` bytes.
    pub fn add_disk(&mut self, id: &DiskId, queues: u16, incoming: Option<u64>) -> Done {
        let disk = json!({
            "id": id, "path": self.image(), "socket_path": self.socket(), "num_queues": queues,
            "incoming": incoming.is_some(), "size": incoming,
        });
        self.client.call("disk.add", disk).map(drop)
    }

    /// Lets go of a disk that was moved away from here, if one was.
    pub fn forget_disk(&mut self, id: &DiskId) -> Done {
        let list = self.client.call("disk.list", json!({}))?;
        if list["disks"]
            .as_array()
            .is_some_and(|disks| !disks.is_empty())
        {
            self.client.call("disk.remove", json!({ "id": id }))?;
        }
        Ok(())
    }

    /// Copies the disk to `peer`, until both sides have every byte; `each` hears now and then how many
    /// are done, of how many.
    pub fn copy_disk(
        &mut self,
        id: &DiskId,
        peer: &str,
        patience: Duration,
        mut each: impl FnMut(u64, u64) -> Done,
    ) -> Done {
        self.client
            .call("migrate.disk", json!({ "ids": [id], "to": peer }))?;
        let began = Instant::now();
        loop {
            let status = self.client.call("migrate.status", json!({}))?;
            let disk = &status["disks"][0];
            let bytes = |key: &str| disk[key].as_u64().unwrap_or(0);
            each(bytes("bytes_done"), bytes("bytes_total"))?;
            if disk["in_sync"] == true {
                return Ok(());
            }
            let over = matches!(disk["phase"].as_str(), Some("failed" | "cancelled"));
            if over || began.elapsed() > patience {
                return Err(Failure::Failed(format!("the copy did not end: {disk}")));
            }
            std::thread::sleep(POLL);
        }
    }

    /// A switch, and a NIC that is a port of it.
    pub fn add_switch(&mut self, name: &str) -> Done {
        self.client
            .call("switch.add", json!({ "name": name }))
            .map(drop)
    }

    /// Where the NIC is served.
    pub fn nic_socket(&self, id: &str) -> PathBuf {
        self.dir.join(format!("nic-{id}.sock"))
    }

    /// A port of a switch; `any_source` for one that leads to others.
    pub fn add_nic(&mut self, id: &str, switch: &str, mac: &str, any_source: bool) -> Done {
        let nic = json!({
            "id": id, "switch": switch, "socket_path": self.nic_socket(id), "mac": mac,
            "any_source": any_source,
        });
        self.client.call("nic.add", nic).map(drop)
    }

    /// Has the NIC move to `peer` when its rings stop.
    pub fn move_nic(&mut self, id: &str, peer: &str) -> Done {
        self.client
            .call("migrate.nic", json!({ "id": id, "to": peer }))
            .map(drop)
    }

    /// How the NIC's last move from here goes.
    pub fn nic_move(&mut self, id: &str) -> Done<Value> {
        let status = self.client.call("migrate.status", json!({}))?;
        let nics = status["nics"].as_array().into_iter().flatten();
        let mut ours = nics.filter(|nic| nic["id"] == id);
        Ok(ours.next().cloned().unwrap_or_default())
    }

    /// Hands the disk over.
    pub fn release(&mut self, id: &DiskId) -> Done<Value> {
        self.client.call("migrate.release", json!({ "id": id }))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its standard input ends, and with it the daemon.
        drop(self.process.stdin.take());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            if let Ok(Some(_)) = self.process.try_wait() {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
