//! What is between two readings of the daemon's counters.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::MB;

/// A line for each disk of the later reading.
pub fn lines(before: &Value, now: &Value) -> Value {
    let disks = now["disks"].as_array().into_iter().flatten().map(|disk| {
        let was = before["disks"].as_array().into_iter().flatten();
        let was = was.into_iter().find(|it| it["id"] == disk["id"]);
        line(was.unwrap_or(&Value::Null), disk)
    });
    let disks: Vec<Value> = disks.collect();
    json!({ "disks": disks })
}

fn count(line: &Value, key: &str) -> u64 {
    line[key].as_u64().unwrap_or(0)
}

/// Of a disk that was added meanwhile there is no earlier reading, and its counters began at zero.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn line(was: &Value, disk: &Value) -> Value {
    let passed = |key: &str| match count(disk, key).checked_sub(count(was, key)) {
        Some(passed) => passed,
        // Removed and added again under its name.
        None => count(disk, key),
    };
    let ns = passed("at_ns");
    let seconds = if was.is_null() {
        f64::NAN
    } else {
        ns as f64 / 1e9
    };
    let a_second = |number: u64| number as f64 / seconds;
    let mut line = json!({
        "id": disk["id"],
        "seconds": seconds,
        "iops": a_second(passed("reads") + passed("writes") + passed("other")),
        "reads_per_second": a_second(passed("reads")),
        "writes_per_second": a_second(passed("writes")),
        "mbps": a_second(passed("read_bytes") + passed("written_bytes")) / MB as f64,
        "errors": passed("errors"),
    });
    for key in ["davg", "qavg", "gavg"] {
        line[key] = latency(&was[key], &disk[key]);
    }
    let as_they_are = [
        "in_flight",
        "waiting",
        "backlog",
        "datastore",
        "sioc",
        "window",
        "shares",
        "limit_iops",
        "limit_mbps",
        "reservation",
        "group",
    ];
    for key in as_they_are {
        line[key] = disk[key].clone();
    }
    line
}

type Buckets = BTreeMap<u64, u32>;

fn buckets(latency: &Value) -> Buckets {
    let pairs = latency["buckets"].as_array().into_iter().flatten();
    pairs
        .filter_map(|pair| {
            let count = u32::try_from(pair[1].as_u64()?).ok()?;
            Some((pair[0].as_u64()?, count))
        })
        .collect()
}

/// Counts wrap around, so that differences are right and what they are of is not asked.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn latency(was: &Value, now: &Value) -> Value {
    let (earlier, mut counts) = (buckets(was), buckets(now));
    for (bucket, was) in earlier {
        let count = counts.entry(bucket).or_default();
        *count = count.wrapping_sub(was);
    }
    let total: u64 = counts.values().map(|&count| u64::from(count)).sum();
    let sum_ns = count(now, "sum_ns").wrapping_sub(count(was, "sum_ns"));
    let mean_ms = (total > 0).then(|| sum_ns as f64 / 1e6 / total as f64);
    json!({
        "count": total,
        "mean_ms": mean_ms,
        "p50_ms": quantile_ms(&counts, total, 50),
        "p99_ms": quantile_ms(&counts, total, 99),
    })
}

/// The latency that so many in a hundred did not exceed.
fn quantile_ms(counts: &Buckets, total: u64, percent: u64) -> Option<f64> {
    let rank = (total * percent).div_ceil(100).max(1);
    let mut seen = 0;
    let found = counts.iter().find(|(_, count)| {
        seen += u64::from(**count);
        seen >= rank
    });
    found.map(|(&ns, _)| crate::qos::datastore::ms(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_two_readings() {
        let reading = |at_ns: u64, reads: u64, davg: Value| {
            json!({ "disks": [{
                "id": "d", "at_ns": at_ns, "reads": reads, "read_bytes": reads * 4096, "davg": davg,
                "window": 4.5,
            }]})
        };
        let before = reading(
            1_000_000_000,
            100,
            json!({ "sum_ns": 100_000_000, "buckets": [[1_000_000, 100]] }),
        );
        let now = reading(
            3_000_000_000,
            300,
            json!({ "sum_ns": 790_000_000, "buckets": [[1_000_000, 110], [3_600_000, 190]] }),
        );
        let line = lines(&before, &now)["disks"][0].clone();
        assert_eq!(line["iops"], 100.0);
        assert_eq!(line["window"], 4.5);
        let davg = &line["davg"];
        assert_eq!(davg["count"], 200);
        assert_eq!(davg["mean_ms"], 3.45);
        assert_eq!(
            (&davg["p50_ms"], &davg["p99_ms"]),
            (&json!(3.6), &json!(3.6))
        );
        assert_eq!(line["gavg"]["mean_ms"], Value::Null);
    }

    #[test]
    fn a_disk_that_has_just_come_has_no_rate_yet() {
        let now = json!({ "disks": [{ "id": "d", "at_ns": 5, "reads": 7 }] });
        let line = lines(&json!({ "disks": [] }), &now)["disks"][0].clone();
        assert_eq!(line["iops"], Value::Null);
    }
}
