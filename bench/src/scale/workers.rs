//! What a second worker brings: two queues of a memory disk, read in pieces so large that the
//! server's copying is nearly all of the work.

use std::time::Duration;

use serde::Serialize;

use super::ScalePlan;
use super::idle::load;
use super::server::{Server, Shape};
use crate::error::BenchError;
use crate::spread::Spread;

const QUEUES: u16 = 2;
const DEPTH: u16 = 8;
const BLOCK_BYTES: u32 = 128 << 10;

/// Two queues on one worker, and on two.
#[derive(Debug, Serialize)]
pub struct Workers {
    /// Alternations.
    pub rounds: usize,
    /// 128 KiB reads a second with one worker.
    pub one_iops: Spread,
    /// With two.
    pub two_iops: Spread,
    /// The second by the first, by pairs.
    pub ratio: Spread,
    /// Whether the machine has cores for two workers and the client's two threads.
    pub cores_suffice: bool,
}

pub(super) fn measure(plan: &ScalePlan, cores: usize) -> Result<Workers, BenchError> {
    let shape = |workers| Shape {
        workers,
        disks: 1,
        disk: "memory:256M",
        queues: QUEUES,
        ..Shape::default()
    };
    let servers = [
        Server::start(&plan.server, &shape(1))?,
        Server::start(&plan.server, &shape(2))?,
    ];
    let mut iops = [Vec::new(), Vec::new()];
    for round in 0..=plan.rounds {
        for turn in 0..2 {
            let side = (round + turn) % 2;
            let socket = servers[side].socket(0);
            // The client sleeps while it waits, and leaves the cores to the workers.
            let shape = (DEPTH, QUEUES, BLOCK_BYTES);
            let report = load(socket, plan.duration, shape, Duration::ZERO)?;
            if round > 0 {
                iops[side].push(report.iops); // the first round touches the memory
            }
        }
    }
    let pairs = iops[0].iter().zip(&iops[1]);
    let ratio = Spread::of_some(pairs.map(|(one, two)| two / one).collect());
    let [one_iops, two_iops] = iops.map(Spread::of_some);
    Ok(Workers {
        rounds: plan.rounds,
        one_iops,
        two_iops,
        ratio,
        cores_suffice: cores >= 4,
    })
}

impl Workers {
    pub(super) fn line(&self) -> String {
        let cores = if self.cores_suffice {
            ""
        } else {
            "; the workers share their cores with the client here, which hides part of the gain"
        };
        format!(
            "two queues, 128 KiB reads from memory: {} IOPS on one worker, {} on two: {} times{cores}",
            self.one_iops, self.two_iops, self.ratio
        )
    }
}
