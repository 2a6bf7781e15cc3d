//! Counters of a port. As with those of disks ([`crate::metrics`]) each set has one writer and cache
//! lines of its own; readers add sets up.

use std::sync::atomic::{AtomicU64, Ordering};

use super::header::FrameError;
use crate::metrics::add;

/// Why a frame went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The receiver has no buffers for it.
    NoBuffers,
    /// It came from an address or a VLAN that its port may not use.
    Spoofed,
    /// Its header does not fit it.
    Malformed,
    /// The port's rate is used up.
    Limited,
    /// It is longer than the port, or its buffers, can take.
    TooLarge,
    /// The link is down, or nobody is there to receive.
    NoLink,
    /// The receiver has asked not to be given such.
    Filtered,
}

const CAUSES: usize = 7;

impl From<FrameError> for Cause {
    fn from(error: FrameError) -> Cause {
        match error {
            FrameError::TooLong | FrameError::NotInSoftware => Cause::TooLarge,
            _ => Cause::Malformed,
        }
    }
}

/// What one worker did for one port. Directions are the guest's: it receives and it sends.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PortCounters {
    rx_frames: AtomicU64,
    rx_bytes: AtomicU64,
    tx_frames: AtomicU64,
    tx_bytes: AtomicU64,
    dropped: [AtomicU64; CAUSES],
    capture_lost: AtomicU64,
    broken_queues: AtomicU64,
}

/// A reading of [`PortCounters`], or a sum of several.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PortTotals {
    /// Frames that the guest received.
    pub rx_frames: u64,
    /// Bytes of them, without virtio's header.
    pub rx_bytes: u64,
    /// Frames that the guest sent and the switch took.
    pub tx_frames: u64,
    /// Bytes of them, without virtio's header.
    pub tx_bytes: u64,
    /// Frames dropped as [`Cause::NoBuffers`].
    pub no_buffers: u64,
    /// Frames dropped as [`Cause::Spoofed`].
    pub spoofed: u64,
    /// Frames dropped as [`Cause::Malformed`].
    pub malformed: u64,
    /// Frames dropped as [`Cause::Limited`].
    pub limited: u64,
    /// Frames dropped as [`Cause::TooLarge`].
    pub too_large: u64,
    /// Frames dropped as [`Cause::NoLink`].
    pub no_link: u64,
    /// Frames kept from the guest as [`Cause::Filtered`]: it asked for that.
    pub filtered: u64,
    /// Frames that a capture missed, because it was full. They were not dropped.
    pub capture_lost: u64,
    /// Queues that broke their rules, and are not served until they are started anew.
    pub broken_queues: u64,
}

impl PortTotals {
    /// Adds what was counted between two readings.
    pub fn add_since(&mut self, before: &PortTotals, now: &PortTotals) {
        let add = |to: &mut u64, before: u64, now: u64| {
            *to = to.saturating_add(now.saturating_sub(before));
        };
        add(&mut self.rx_frames, before.rx_frames, now.rx_frames);
        add(&mut self.rx_bytes, before.rx_bytes, now.rx_bytes);
        add(&mut self.tx_frames, before.tx_frames, now.tx_frames);
        add(&mut self.tx_bytes, before.tx_bytes, now.tx_bytes);
        add(&mut self.no_buffers, before.no_buffers, now.no_buffers);
        add(&mut self.spoofed, before.spoofed, now.spoofed);
        add(&mut self.malformed, before.malformed, now.malformed);
        add(&mut self.limited, before.limited, now.limited);
        add(&mut self.too_large, before.too_large, now.too_large);
        add(&mut self.no_link, before.no_link, now.no_link);
        add(&mut self.filtered, before.filtered, now.filtered);
        let (lost, broke) = (before.capture_lost, before.broken_queues);
        add(&mut self.capture_lost, lost, now.capture_lost);
        add(&mut self.broken_queues, broke, now.broken_queues);
    }
}

impl PortCounters {
    /// The guest received so many frames, of so many bytes together.
    pub fn received(&self, frames: u64, bytes: u64) {
        add(&self.rx_frames, frames);
        add(&self.rx_bytes, bytes);
    }

    /// The guest sent so many frames, of so many bytes together.
    pub fn sent(&self, frames: u64, bytes: u64) {
        add(&self.tx_frames, frames);
        add(&self.tx_bytes, bytes);
    }

    /// So many frames were dropped.
    pub fn dropped(&self, cause: Cause, frames: u64) {
        add(&self.dropped[cause as usize], frames);
    }

    /// A capture missed so many frames.
    pub fn capture_lost(&self, frames: u64) {
        add(&self.capture_lost, frames);
    }

    /// A queue broke its rules.
    pub fn queue_broke(&self) {
        add(&self.broken_queues, 1);
    }

    /// Adds this set's counts to `totals`.
    pub fn add_to(&self, totals: &mut PortTotals) {
        let dropped = |cause: Cause| self.dropped[cause as usize].load(Ordering::Relaxed);
        totals.rx_frames += self.rx_frames.load(Ordering::Relaxed);
        totals.rx_bytes += self.rx_bytes.load(Ordering::Relaxed);
        totals.tx_frames += self.tx_frames.load(Ordering::Relaxed);
        totals.tx_bytes += self.tx_bytes.load(Ordering::Relaxed);
        totals.no_buffers += dropped(Cause::NoBuffers);
        totals.spoofed += dropped(Cause::Spoofed);
        totals.malformed += dropped(Cause::Malformed);
        totals.limited += dropped(Cause::Limited);
        totals.too_large += dropped(Cause::TooLarge);
        totals.no_link += dropped(Cause::NoLink);
        totals.filtered += dropped(Cause::Filtered);
        totals.broken_queues += self.broken_queues.load(Ordering::Relaxed);
        totals.capture_lost += self.capture_lost.load(Ordering::Relaxed);
    }

    /// A reading of this set alone.
    pub fn totals(&self) -> PortTotals {
        let mut totals = PortTotals::default();
        self.add_to(&mut totals);
        totals
    }
}

#[cfg(test)]
mod tests;
