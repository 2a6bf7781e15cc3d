//! Where a disk's queues are, and how they move.

use std::sync::atomic::Ordering;

use super::{Control, Disk};
use crate::lifecycle::LifecycleError;
use crate::limits::QUEUES_PER_WORKER;

/// A running queue, or all of a disk that must be together, and what they asked of their worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The queue; `None` for all.
    pub queue: Option<usize>,
    /// The worker it is on.
    pub worker: usize,
    /// See [`QueueLoad::units`].
    pub units: u64,
}

impl Disk {
    /// The running queues, and where they are. Nothing while control is at work on the disk, or while
    /// it is mirrored and stays where it is.
    pub fn placed(&self) -> Vec<Placed> {
        let Ok(control) = self.control.try_lock() else {
            return Vec::new();
        };
        if control.mirrored {
            return Vec::new();
        }
        let running = control.queues.iter().enumerate();
        let queues = running.filter_map(|(index, place)| {
            Some(Placed {
                queue: Some(index),
                worker: (*place)?.worker,
                units: self.loads[index].units(),
            })
        });
        match control.exclusive {
            None => queues.collect(),
            Some(worker) => {
                let units = queues.map(|placed| placed.units).sum();
                vec![Placed {
                    queue: None,
                    worker,
                    units,
                }]
            }
        }
    }

    /// Moves a queue to a worker, where it stays, or all queues of a disk that must be together. It is
    /// drained meanwhile, so its guest waits for what is in flight. False when that is not what can
    /// be moved now.
    pub fn move_to(&self, queue: Option<usize>, worker: usize) -> Result<bool, LifecycleError> {
        let mut control = self.control();
        let count = control.queues.len() as u64;
        let full = self.workers[worker].totals().queues + count > QUEUES_PER_WORKER as u64;
        if full || control.mirrored || control.exclusive.is_some() != queue.is_none() {
            return Ok(false);
        }
        match queue {
            None => {
                control.exclusive = Some(worker);
                self.home.store(worker, Ordering::Release);
                self.carry_over(&mut control, |_| true)?;
            }
            Some(index) => {
                control.chosen[index] = worker;
                self.carry_over(&mut control, |at| at == index)?;
            }
        }
        Ok(true)
    }

    /// Takes the chosen queues from their workers, all of them before any goes to its new one: no
    /// two workers serve parts of one disk that must be together.
    fn carry_over(
        &self,
        control: &mut Control,
        chosen: impl Fn(usize) -> bool,
    ) -> Result<(), LifecycleError> {
        let mut carried = Vec::new();
        for index in (0..control.queues.len()).filter(|&index| chosen(index)) {
            if let Some(place) = control.queues[index].take() {
                carried.push((index, self.displace(place)?));
            }
        }
        for (index, queue) in carried {
            control.queues[index] = Some(self.place(control, index, queue, true)?);
        }
        Ok(())
    }
}
