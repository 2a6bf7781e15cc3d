//! Peers that lie, babble or say nothing.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ferry_migration::codec::{
    Abort, Data, Grant, HandBack, Message, Tag, Zero, data_crcs, encode, read_frame, write_message,
};
use ferry_migration::destination::{DestinationHost, serve_connection};
use ferry_migration::ids::{Claim, DaemonId, MigrationId};
use ferry_migration::negotiate::{Hello, ImageKind, Ready};
use ferry_migration::phase::Phase;
use ferry_migration::source::SourcePhase;
use support::{MIB, Rng, World, disk_id, wait_for};

fn claim() -> Claim {
    Claim {
        migration: MigrationId::random(),
        disk: disk_id(),
        epoch: 2,
    }
}

fn hello(world: &World, claim: &Claim) -> Message {
    Message::Hello(Hello {
        claim: claim.clone(),
        disk_uuid: uuid::Uuid::new_v4(),
        daemon: DaemonId::random(),
        image: ImageKind::Raw,
        shape: world.disk.shape(),
        members: vec![],
    })
}

fn connect(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.server.address()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

fn hear(stream: &mut TcpStream) -> Option<Message> {
    loop {
        match read_frame(stream).ok()?.message {
            Message::Ping => {}
            other => return Some(other),
        }
    }
}

fn opened(world: &World) -> (TcpStream, Claim) {
    let claim = claim();
    let mut stream = connect(world);
    write_message(&mut stream, &hello(world, &claim)).unwrap();
    assert!(matches!(hear(&mut stream), Some(Message::Ready(_))));
    (stream, claim)
}

#[test]
fn noise_harms_nobody() {
    let world = World::new(MIB);
    let mut rng = Rng(3);
    for round in 0..200 {
        let mut stream = connect(&world);
        let mut bytes: Vec<u8> = (0..rng.below(3000))
            .map(|_| rng.next().to_le_bytes()[0])
            .collect();
        if round % 2 == 0 && bytes.len() > 20 {
            // The right magic and version, then noise: lengths that are anything.
            bytes[..6].copy_from_slice(b"FRYM\x01\x00");
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    world.move_all();
}

#[test]
fn noise_in_the_middle_of_a_copy_discards_it() {
    let world = World::new(MIB);
    let mut rng = Rng(4);
    for _ in 0..20 {
        let (mut stream, _) = opened(&world);
        let noise: Vec<u8> = (0..500).map(|_| rng.next().to_le_bytes()[0]).collect();
        stream.write_all(&noise).unwrap();
        wait_for("the copy to go", || !world.host.has_image());
    }
    world.move_all();
}

#[test]
fn ranges_off_the_disk_are_refused() {
    let world = World::new(MIB);
    for (offset_bytes, len_bytes) in [
        (MIB, 512),
        (MIB - 512, 1024),
        (u64::MAX - 511, 512),
        (u64::MAX, u64::MAX),
        (1, 512),
        (0, 0),
    ] {
        let (mut stream, _) = opened(&world);
        let zero = Message::Zero(Zero {
            tag: Tag::Bulk(1),
            offset_bytes,
            len_bytes,
        });
        write_message(&mut stream, &zero).unwrap();
        let Some(Message::Refused(refused)) = hear(&mut stream) else {
            panic!("not refused")
        };
        assert!(refused.reason.contains("not on the disk"));
        wait_for("the copy to go", || !world.host.has_image());
    }
}

#[test]
fn data_is_verified_before_it_is_written() {
    let world = World::new(MIB);
    let (mut stream, _) = opened(&world);
    let data = [7u8; 4096];
    let head = Data {
        tag: Tag::Bulk(1),
        offset_bytes: 0,
        crcs: vec![data_crcs(&data)[0] ^ 1],
    };
    let mut frame = encode(&Message::Data(head), data.len()).unwrap();
    frame.extend_from_slice(&data);
    stream.write_all(&frame).unwrap();
    let Some(Message::Refused(refused)) = hear(&mut stream) else {
        panic!("not refused")
    };
    assert!(refused.reason.contains("checksum"), "{}", refused.reason);
}

#[test]
fn a_length_beyond_the_bound_is_refused_at_once() {
    let world = World::new(MIB);
    for (meta, data) in [(u32::MAX, 0), (0, u32::MAX), (1 << 24, 1 << 21)] {
        let mut stream = connect(&world);
        let mut header = b"FRYM\x01\x00\x01\x00".to_vec();
        header.extend_from_slice(&meta.to_le_bytes());
        header.extend_from_slice(&data.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        stream.write_all(&header).unwrap();
        let Some(Message::Refused(refused)) = hear(&mut stream) else {
            panic!("not refused")
        };
        assert!(refused.reason.contains("announces"), "{}", refused.reason);
    }
}

#[test]
fn a_grant_of_nothing_known_is_refused() {
    let world = World::new(MIB);
    let grant = |claim: Claim| {
        Message::Grant(Grant {
            claim,
            device_state: vec![1, 2, 3],
        })
    };
    let mut stream = connect(&world);
    write_message(&mut stream, &grant(claim())).unwrap();
    assert!(matches!(hear(&mut stream), Some(Message::Refused(_))));
    // Of another id, another epoch, or with a state that is none.
    for other in 0..3 {
        let (mut stream, mut claim) = opened(&world);
        match other {
            0 => claim.migration = MigrationId::random(),
            1 => claim.epoch += 1,
            _ => {}
        }
        write_message(&mut stream, &grant(claim)).unwrap();
        assert!(matches!(
            hear(&mut stream),
            Some(Message::Refused(_) | Message::Returned(_))
        ));
        wait_for("the copy to go", || !world.host.has_image());
        assert!(matches!(
            world.host.record().phase(),
            Phase::Returned { .. }
        ));
    }
}

#[test]
fn a_grant_that_comes_after_the_hand_back_is_refused() {
    for though_granted in [false, true] {
        let world = World::new(MIB);
        let (mut stream, claim) = opened(&world);
        let ask = Message::HandBack(HandBack {
            claim: claim.clone(),
            though_granted,
        });
        for _ in 0..3 {
            let mut fresh = connect(&world);
            write_message(&mut fresh, &ask).unwrap();
            assert!(matches!(hear(&mut fresh), Some(Message::Returned(_))));
        }
        let device_state = ferry_dataplane::lifecycle::DiskLifecycle::export(&*world.disk).unwrap();
        let grant = Message::Grant(Grant {
            claim,
            device_state,
        });
        write_message(&mut stream, &grant).unwrap();
        assert!(matches!(hear(&mut stream), Some(Message::Returned(_))));
        assert!(matches!(
            world.host.record().phase(),
            Phase::Returned { .. }
        ));
    }
}

#[test]
fn an_abort_on_a_connection_of_its_own_discards_the_copy() {
    let world = World::new(MIB);
    let (mut stream, claim) = opened(&world);
    let mut fresh = connect(&world);
    write_message(&mut fresh, &Message::Abort(Abort { claim })).unwrap();
    assert!(matches!(hear(&mut fresh), Some(Message::Returned(_))));
    assert!(!world.host.has_image());
    let zero = Message::Zero(Zero {
        tag: Tag::Bulk(1),
        offset_bytes: 0,
        len_bytes: 512,
    });
    write_message(&mut stream, &zero).unwrap();
    assert!(matches!(hear(&mut stream), Some(Message::Refused(_))));
    world.move_all();
}

#[test]
fn a_second_offer_of_a_disk_is_refused_and_harms_no_copy() {
    let world = World::new(MIB);
    let (_first, claim) = opened(&world);
    for offer in [hello(&world, &claim), hello(&world, &self::claim())] {
        let mut stream = connect(&world);
        write_message(&mut stream, &offer).unwrap();
        assert!(matches!(hear(&mut stream), Some(Message::Refused(_))));
        assert!(world.host.has_image());
    }
}

#[test]
fn a_silent_stranger_is_let_go() {
    let world = World::new(MIB);
    let (ours, theirs) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    };
    let began = Instant::now();
    let host: std::sync::Arc<dyn DestinationHost> = world.host.clone();
    serve_connection(theirs, &host);
    assert!(began.elapsed() < Duration::from_secs(8));
    drop(ours);
}

/// A destination that does what `act` says after `Ready`.
fn fake_destination(act: impl FnOnce(&mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = read_frame(&mut stream);
        let ready = Message::Ready(Ready {
            daemon: DaemonId::random(),
            kept: false,
        });
        write_message(&mut stream, &ready).unwrap();
        act(&mut stream);
        std::thread::sleep(Duration::from_millis(300));
    });
    address
}

#[test]
fn a_lying_destination_costs_the_source_its_migration_only() {
    let lies: Vec<Message> = vec![
        Message::Ack(Tag::Bulk(77)),
        Message::Ack(Tag::Guest(1)),
        Message::Flush(1),
        Message::Granted(ferry_migration::codec::Answer {
            claim: claim(),
            daemon: DaemonId::random(),
        }),
    ];
    for lie in lies {
        let world = World::new(MIB);
        let mut params = world.params();
        params.peer = fake_destination(move |stream| write_message(stream, &lie).unwrap());
        let handle = ferry_migration::source::start(params).unwrap();
        let end = handle.wait_end(Duration::from_secs(20)).unwrap();
        assert_eq!(end.phase, SourcePhase::Failed);
        println!("{}", end.reason.unwrap());
        world.assert_source_serves();
    }
    let world = World::new(MIB);
    let mut params = world.params();
    params.peer = fake_destination(|stream| stream.write_all(&[0x5a; 4000]).unwrap());
    let handle = ferry_migration::source::start(params).unwrap();
    assert_eq!(
        handle.wait_end(Duration::from_secs(20)).unwrap().phase,
        SourcePhase::Failed
    );
    world.assert_source_serves();
}
