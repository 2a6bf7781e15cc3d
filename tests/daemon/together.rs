//! A VM of three disks: the other host gets all of them or none, whatever dies when.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ferry_migration::codec::{Grant, HandBack, Message, read_frame, write_message};
use ferry_migration::ids::{Claim, DaemonId, Member, MigrationId};
use ferry_migration::negotiate::{Hello, ImageKind};
use ferry_migration::schema::BlkState;
use ferry_migration::schema::blk_v1::BlkV1;
use ferry_migration::schema::queue_v1::QueueV1;

use crate::rig::{Guest, Host, MIB, eventually, image, text};

const IDS: [&str; 3] = ["root", "data", "log"];

struct Three {
    a: Host,
    b: Host,
    _dir: tempfile::TempDir,
}

fn path(host: &Host, id: &str) -> PathBuf {
    host.dir.join(format!("{id}.raw"))
}

impl Three {
    fn new() -> Three {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (Host::new(dir.path(), "a"), Host::new(dir.path(), "b"));
        for id in IDS {
            image(&path(&a, id), MIB);
            a.add_as(id, &path(&a, id), &[]).ok();
            let size = MIB.to_string();
            b.add_as(id, &path(&b, id), &["--incoming", "--size", &size])
                .ok();
        }
        Three { a, b, _dir: dir }
    }

    fn copy(&self) {
        let mut words = vec!["migrate", "disk"];
        words.extend(IDS);
        let to = self.b.peer();
        words.extend(["--to", &to]);
        self.a.run(&words).ok();
    }
}

fn phases(host: &Host) -> [String; 3] {
    IDS.map(|id| {
        let disk = host.disk(id);
        disk.map_or(String::new(), |disk| disk["phase"].as_str().unwrap().into())
    })
}

fn guests(host: &Host) -> Vec<Guest> {
    IDS.iter().map(|id| Guest::at(&host.socket(id))).collect()
}

fn serve(guests: &mut [Guest]) {
    guests.iter_mut().for_each(Guest::check);
}

#[test]
fn disks_of_a_vm_move_together() {
    let three = Three::new();
    let (a, b) = (&three.a, &three.b);
    three.copy();
    let report = a.run(&["migrate", "release", "data"]).ok();
    assert_eq!(report["handovers"].as_array().unwrap().len(), 3, "{report}");
    assert_eq!(phases(b), ["granted"; 3]);
    serve(&mut guests(b));
    eventually("all are known to be there", || phases(a) == ["moved"; 3]);
    a.run(&["migrate", "disk", "root", "--to", &b.peer()])
        .error(1);
}

#[test]
fn disks_of_a_vm_follow_it_together() {
    let three = Three::new();
    let mut guests = guests(&three.a);
    serve(&mut guests);
    three.copy();
    let arrived = guests.into_iter().zip(IDS);
    let mut waiting: Vec<Guest> = Vec::new();
    for (guest, id) in arrived {
        // One ring after the other starts there, and none is served before the last.
        for guest in &mut waiting {
            assert!(guest.read(Duration::from_millis(50)).is_none(), "a part");
        }
        waiting.push(guest.goes_on_at(&three.b.socket(id)));
    }
    for guest in &mut waiting {
        guest.wait_any();
    }
    assert_eq!(phases(&three.b), ["serving"; 3]);
}

#[test]
fn disks_of_a_vm_come_back_together() {
    let three = Three::new();
    let mut guests = guests(&three.a);
    serve(&mut guests);
    three.copy();
    let bases: Vec<_> = guests.iter_mut().map(Guest::stop).collect();
    three.a.run(&["migrate", "release", "root"]).ok();
    // Of one disk the ring is started again; the others' are about to be.
    guests[1].resume(&bases[1]);
    guests[1].check();
    eventually("all are back", || phases(&three.a) == ["serving"; 3]);
    assert_eq!(phases(&three.b), ["returned"; 3]);
    guests[0].resume(&bases[0]);
    guests[0].check();
    // And go again.
    guests[2].resume(&bases[2]);
    guests[2].check();
    three.copy();
}

#[test]
fn a_disk_that_is_not_ready_keeps_the_others() {
    let three = Three::new();
    let (a, b) = (&three.a, &three.b);
    let mut guest = Guest::at(&a.socket("log"));
    guest.check();
    three.copy();
    // Its rings run.
    a.run(&["migrate", "release", "root"]).error(1);
    assert_eq!(phases(a), ["serving"; 3]);
    assert_eq!(phases(b), ["incoming"; 3]);
    guest.check();
    let words = ["migrate", "disk", "root", "data", "--to", &b.peer()];
    a.run(&words).refused(&["not together with the same disks"]);
    a.run(&["migrate", "cancel", "data"]).ok();
    eventually("all copies are given up", || phases(b) == ["returned"; 3]);
}

/// SIGKILL of one side or the other around the commit: a different moment in each round.
#[test]
fn of_a_vms_disks_never_a_mixture() {
    let long = std::env::var_os("FERRY_LONG").is_some();
    let mut three = Three::new();
    let mut went = 0;
    // How long it takes here and now, so that the kills fall before, into and after the commit.
    let mut took = Duration::from_millis(20);
    for round in 0..if long { 200 } else { 16 } {
        three.copy();
        let kill_source = round % 2 == 0;
        let pause = match round {
            0 => Duration::from_secs(2),
            _ => took.mul_f64(f64::from(round * 37 % 50) / 33.0),
        };
        let began = Instant::now();
        let Three { a, b, .. } = &mut three;
        let control = a.dir.join("run/control.sock");
        let release = std::thread::spawn(move || {
            crate::rig::ferry(&[
                "migrate",
                "release",
                "root",
                "--json",
                "--control",
                text(&control),
            ]);
            began.elapsed()
        });
        std::thread::sleep(pause);
        if kill_source {
            a.restart();
        } else {
            b.restart();
        }
        let elapsed = release.join().unwrap();
        if round == 0 {
            took = elapsed;
        }
        let settled = |host: &Host| {
            let phases = phases(host);
            (phases.windows(2).all(|two| two[0] == two[1])).then(|| phases[0].clone())
        };
        eventually(&format!("round {round}: both sides agree"), || {
            let pair = (settled(a), settled(b));
            matches!(
                (pair.0.as_deref(), pair.1.as_deref()),
                (Some("serving"), Some("returned" | "incoming"))
                    | (Some("handed" | "moved"), Some("granted" | "serving"))
            )
        });
        if settled(b).as_deref() == Some("granted") {
            went += 1;
            serve(&mut guests(b));
            eventually("known to be there", || phases(a) == ["moved"; 3]);
            // The next round goes the other way.
            for id in IDS {
                a.run(&["disk", "remove", id]).ok();
                let size = MIB.to_string();
                a.add_as(id, &path(a, id), &["--incoming", "--size", &size])
                    .ok();
            }
            std::mem::swap(a, b);
        } else {
            serve(&mut guests(a));
            a.run(&["migrate", "cancel", "root"]);
        }
    }
    println!("{went} rounds ended at the destination");
    assert!(went > 0, "no round went through");
}

/// What a source says that dies between two grants.
#[test]
fn a_granted_disk_waits_for_those_it_moves_with() {
    let three = Three::new();
    let b = &three.b;
    let migration = MigrationId::random();
    let claim = |id: &str| Claim {
        migration,
        disk: id.parse().unwrap(),
        epoch: 2,
    };
    let mut streams: Vec<TcpStream> = ["root", "data"]
        .into_iter()
        .map(|id| {
            let other = if id == "root" { "data" } else { "root" };
            let hello = Message::Hello(Hello {
                claim: claim(id),
                disk_uuid: uuid::Uuid::new_v4(),
                daemon: DaemonId::random(),
                image: ImageKind::Raw,
                shape: shape(),
                members: vec![Member {
                    disk: other.parse().unwrap(),
                    epoch: 2,
                }],
            });
            let mut stream = TcpStream::connect(b.peer()).unwrap();
            write_message(&mut stream, &hello).unwrap();
            assert!(matches!(hear(&mut stream), Message::Ready(_)));
            stream
        })
        .collect();
    let grant = |id: &str| {
        let queues = vec![QueueV1 {
            index: 0,
            size: 64,
            next_avail: 0,
            used_idx: 0,
            enabled: false,
            event_idx: false,
        }];
        Message::Grant(Grant {
            claim: claim(id),
            device_state: BlkState::new(shape(), queues).unwrap().encode().unwrap(),
        })
    };
    write_message(&mut streams[0], &grant("root")).unwrap();
    assert!(matches!(hear(&mut streams[0]), Message::Granted(_)));
    let mut guest = Guest::at(&b.socket("root"));
    let served = guest.read(Duration::from_secs(1));
    assert!(served.is_none(), "served without the other");
    write_message(&mut streams[1], &grant("data")).unwrap();
    assert!(matches!(hear(&mut streams[1]), Message::Granted(_)));
    guest.wait_any();
    // One is served: the other is not handed back.
    let ask = Message::HandBack(HandBack {
        claim: claim("data"),
        though_granted: true,
    });
    let mut stream = TcpStream::connect(b.peer()).unwrap();
    write_message(&mut stream, &ask).unwrap();
    assert!(matches!(hear(&mut stream), Message::Granted(_)));
}

fn hear(stream: &mut TcpStream) -> Message {
    loop {
        match read_frame(stream).unwrap().message {
            Message::Ping | Message::Pull(_) => {}
            other => return other,
        }
    }
}

fn shape() -> BlkV1 {
    BlkV1 {
        capacity_bytes: MIB,
        block_bytes: 4096,
        num_queues: 1,
        read_only: false,
        acked_features: 0,
        writeback: true,
        serial: [0; 20],
    }
}
