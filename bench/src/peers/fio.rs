//! Native io_uring, by fio: what a file can do with no server between.
//!
//! Fixed files, fixed buffers, batched submission: the fastest that fio offers.
//! At depth 1 it takes latencies; beyond, its clock is off, as the client's is.
//!
//! Its time on a core is read from outside, as that of the servers: what it says
//! itself leaves out the kernel's workers, who do all the work on tmpfs.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cell::{Backend, Cell, Mix};
use super::meter;
use super::runs::{Cores, Sample};
use super::strangers::Moment;
use crate::error::BenchError;
use crate::sys;

/// Whether fio is installed.
pub fn installed() -> bool {
    let probe = Command::new("fio")
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}

/// One run on a file, on the core that the calling thread is pinned to.
pub fn run(
    file: &Path,
    cell: &Cell,
    span_bytes: u64,
    warm_up: Duration,
    duration: Duration,
    cores: &Cores,
) -> Result<Sample, BenchError> {
    let mut command = Command::new("fio");
    command
        .args(arguments(cell, span_bytes, warm_up, duration))
        .arg(format!("--filename={}", file.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let failed = |source| BenchError::Host {
        what: "to run fio",
        source,
    };
    let mut child = sys::die_with_parent(&mut command).spawn().map_err(failed)?;
    // The caller watches from the client's core; fio has the other.
    super::runs::pin(cores.client)?;
    let readings = watch(&mut child, cores.server).map_err(failed)?;
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text).map_err(failed)?;
    }
    // Notes may stand before the document.
    let from = text.find('{').unwrap_or(0);
    let sample = serde_json::from_str(&text[from..])
        .ok()
        .as_ref()
        .and_then(|json| parse(json, cell))
        .ok_or_else(|| BenchError::Peer {
            peer: "fio".into(),
            said: text.trim().chars().take(400).collect(),
        })?;
    let busy = busy(&readings, duration);
    Ok(Sample {
        cpu_ns: busy.map(|(share, _)| share * 1e9 / sample.iops),
        strangers: busy.map_or(0.0, |(_, strangers)| strangers),
        ..sample
    })
}

/// When, how long it was on a core by then, in nanoseconds, and that core.
type Seen = (Instant, u64, Option<Moment>);

/// Waits for fio to end, with a look at its time on a core now and then. What it
/// prints fits a pipe.
fn watch(child: &mut std::process::Child, core: usize) -> std::io::Result<Vec<Seen>> {
    let mut readings = Vec::new();
    while child.try_wait()?.is_none() {
        let spent_ns = meter::cpu_ns(child.id());
        readings.push((Instant::now(), spent_ns, Moment::now(core, spent_ns)));
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(readings)
}

/// The share of a core that it had, and that others had, in the middle of the measured time, which ends just
/// before the process does.
fn busy(readings: &[Seen], duration: Duration) -> Option<(f64, f64)> {
    let end = readings.last()?.0;
    let at = |share: f64| {
        let wanted = end.checked_sub(duration.mul_f64(share))?;
        readings.iter().find(|r| r.0 >= wanted)
    };
    let (from, to) = (at(0.8)?, at(0.3)?);
    let (wall, cpu) = (to.0 - from.0, to.1.saturating_sub(from.1));
    let strangers = from
        .2
        .zip(to.2)
        .map_or(0.0, |(from, to)| from.strangers_until(&to));
    (!wall.is_zero()).then(|| (cpu as f64 / wall.as_nanos() as f64, strangers))
}

fn arguments(cell: &Cell, span_bytes: u64, warm_up: Duration, duration: Duration) -> Vec<String> {
    let direct = u8::from(cell.backend == Backend::Disk);
    let depth = cell.depth;
    let rw = match cell.mix {
        Mix::Read => "randread",
        Mix::Write => "randwrite",
        Mix::Mixed => "randrw",
    };
    let mut arguments = vec![
        "--name=native".into(),
        // One process, whose threads are all seen.
        "--thread=1".into(),
        "--ioengine=io_uring".into(),
        "--fixedbufs=1".into(),
        "--registerfiles=1".into(),
        "--nonvectored=1".into(),
        "--output-format=json".into(),
        "--time_based=1".into(),
        // The file is in the page cache, and stays there.
        "--invalidate=0".into(),
        "--fadvise_hint=0".into(),
        "--norandommap=1".into(),
        "--randrepeat=0".into(),
        "--group_reporting=1".into(),
        format!("--rw={rw}"),
        format!("--rwmixread={}", cell.mix.read_percent()),
        format!("--bs={}", cell.block_bytes),
        format!("--iodepth={depth}"),
        format!("--size={span_bytes}"),
        format!("--direct={direct}"),
        format!("--ramp_time={}ms", warm_up.as_millis()),
        format!("--runtime={}ms", duration.as_millis()),
    ];
    if depth > 1 {
        arguments.extend([
            "--gtod_reduce=1".into(),
            format!("--iodepth_batch_submit={depth}"),
            "--iodepth_batch_complete_min=1".into(),
            format!("--iodepth_batch_complete_max={depth}"),
        ]);
    } else {
        arguments.extend(["--lat_percentiles=1".into(), "--clat_percentiles=0".into()]);
    }
    arguments
}

fn parse(json: &Value, cell: &Cell) -> Option<Sample> {
    let job = json.get("jobs")?.get(0)?;
    let side = |name: &str| job.get(name)?.get("iops")?.as_f64();
    let iops = side("read")? + side("write")?;
    let side = if cell.mix == Mix::Write {
        "write"
    } else {
        "read"
    };
    let p50_ns = job
        .get(side)
        .and_then(|s| {
            s.get("lat_ns")?
                .get("percentile")?
                .get("50.000000")?
                .as_f64()
        })
        .filter(|_| cell.depth == 1);
    (iops > 0.0).then(|| Sample {
        iops,
        p50_ns,
        errors: job.get("error").and_then(Value::as_u64).unwrap_or(0),
        ..Sample::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_taken_from_where_fio_puts_them() {
        let cell = Cell {
            backend: Backend::Disk,
            mix: Mix::Mixed,
            block_bytes: 4096,
            depth: 1,
            queues: 1,
            disks: 1,
        };
        let json = serde_json::json!({"jobs": [{
            "error": 0,
            "read": {"iops": 7000.0, "lat_ns": {"percentile": {"50.000000": 41000}}},
            "write": {"iops": 3000.0},
        }]});
        let sample = parse(&json, &cell).unwrap();
        assert_eq!(sample.iops, 10_000.0);
        assert_eq!(sample.p50_ns, Some(41_000.0));
        assert!(parse(&serde_json::json!({"jobs": []}), &cell).is_none());
        let line = arguments(&cell, 1 << 20, Duration::ZERO, Duration::from_millis(500));
        assert!(line.contains(&"--direct=1".to_string()));
        assert!(line.contains(&"--runtime=500ms".to_string()));
    }

    #[test]
    fn the_share_of_a_core_is_that_of_the_measured_time() {
        let began = Instant::now();
        // Idle for a second, then half busy for one.
        let reading = |ms: u64| {
            let busy = ms.saturating_sub(1000) * 500_000;
            (began + Duration::from_millis(ms), busy, None)
        };
        let readings: Vec<Seen> = (0..=2000).step_by(5).map(reading).collect();
        let (share, _) = busy(&readings, Duration::from_secs(1)).unwrap();
        assert!((share - 0.5).abs() < 0.01, "{share}");
        assert_eq!(busy(&[], Duration::from_secs(1)), None);
    }
}
