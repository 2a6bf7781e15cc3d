//! What `ferry iostat` is made of: counters since the start of each disk.

use std::sync::Arc;

use ferry_dataplane::clock::now_ns;
use ferry_dataplane::qos::latency::Counted;
use ferry_migration::ids::DiskId;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::daemon::disks::Served;
use crate::error::Done;
use crate::qos::datastore::ms;

impl Daemon {
    /// Of the disks named, or of all.
    pub fn iostat(&self, ids: &[DiskId]) -> Done<Value> {
        let disks: Vec<Arc<Served>> = if ids.is_empty() {
            self.disks().values().cloned().collect()
        } else {
            ids.iter().map(|id| self.disk(id)).collect::<Done<_>>()?
        };
        let lines: Vec<Value> = disks.iter().map(|served| line(served)).collect();
        Ok(json!({ "at_ns": now_ns(), "disks": lines }))
    }
}

fn line(served: &Served) -> Value {
    let disk = served.device.disk();
    let (totals, flow) = (disk.totals(), disk.flow());
    let qos = served.qos().clone();
    let mut line = json!({
        "id": served.config.id,
        "at_ns": now_ns(),
        "reads": totals.reads,
        "writes": totals.writes,
        "other": totals.other,
        "read_bytes": totals.read_bytes,
        "written_bytes": totals.written_bytes,
        "errors": totals.errors,
        "in_flight": flow.in_flight(),
        // A worker that is gone has no queues either.
        "backlog": disk.backlog().unwrap_or(0),
        "shares": qos.shares(),
        "limit_iops": qos.limit_iops,
        "limit_mbps": qos.limit_mbps,
        "reservation": qos.reservation,
        "group": qos.group,
    });
    let controlled = served.controlled();
    let Some(controlled) = controlled.as_ref() else {
        return line;
    };
    let readings = controlled.control.meters().iter().map(|it| it.read());
    line["waiting"] = readings.map(|it| it.held).sum::<u64>().into();
    let latencies = controlled.control.latencies();
    line["davg"] = latency(&latencies.device);
    line["qavg"] = latency(&latencies.throttle);
    line["gavg"] = latency(&latencies.guest);
    if let Some((path, sioc)) = controlled.datastore.home() {
        line["datastore"] = json!(path);
        line["sioc"] = json!(sioc);
    }
    // This host's part of it.
    let window = controlled.datastore.domain.window();
    line["window"] = json!(window.is_finite().then_some(window));
    line
}

/// Since the start; what is between two readings follows from their buckets.
fn latency(counted: &Counted) -> Value {
    let quantile = |part| counted.quantile_ns(part).map(ms);
    json!({
        "count": counted.count(),
        "sum_ns": counted.sum_ns(),
        "mean_ms": counted.mean_ns().map(ms),
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
        "buckets": counted.buckets().collect::<Vec<_>>(),
    })
}
