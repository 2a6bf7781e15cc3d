//! A testpmd that passes frames around, told what to do by its prompt.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{BURST, MACS, arguments, command};
use crate::error::BenchError;
use crate::peers::runs::Cores;
use crate::sys;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// What it prints when it has stopped, and when it was told to answer.
const DONE: &str = "Done.";
const RECEIVED: &str = "Rx-pps:";

/// A running client with two ports.
pub(super) struct Testpmd {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// What it said last, for a message.
    last: String,
    bursts: u16,
}

impl Testpmd {
    /// Attaches to two sockets, for frames of so many bytes in rings of so many descriptors.
    pub fn attach(
        name: &str,
        sockets: &[PathBuf],
        (bytes, ring): (usize, u16),
        dir: &Path,
        cores: &Cores,
    ) -> Result<Testpmd, BenchError> {
        let mut command = command(dir);
        command.args(arguments(name, cores.client));
        for (at, socket) in sockets.iter().enumerate() {
            let (socket, mac) = (socket.display(), MACS[at]);
            command.arg("--vdev").arg(format!(
                "net_virtio_user{at},path={socket},queue_size={ring},mac={mac}"
            ));
        }
        command.args(["--", "--interactive", "--forward-mode=io"]);
        command.arg(format!("--txpkts={bytes}"));
        command.args(["--total-num-mbufs=16384", &format!("--burst={BURST}")]);
        command.args([format!("--rxd={ring}"), format!("--txd={ring}")]);
        for (at, mac) in MACS.iter().rev().enumerate() {
            command.arg(format!("--eth-peer={at},{mac}"));
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let failed = |source| BenchError::Host {
            what: "to run testpmd",
            source,
        };
        let mut child = sys::die_with_parent(&mut command).spawn().map_err(failed)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let (to, lines) = channel();
        // It ends with the output, or when nobody listens.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        let mut client = Testpmd {
            child,
            input,
            lines,
            last: String::new(),
            bursts: ring / 2 / BURST,
        };
        // It answers once its ports are there.
        client.rate()?;
        Ok(client)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Puts the frames in.
    pub fn start(&mut self) -> Result<(), BenchError> {
        let bursts = self.bursts;
        self.say(&format!("start tx_first {bursts}"))
    }

    /// Frames a second that both ports have received since this was asked last.
    pub fn rate(&mut self) -> Result<f64, BenchError> {
        self.say("show port stats all")?;
        let mut total = 0.0;
        for _ in MACS {
            let line = self.await_line(RECEIVED)?;
            let number = line.split_whitespace().nth(1).map(str::parse::<f64>);
            let Some(Ok(number)) = number else {
                return Err(self.failed());
            };
            total += number;
        }
        Ok(total)
    }

    /// Has it pass on no more.
    pub fn stop(&mut self) -> Result<(), BenchError> {
        self.say("stop")?;
        self.await_line(DONE).map(drop)
    }

    fn say(&mut self, words: &str) -> Result<(), BenchError> {
        let said = writeln!(self.input, "{words}").and_then(|()| self.input.flush());
        said.map_err(|_| self.failed())
    }

    fn await_line(&mut self, part: &str) -> Result<String, BenchError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(part) => return Ok(line),
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => self.last = line,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(self.failed());
                }
            }
        }
    }

    fn failed(&self) -> BenchError {
        BenchError::Peer {
            peer: "testpmd as a client".into(),
            said: self.last.clone(),
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(3);
        // Whether or not it takes its leave.
        let _ = self.say("quit");
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
