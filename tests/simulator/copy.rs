//! The copier: lock, read, queue, unlock; a job for each, and anything may come in between.

use std::ops::Range;

use ferry_migration::extents::{CHUNK_BYTES, EXTENT_BYTES, Step};

use super::coverage::Happened;
use super::device;
use super::image::{BLOCKS_PER_EXTENT, Block, PARTS, block_of};
use super::mirror::{Change, wake_writer};
use super::source::{Source, alarm, wake};
use super::world::{MILLI, World};

/// Bytes of the bulk copy that may be under way without an acknowledgement.
const BULK_BYTES_MAX: u64 = 4 * CHUNK_BYTES;
/// Changes that the copier may have in the channel; the rest is the guest's.
const QUEUED_MAX: usize = 20;

#[derive(Debug)]
pub enum Copier {
    Rests,
    /// Waits until what is in flight has landed.
    Locks(Piece),
    /// Has read and queued it as far as that, or could not.
    Queued(Piece, Option<u64>),
}

/// What is copied next.
#[derive(Debug, Clone)]
pub struct Piece {
    range: Range<u64>,
    hole: bool,
    /// It was copied before, and is dirty.
    again: bool,
}

/// Goes on with the copy; whether there is nothing to do.
pub fn go_on(world: &mut World, here: usize) -> bool {
    let device = &world.hosts[here].device;
    let (settled, is_tapped) = (device.lock_is_settled(), device.tap.is_some());
    let source = world.hosts[here].source.as_mut().expect("looked at");
    match std::mem::replace(&mut source.copier, Copier::Rests) {
        Copier::Rests => return next_piece(world, here),
        _ if !is_tapped => {
            source.lost.get_or_insert("the mirror is gone");
            wake(world, here);
        }
        Copier::Locks(piece) if settled => {
            let end = copy(world, here, &piece);
            let source = world.hosts[here].source.as_mut().expect("still");
            source.copier = Copier::Queued(piece, end);
            wake(world, here);
        }
        // Woken when something has landed.
        waits @ Copier::Locks(_) => source.copier = waits,
        Copier::Queued(piece, end) => unlock(world, here, &piece, end),
    }
    false
}

fn next_piece(world: &mut World, here: usize) -> bool {
    let host = &mut world.hosts[here];
    let source = host.source.as_mut().expect("looked at");
    let image = host.image.as_ref().expect("served");
    let data = image.next_data(source.plan.cursor_bytes());
    let piece = if let Some(step) = source.plan.step(data) {
        Piece {
            range: step.range(),
            hole: matches!(step, Step::Hole(_)),
            again: false,
        }
    } else if let Some(range) = source.plan.dirty_run() {
        Piece {
            range,
            hole: false,
            again: true,
        }
    } else {
        return true;
    };
    let cost = if piece.hole {
        EXTENT_BYTES
    } else {
        CHUNK_BYTES
    };
    if source.bulk_bytes > 0 && source.bulk_bytes + cost > BULK_BYTES_MAX {
        return false; // woken by an acknowledgement
    }
    let blocks = block_of(piece.range.start)..block_of(piece.range.end);
    source.copier = Copier::Locks(piece);
    if !device::lock(world, here, blocks) {
        let source = world.hosts[here].source.as_mut().expect("still");
        source.lost.get_or_insert("the mirror is gone");
    }
    wake(world, here);
    false
}

/// Under the lock: where what was queued ends, or nothing when the channel was full.
fn copy(world: &mut World, here: usize, piece: &Piece) -> Option<u64> {
    let host = &mut world.hosts[here];
    let source = host.source.as_mut().expect("looked at");
    let image = host.image.as_ref().expect("served");
    if piece.hole {
        // A write may have come before the lock.
        let step = source.plan.step(image.next_data(piece.range.start));
        let Some(Step::Hole(still)) = step else {
            world.saw(Happened::HoleFilled);
            return None;
        };
        let end = still.end.min(piece.range.end);
        let (first, past) = (block_of(piece.range.start), block_of(end));
        let queued = queue_zero(source, first, past - first);
        wake_writer(world, here);
        world.saw(Happened::HoleCopied);
        return queued.then_some(end);
    }
    source.plan.clear(&piece.range);
    let (first, past) = (block_of(piece.range.start), block_of(piece.range.end));
    let queued = queue_runs(source, first, &image.blocks()[first..past]);
    wake_writer(world, here);
    queued.then_some(piece.range.end)
}

fn unlock(world: &mut World, here: usize, piece: &Piece, end: Option<u64>) {
    let all = super::image::byte_of(world.options.blocks);
    let below = match (piece.again, end) {
        (true, _) => all,
        (false, Some(end)) => end,
        (false, None) => piece.range.start,
    };
    device::unlock(world, here, below);
    let source = world.hosts[here].source.as_mut().expect("still");
    match (piece.again, end) {
        (false, Some(end)) => source.plan.advance(end),
        (true, None) => {
            let range = &piece.range;
            source.plan.mark_dirty(range.start, range.end - range.start);
        }
        _ => {}
    }
    if piece.again {
        world.saw(Happened::CopiedAgain);
    }
    if end.is_none() {
        alarm(world, here, MILLI);
    } else {
        wake(world, here);
    }
}

/// Runs of extents that are all zero, or not.
fn queue_runs(source: &mut Source, first: usize, blocks: &[Block]) -> bool {
    let mut at = first;
    for extent in blocks.chunks(BLOCKS_PER_EXTENT) {
        let zero = extent.iter().all(|block| *block == [0; PARTS]);
        let queued = if zero {
            queue_zero(source, at, extent.len())
        } else {
            let change = Change::Write {
                seq: 0,
                first: at,
                blocks: extent.to_vec(),
            };
            queue(source, change, EXTENT_BYTES)
        };
        if !queued {
            return false;
        }
        at += extent.len();
    }
    true
}

fn queue_zero(source: &mut Source, first: usize, count: usize) -> bool {
    queue(source, Change::Zero { first, count }, EXTENT_BYTES)
}

fn queue(source: &mut Source, change: Change, cost: u64) -> bool {
    if source.channel.len() >= QUEUED_MAX {
        return false;
    }
    source.bulk.push_back(cost);
    source.bulk_bytes += cost;
    source.channel.push_back(change);
    true
}
