//! The mirror: the channel that every change goes through, its writer, and what is acknowledged. As
//! `migration/src/source/link.rs` has it.

use ferry_migration::codec::{Data, Message, Tag, Zero, data_crcs};

use super::coverage::Happened;
use super::device;
use super::image::{BLOCK_BYTES, Block, byte_of, pack};
use super::source::{Source, wake};
use super::wire;
use super::world::{Job, MILLI, World};

/// Changes that may wait to be written.
const CHANNEL_MAX: usize = 24;
/// A change of the disk, in the order in which the other side must apply it.
#[derive(Debug)]
pub enum Change {
    /// A guest's by its number, or a piece of the copy: 0.
    Write {
        seq: u64,
        first: usize,
        blocks: Vec<Block>,
    },
    Zero {
        first: usize,
        count: usize,
    },
    Dirty {
        first: usize,
        count: usize,
    },
    Failed,
}

/// The tap: false when the channel is full.
pub fn tapped(world: &mut World, here: usize, change: Change) -> bool {
    let Some(source) = &mut world.hosts[here].source else {
        return true;
    };
    if let Change::Failed = change {
        source.failed = true;
    }
    let room = source.channel.len() < CHANNEL_MAX;
    if room {
        source.channel.push_back(change);
        wake_writer(world, here);
    }
    room
}

pub fn wake_writer(world: &mut World, here: usize) {
    let wait = world.soon();
    if let Some(source) = &mut world.hosts[here].source
        && !source.writing
    {
        source.writing = true;
        world.job(here, wait, Job::Writer);
    }
}

/// The mirror's writer: some of what is in the channel, or an order when that is empty.
pub fn write(world: &mut World, here: usize) {
    let some = world.rng.u32(1..=4);
    let Some(source) = &mut world.hosts[here].source else {
        return;
    };
    source.writing = false;
    let Some(conn) = source.conn else { return };
    for _ in 0..some {
        let source = world.hosts[here].source.as_mut().expect("it stays");
        if !world.wire.has_room(here, conn) {
            break;
        }
        if let Some(change) = source.channel.pop_front() {
            source.since_flush += 1;
            write_change(world, here, conn, change);
        } else if let Some(tag) = source.orders.pop_front() {
            source.since_flush = 0;
            wire::say(world, here, conn, &Message::Flush(tag));
        }
    }
    let source = world.hosts[here].source.as_mut().expect("it stays");
    if !source.channel.is_empty() || !source.orders.is_empty() {
        source.writing = true;
        let wait = world.about(2 * MILLI);
        world.job(here, wait, Job::Writer);
    }
}

fn write_change(world: &mut World, here: usize, conn: usize, change: Change) {
    let source = world.hosts[here].source.as_mut().expect("it stays");
    match change {
        Change::Write { seq, first, blocks } => {
            let tag = tag(source, seq);
            let data = pack(&blocks);
            let head = Data {
                tag,
                offset_bytes: byte_of(first),
                crcs: data_crcs(&data),
            };
            wire::say_with(world, here, conn, &Message::Data(head), &data);
        }
        Change::Zero { first, count } => {
            let zero = Zero {
                tag: tag(source, 0),
                offset_bytes: byte_of(first),
                len_bytes: byte_of(count),
            };
            wire::say(world, here, conn, &Message::Zero(zero));
        }
        Change::Dirty { first, count } => {
            source
                .plan
                .mark_dirty(byte_of(first), BLOCK_BYTES * count as u64);
            world.saw(Happened::Dirty);
            wake(world, here);
        }
        Change::Failed => {
            source.lost.get_or_insert("the disk gave the mirror up");
            wake(world, here);
        }
    }
}

fn tag(source: &mut Source, seq: u64) -> Tag {
    if seq == 0 {
        source.bulk_tag += 1;
        return Tag::Bulk(source.bulk_tag);
    }
    source.guest_sent = source.guest_sent.max(seq);
    Tag::Guest(seq)
}

pub fn acknowledged(world: &mut World, here: usize, tag: Tag) {
    let source = world.hosts[here].source.as_mut().expect("it has one");
    let fits = match tag {
        Tag::Guest(seq) => seq <= source.guest_sent,
        Tag::Bulk(number) => number == source.bulk_acked + 1 && !source.bulk.is_empty(),
        Tag::Flush(number) => number <= source.flush_tag,
    };
    if !fits {
        return world.break_promise("what was never sent is acknowledged");
    }
    match tag {
        Tag::Guest(seq) if source.tapped => device::acknowledge(world, here, seq),
        Tag::Guest(_) => {}
        Tag::Bulk(number) => {
            source.bulk_acked = number;
            source.bulk_bytes -= source.bulk.pop_front().unwrap_or(0);
        }
        Tag::Flush(number) => source.flushed = source.flushed.max(number),
    }
    wake(world, here);
}
