//! `ferry-bench net`.

use std::path::PathBuf;
use std::time::Duration;

use ferry_bench::error::BenchError;
use ferry_bench::net::{self, NetPlan};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The server's vhost-user socket to send at
    #[arg(long, value_name = "SOCKET")]
    tx: PathBuf,
    /// The socket where the frames come out; without it they are only sent
    #[arg(long, value_name = "SOCKET")]
    rx: Option<PathBuf>,
    /// Send from --rx to --tx at the same time
    #[arg(long, requires = "rx")]
    bidirectional: bool,
    /// Bytes of a frame from the first MAC to the end of the payload: 64 to 9000,
    /// with --tso up to 65535
    #[arg(long, default_value_t = 64, value_name = "BYTES")]
    size: usize,
    /// How long to run
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    seconds: f64,
    /// Frames a second and direction; as many as the rings take unless given
    #[arg(long, value_name = "PPS")]
    rate: Option<u64>,
    /// Most frames handed over at once
    #[arg(long, default_value_t = 32)]
    burst: usize,
    /// Most frames of a direction sent and not yet received
    #[arg(long, value_name = "N", requires = "rx")]
    outstanding: Option<usize>,
    /// Descriptors of a ring
    #[arg(long, default_value_t = 1024)]
    queue_size: u16,
    /// Pairs of queues of each port; each sends a flow of its own
    #[arg(long, default_value_t = 1)]
    queue_pairs: u16,
    /// 802.1Q tag of the frames
    #[arg(long, value_name = "ID")]
    vlan: Option<u16>,
    /// TCPv4 frames, to be cut into segments of 1448 bytes by whoever has to
    #[arg(long)]
    tso: bool,
    /// One buffer for a frame, however large
    #[arg(long)]
    no_mrg_rxbuf: bool,
    /// No indirect tables; otherwise frames over a page use them, if the server takes them
    #[arg(long)]
    no_indirect: bool,
    /// Kicks by flag, not by index
    #[arg(long)]
    no_event_idx: bool,
    /// Compare every byte of the payload, not only its stamps
    #[arg(long, requires = "rx")]
    every_byte: bool,
    /// A lost frame is a failure (exit code 1), as are frames that came twice, out of
    /// order or changed
    #[arg(long, requires = "rx")]
    lossless: bool,
    /// 2: a thread for each direction of --bidirectional
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=2))]
    threads: u16,
    /// Core to run on; repeat for a second thread
    #[arg(long = "core", value_name = "N")]
    cores: Vec<usize>,
    /// Give up when the first frames do not arrive for this long
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    wait: f64,
    /// Give up when the server takes no frame for this long
    #[arg(long, default_value_t = 10, value_name = "S")]
    timeout: u64,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

impl Args {
    fn plan(self) -> Result<NetPlan, BenchError> {
        let wait = Duration::try_from_secs_f64(self.wait)
            .map_err(|_| BenchError::Usage(format!("--wait {} is not a time; use 5", self.wait)))?;
        Ok(NetPlan {
            tx: self.tx,
            rx: self.rx,
            bidirectional: self.bidirectional,
            bytes: self.size,
            duration: super::seconds(self.seconds)?,
            rate_pps: self.rate,
            burst: self.burst,
            outstanding: self.outstanding,
            queue_size: self.queue_size,
            queue_pairs: self.queue_pairs,
            vlan: self.vlan,
            tso: self.tso,
            mrg_rxbuf: !self.no_mrg_rxbuf,
            indirect: !self.no_indirect,
            event_idx: !self.no_event_idx,
            every_byte: self.every_byte,
            threads: self.threads,
            cores: self.cores,
            wait,
            timeout: Duration::from_secs(self.timeout),
            lossless: self.lossless,
        })
    }
}

pub(super) fn run(args: Args) -> Result<bool, BenchError> {
    let json = args.json;
    let plan = args.plan()?;
    plan.check()?;
    let report = net::run(&plan)?;
    super::show(json, &report, |report| report.table())?;
    Ok(report.is_clean())
}
