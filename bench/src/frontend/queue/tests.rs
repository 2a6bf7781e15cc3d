//! The queue against a device played by the test, on the same memory.

use super::super::blk::feature;
use super::super::device::GuestDevice;
use super::*;

fn queue(features: u64, options: QueueOptions) -> (GuestMemory, GuestDevice, BlkQueue) {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let device = GuestDevice::new(&memory, 1, 16).unwrap();
    let queue = device.blk_queue(0, features, options).unwrap();
    (memory, device, queue)
}

fn get<const N: usize>(memory: &GuestMemory, addr: u64) -> [u8; N] {
    let mut out = [0; N];
    memory.read(addr, &mut out).unwrap();
    out
}

fn desc(memory: &GuestMemory, table: u64, i: u16) -> Desc {
    let raw: [u8; 16] = get(memory, table + u64::from(i) * 16);
    Desc {
        addr: u64::from_le_bytes(raw[..8].try_into().unwrap()),
        len: u32::from_le_bytes(raw[8..12].try_into().unwrap()),
        flags: u16::from_le_bytes(raw[12..14].try_into().unwrap()),
        next: u16::from_le_bytes(raw[14..].try_into().unwrap()),
    }
}

fn chain(memory: &GuestMemory, table: u64, head: u16) -> Vec<Desc> {
    let mut out = vec![desc(memory, table, head)];
    while out.last().unwrap().flags & DESC_NEXT != 0 {
        out.push(desc(memory, table, out.last().unwrap().next));
    }
    out
}

fn head(memory: &GuestMemory, at: &SplitRing, i: u64) -> u16 {
    u16::from_le_bytes(get(memory, at.layout().avail + 4 + 2 * i))
}

fn complete(memory: &GuestMemory, layout: super::super::RingLayout, at: u16, id: u32) {
    let slot = u64::from(at % layout.size);
    memory
        .write(layout.used + 4 + 8 * slot, &id.to_le_bytes())
        .unwrap();
    memory
        .write(layout.used + 2, &(at + 1).to_le_bytes())
        .unwrap();
}

#[test]
fn a_read_has_header_data_and_status() {
    let (memory, _, mut q) = queue(0, QueueOptions::default().with_depth(4));
    let data = [
        Segment {
            addr: 0x10_0000,
            len: 512,
        },
        Segment {
            addr: 0x10_1000,
            len: 1024,
        },
    ];
    let token = q.submit(Op::Read, 9, &data).unwrap();
    assert_eq!(q.ring().avail_index(), 0, "not published before commit");
    assert!(
        q.commit().unwrap(),
        "a device that says nothing wants kicks"
    );
    assert_eq!(q.ring().avail_index(), 1);
    let table = q.ring().layout().desc;
    let all = chain(&memory, table, head(&memory, q.ring(), 0));
    assert_eq!(
        all.iter().map(|d| d.len).collect::<Vec<_>>(),
        [16, 512, 1024, 1]
    );
    let writes: Vec<_> = all.iter().map(|d| d.flags & DESC_WRITE != 0).collect();
    assert_eq!(writes, [false, true, true, true]);
    let header: [u8; 16] = get(&memory, all[0].addr);
    assert_eq!(header[..4], [0, 0, 0, 0]);
    assert_eq!(header[8], 9);
    assert_eq!(all[3].addr, q.status_addr(token));
}

#[test]
fn a_completion_frees_its_slot_and_tells_the_status() {
    let (memory, _, mut q) = queue(0, QueueOptions::default().with_depth(1));
    let token = q.submit(Op::Flush, 0, &[]).unwrap();
    assert!(matches!(q.submit(Op::Flush, 0, &[]), Err(QueueError::Full)));
    q.commit().unwrap();
    assert_eq!(q.pop().unwrap(), None);
    memory.write(q.status_addr(token), &[1]).unwrap();
    let id = u32::from(head(&memory, q.ring(), 0));
    complete(&memory, q.ring().layout(), 0, id);
    let done = q.pop().unwrap().unwrap();
    assert_eq!((done.token, done.status), (token, Status::IoErr));
    assert_ne!(
        q.submit(Op::Flush, 0, &[]).unwrap(),
        token,
        "a new name for a new request"
    );
}

#[test]
fn an_untouched_status_byte_is_seen() {
    let (memory, _, mut q) = queue(0, QueueOptions::default().with_depth(1));
    q.submit(Op::Flush, 0, &[]).unwrap();
    q.commit().unwrap();
    complete(
        &memory,
        q.ring().layout(),
        0,
        u32::from(head(&memory, q.ring(), 0)),
    );
    assert_eq!(q.pop().unwrap().unwrap().status, Status::Unwritten);
}

#[test]
fn a_lying_used_ring_is_an_error() {
    let (memory, _, mut q) = queue(0, QueueOptions::default().with_depth(2));
    q.submit(Op::Flush, 0, &[]).unwrap();
    q.commit().unwrap();
    let layout = q.ring().layout();
    complete(&memory, layout, 0, 9999);
    assert!(matches!(q.pop(), Err(QueueError::NotInFlight { id: 9999 })));
    complete(&memory, layout, 7, 0);
    assert!(matches!(
        q.pop(),
        Err(QueueError::UsedJump {
            moved: 8,
            in_flight: 1
        })
    ));
}

#[test]
fn indirect_chains_take_one_descriptor() {
    let options = QueueOptions {
        depth: 16,
        indirect: true,
        ..QueueOptions::default()
    };
    let (memory, _, mut q) = queue(feature::INDIRECT, options);
    for i in 0..16 {
        q.submit(
            Op::Write,
            i,
            &[Segment {
                addr: 0x10_0000,
                len: 512,
            }],
        )
        .unwrap();
    }
    let table = desc(&memory, q.ring().layout().desc, head(&memory, q.ring(), 15));
    assert_eq!((table.flags, table.len), (DESC_INDIRECT, 48));
    let inner = chain(&memory, table.addr, 0);
    assert_eq!(
        inner.iter().map(|d| d.len).collect::<Vec<_>>(),
        [16, 512, 1]
    );
    assert_eq!(
        inner[1].flags & DESC_WRITE,
        0,
        "a write's data is read by the device"
    );
}

#[test]
fn ranges_are_laid_out_as_the_standard_says() {
    let (memory, _, mut q) = queue(0, QueueOptions::default().with_depth(8));
    let ranges = [
        Range {
            sector: 1,
            sectors: 2,
            flags: 0,
        },
        Range {
            sector: 8,
            sectors: 4,
            flags: 1,
        },
    ];
    q.submit_ranges(Op::WriteZeroes { unmap: true }, &ranges)
        .unwrap();
    let all = chain(&memory, q.ring().layout().desc, head(&memory, q.ring(), 0));
    assert_eq!(all[1].len, 32);
    let second: [u8; 16] = get(&memory, all[1].addr + 16);
    assert_eq!(second, ranges[1].to_bytes());
}

#[test]
fn kicks_and_calls_follow_the_event_index() {
    let (memory, device, mut q) = queue(feature::EVENT_IDX, QueueOptions::default().with_depth(8));
    let layout = q.ring().layout();
    memory
        .write(layout.used + 4 + 8 * 16, &5u16.to_le_bytes())
        .unwrap();
    q.submit(Op::Flush, 0, &[]).unwrap();
    assert!(!q.commit().unwrap(), "the device wants a kick past 5 only");
    assert!(!q.wait(Duration::from_millis(1)).unwrap());
    complete(&memory, layout, 0, u32::from(head(&memory, q.ring(), 0)));
    device.queues()[0].call.write(1).unwrap();
    assert!(q.wait(Duration::from_secs(5)).unwrap());
}

#[test]
fn a_request_too_long_is_handed_back() {
    let (_, _, mut q) = queue(
        0,
        QueueOptions {
            depth: 4,
            segments_max: 2,
            indirect: false,
        },
    );
    let s = Segment {
        addr: 0x10_0000,
        len: 512,
    };
    assert!(matches!(
        q.submit(Op::Read, 0, &[s; 3]),
        Err(QueueError::Segments { .. })
    ));
    assert!(matches!(
        q.submit(Op::Read, 0, &[]),
        Err(QueueError::Segments { .. })
    ));
    assert_eq!(q.in_flight(), 0);
}
