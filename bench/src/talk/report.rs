//! What came out of a session.

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use super::stream::Kind;

/// The result of `ferry-bench talk call`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where the server was.
    pub to: String,
    /// How long both sides talked.
    pub seconds: f64,
    /// TCP connections that broke or were closed by the wrong end, as either end saw it.
    pub connections_reset: u64,
    /// Streams that carried another byte than was sent, or fewer or more of them than were sent.
    pub mismatches: u64,
    /// Connections that did not come to their end in time.
    pub stuck: u64,
    /// The longest time in which one of the connections brought nothing that was due, in
    /// milliseconds.
    pub tcp_longest_silence_ms: f64,
    /// The caller's side.
    pub here: SideReport,
    /// The server's side; nothing when it could not be asked.
    pub there: Option<SideReport>,
    /// Echo requests.
    pub ping: Option<PingReport>,
    /// Whether a lost datagram or echo counts as a failure.
    #[serde(skip)]
    pub(super) lossless: bool,
}

/// What one side saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SideReport {
    /// Its ends of the connections, by number.
    pub tcp: Vec<ConnectionReport>,
    /// Its datagrams.
    pub udp: Option<UdpReport>,
}

/// One end of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectionReport {
    /// Which one.
    pub number: u16,
    /// What it was for.
    pub kind: Kind,
    /// Bytes that this end sent.
    pub sent_bytes: u64,
    /// Bytes that it received, all of them right but for a mismatch.
    pub received_bytes: u64,
    /// Questions answered.
    pub exchanges: u64,
    /// The longest time without a byte in milliseconds, at an end that is owed some; of a chatty
    /// one that is the asking end.
    pub longest_silence_ms: Option<f64>,
    /// It broke.
    pub reset: bool,
    /// It brought another byte than was sent.
    pub mismatch: bool,
    /// It did not come to its end.
    pub stuck: bool,
    /// What was wrong, in words.
    pub fault: Option<String>,
}

/// Datagrams of one side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UdpReport {
    /// Sent by this side.
    pub sent: u64,
    /// Not taken by its kernel, and so not sent.
    pub refused: u64,
    /// Received, and not as they were sent.
    pub corrupted: u64,
    /// Received of the other side's.
    pub received: Numbers,
}

/// What came of a row of numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Numbers {
    /// How many were sent.
    pub sent: u64,
    /// Different ones that came.
    pub received: u64,
    /// That never came.
    pub lost: u64,
    /// That came again.
    pub doubled: u64,
    /// That came after a higher one.
    pub reordered: u64,
    /// The longest time between two, in milliseconds.
    pub longest_gap_ms: f64,
    /// Those that never came, from and to; the first 256 of such ranges.
    pub missing: Vec<[u64; 2]>,
    /// Those that came again; the first 256.
    pub twice: Vec<u64>,
}

/// Echo requests and answers.
#[derive(Debug, Clone, Serialize)]
pub struct PingReport {
    /// What came of them.
    #[serde(flatten)]
    pub answers: Numbers,
    /// Not taken by the kernel, and so not sent.
    pub refused: u64,
    /// The median time to an answer, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Report {
    /// Sums up what both sides say.
    pub(super) fn judge(mut self) -> Self {
        let none = Vec::new();
        let there = self.there.as_ref().map_or(&none, |side| &side.tcp);
        let all = || self.here.tcp.iter().chain(there);
        let either = |is: fn(&ConnectionReport) -> bool| {
            let pairs = self.here.tcp.iter().enumerate();
            let bad = pairs.filter(|(i, it)| is(it) || there.get(*i).is_some_and(is));
            bad.count() as u64
        };
        // What one end sent must be what the other received, once both have come to the end.
        let uneven = |(a, b): &(&ConnectionReport, &ConnectionReport)| {
            let whole = a.fault.is_none() && b.fault.is_none();
            whole && (a.sent_bytes, a.received_bytes) != (b.received_bytes, b.sent_bytes)
        };
        let uneven = self.here.tcp.iter().zip(there).filter(uneven).count() as u64;
        let silences = all().filter_map(|it| it.longest_silence_ms);
        let silence = silences.fold(0.0, f64::max);
        let (reset, stuck) = (either(|it| it.reset), either(|it| it.stuck));
        let mismatches = either(|it| it.mismatch) + uneven;
        self.connections_reset = reset;
        self.mismatches = mismatches;
        self.stuck = stuck;
        self.tcp_longest_silence_ms = silence;
        self
    }

    fn numbers(&self) -> impl Iterator<Item = (&'static str, &Numbers)> {
        let there = self.there.as_ref().and_then(|side| side.udp.as_ref());
        let here = self.here.udp.as_ref();
        [
            there.map(|udp| ("UDP sent", &udp.received)),
            here.map(|udp| ("UDP received", &udp.received)),
            self.ping.as_ref().map(|ping| ("ping", &ping.answers)),
        ]
        .into_iter()
        .flatten()
    }

    /// No connection broke, no byte was another, nothing came twice; nothing was lost, if that
    /// matters.
    pub fn is_clean(&self) -> bool {
        let sides = [Some(&self.here), self.there.as_ref()];
        let udp = sides.into_iter().flatten().filter_map(|it| it.udp.as_ref());
        let corrupted: u64 = udp.map(|udp| udp.corrupted).sum();
        let rows = self.numbers().map(|(_, it)| {
            let lost = if self.lossless { it.lost } else { 0 };
            it.doubled + lost
        });
        self.there.is_some()
            && self.connections_reset + self.mismatches + self.stuck + corrupted == 0
            && rows.sum::<u64>() == 0
    }

    /// As tables for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} for {:.1} s: {} connections, {} reset, {} mismatches, {} stuck, longest silence {:.1} ms\n",
            self.to,
            self.seconds,
            self.here.tcp.len(),
            self.connections_reset,
            self.mismatches,
            self.stuck,
            self.tcp_longest_silence_ms
        );
        if self.there.is_none() {
            text.push_str("the other side could not be asked what it received\n");
        }
        text.push_str(&self.tcp_table());
        text.push_str("\n\n");
        text.push_str(&self.numbers_table());
        let ends = [Some(&self.here), self.there.as_ref()];
        for (end, name) in ends.into_iter().zip(["here", "there"]) {
            let tcp = end.into_iter().flat_map(|side| &side.tcp);
            for bad in tcp.filter_map(|it| Some((it.number, it.fault.as_ref()?))) {
                text.push_str(&format!("\nconnection {} {name}: {}", bad.0, bad.1));
            }
        }
        if let Some(ping) = &self.ping {
            text.push_str(&format!(
                "\nping: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms",
                ping.p50_ms, ping.p99_ms, ping.max_ms
            ));
        }
        text
    }

    fn tcp_table(&self) -> String {
        let mut table = table(&[
            "TCP",
            "connections",
            "sent MiB",
            "received MiB",
            "exchanges",
        ]);
        for (kind, name) in [
            (Kind::Up, "sending"),
            (Kind::Down, "receiving"),
            (Kind::Chat, "chatty"),
        ] {
            let of = || self.here.tcp.iter().filter(move |it| it.kind == kind);
            let mib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1 << 20));
            table.add_row([
                name.to_owned(),
                of().count().to_string(),
                mib(of().map(|it| it.sent_bytes).sum()),
                mib(of().map(|it| it.received_bytes).sum()),
                of().map(|it| it.exchanges).sum::<u64>().to_string(),
            ]);
        }
        trimmed(table)
    }

    fn numbers_table(&self) -> String {
        let names = ["", "sent", "came", "lost", "doubled", "reordered", "gap ms"];
        let mut table = table(&names);
        for (name, it) in self.numbers() {
            let counts = [it.sent, it.received, it.lost, it.doubled, it.reordered];
            let mut row = vec![name.to_owned()];
            row.extend(counts.map(|count| count.to_string()));
            row.push(format!("{:.1}", it.longest_gap_ms));
            table.add_row(row);
        }
        trimmed(table)
    }
}

fn table(names: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.add_row(names);
    table
}

fn trimmed(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}
