//! Networks of their own: namespaces that a process holds, so that nothing of
//! them is left when it ends, however it ends.
//!
//! ```text
//!    peer 10.7.0.1                                 the segment, one bridge
//!       |                                              |
//!   ----+-------------------+--------------------------+---  10.7.0.0/24
//!                           | up0                      | up0
//!                     +-----+------+             +-----+------+
//!             host A  | bridge br0 |     host B  | bridge br0 |
//!                     +-----+------+             +-----+------+
//!                           | taps                     | taps
//!                    10.9.0.1 | mig0          10.9.0.2 | mig0
//!   --------------------------+------------------------+---  10.9.0.0/24
//!                      between the hosts alone, and may be cut
//! ```

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::failure::Context;
use super::process::find_program;
use super::{Check, Failure};
use crate::ensure;

/// The peer's address, in the segment.
pub const PEER: &str = "10.7.0.1";
/// The address that is the guest's.
pub const GUEST: &str = "10.7.0.2";
/// The guest's MAC.
pub const GUEST_MAC: &str = "52:54:00:07:00:02";
/// The hosts' addresses in the network between them.
pub const HOSTS: [&str; 2] = ["10.9.0.1", "10.9.0.2"];

/// One network, and the process that holds it.
pub struct Network {
    holder: Child,
    /// What a program is started by, to be in it.
    enter: Vec<String>,
}

/// Why there may be no networks of one's own here.
pub fn missing() -> Option<String> {
    for program in ["unshare", "nsenter", "setpriv", "ip", "tcpdump", "ethtool"] {
        if find_program(program).is_none() {
            return Some(format!("{program} is missing (tests/setup installs it)"));
        }
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return Some("there is no /dev/net/tun".to_owned());
    }
    let tried = Network::new().and_then(|network| network.ip("link add br0 type bridge"));
    let Failure(words) = tried.err()?;
    Some(format!("no networks of one's own: {words}"))
}

impl Network {
    /// A network of root's, or one whose user is root there.
    pub fn new() -> Check<Self> {
        let of_root = Self::held_by(&[], &["--net"], &["--net"]);
        of_root.or_else(|_| {
            let unshare = ["--map-root-user", "--net"];
            Self::held_by(
                &[],
                &unshare,
                &["--user", "--preserve-credentials", "--net"],
            )
        })
    }

    /// Another one, of the same user.
    pub fn beside(&self) -> Check<Self> {
        let nsenter: Vec<&str> = self.enter[3..].iter().map(String::as_str).collect();
        Self::held_by(&self.enter, &["--net"], &nsenter[..nsenter.len() - 1])
    }

    fn held_by(enter: &[String], unshare: &[&str], nsenter: &[&str]) -> Check<Self> {
        let own = ["setpriv", "--pdeathsig", "KILL", "--", "unshare"];
        let hold = ["--", "sh", "-c", "echo up; exec cat"];
        let words = enter.iter().map(String::as_str).chain(own);
        let words: Vec<&str> = words.chain(unshare.iter().copied()).chain(hold).collect();
        // It ends when its input does, which is when this process ends.
        let mut holder = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context(|| "unshare".to_owned())?;
        let mut line = String::new();
        if let Some(out) = holder.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        if line != "up\n" {
            let output = holder.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Failure(said));
        }
        let mut enter = vec!["nsenter".to_owned(), "-t".to_owned()];
        enter.push(holder.id().to_string());
        enter.extend(nsenter.iter().map(ToString::to_string));
        enter.push("--".to_owned());
        Ok(Self { holder, enter })
    }

    /// What a program is started by, to be in this network.
    pub fn enter(&self) -> &[String] {
        &self.enter
    }

    /// Whether it was made without a user namespace.
    pub fn is_of_root(&self) -> bool {
        !self.enter.iter().any(|word| word == "--user")
    }

    /// Runs a program in it that must succeed; what it printed.
    pub fn run(&self, words: &str) -> Check<String> {
        let output = Command::new(&self.enter[0])
            .args(&self.enter[1..])
            .args(words.split(' '))
            .stdin(Stdio::null())
            .output()
            .context(|| words.to_owned())?;
        let err = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words}: {err}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` in it.
    pub fn ip(&self, words: &str) -> Check {
        self.run(&format!("ip {words}")).map(drop)
    }

    /// A bridge that forwards from the start, and knows no groups.
    fn bridge(&self, name: &str) -> Check {
        self.ip(&format!(
            "link add {name} type bridge mcast_snooping 0 forward_delay 0"
        ))?;
        self.ip(&format!("link set {name} up"))
    }

    /// A wire from a port `port` of `bridge` to `name` in `there`.
    fn wire(&self, bridge: &str, port: &str, there: &Network, name: &str) -> Check {
        let pid = there.holder.id();
        self.ip(&format!(
            "link add {port} type veth peer name {name} netns {pid}"
        ))?;
        self.ip(&format!("link set {port} master {bridge} up"))?;
        there.ip(&format!("link set {name} up"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The networks of two hosts and a peer.
pub struct Segment {
    /// The hosts A and B.
    pub hosts: [Network; 2],
    /// Where the guest's peer is.
    pub peer: Network,
    /// The bridges between them.
    between: Network,
}

impl Segment {
    /// Makes all of it.
    pub fn new() -> Check<Self> {
        let between = Network::new()?;
        let [a, b, peer] = [between.beside()?, between.beside()?, between.beside()?];
        between.bridge("seg0")?;
        between.bridge("mig0")?;
        between.wire("seg0", "peer", &peer, "eth0")?;
        peer.ip("link set lo up")?;
        peer.ip(&format!("address add {PEER}/24 dev eth0"))?;
        for (host, (name, address)) in [&a, &b].into_iter().zip(["a", "b"].iter().zip(HOSTS)) {
            host.ip("link set lo up")?;
            host.bridge("br0")?;
            between.wire("seg0", &format!("up-{name}"), host, "up0")?;
            host.ip("link set up0 master br0")?;
            between.wire("mig0", &format!("mig-{name}"), host, "mig0")?;
            host.ip(&format!("address add {address}/24 dev mig0"))?;
        }
        Ok(Self {
            hosts: [a, b],
            peer,
            between,
        })
    }

    /// Lets nothing pass to the peer that is not a whole packet with its
    /// checksum: it checks then what it gets.
    pub fn finish_packets(&self) -> Check {
        self.between
            .run("ethtool -K peer tx off tso off gso off")
            .map(drop)
    }

    /// Cuts the link between the hosts; their guests' traffic goes on.
    pub fn cut(&self) -> Check {
        self.between.ip("link set mig-b down")
    }

    /// Mends it.
    pub fn mend(&self) -> Check {
        self.between.ip("link set mig-b up")
    }
}
