//! Traffic through a relay that spoils it as it is told: both sides together find exactly that.
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ferry_bench::talk::{Kind, Load, Report, Server, TalkPlan, call};

const LOCAL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);
const PATIENCE: Duration = Duration::from_secs(3);

/// What a relay does to what goes from the caller to the server; connections by number.
#[derive(Clone, Copy, Default)]
struct Knobs {
    flips: Option<u16>,
    loses_a_byte: Option<u16>,
    cuts: Option<u16>,
    holds: Option<u16>,
    /// Of datagrams by their order.
    drops: Option<u64>,
    doubles: Option<u64>,
    swaps: Option<u64>,
}

/// Byte of a connection, its head of ten included, at which a knob is turned.
const AT: usize = 3000;

fn relay(to: SocketAddr, knobs: Knobs) -> SocketAddr {
    let listener = TcpListener::bind(LOCAL).unwrap();
    let at = listener.local_addr().unwrap();
    let near = UdpSocket::bind(at).unwrap();
    let far = UdpSocket::bind(LOCAL).unwrap();
    far.connect(to).unwrap();
    thread::spawn(move || {
        // The first one is the control connection.
        for (order, socket) in listener.incoming().flatten().enumerate() {
            let number = u16::try_from(order).unwrap().checked_sub(1);
            let far = TcpStream::connect(to).unwrap();
            let (back, forth) = (far.try_clone().unwrap(), socket.try_clone().unwrap());
            thread::spawn(move || pass(back, forth, None, Knobs::default()));
            thread::spawn(move || pass(socket, far, number, knobs));
        }
    });
    let (back, forth) = (far.try_clone().unwrap(), near.try_clone().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 2000];
        let from: SocketAddr = told.recv().unwrap();
        while let Ok(count) = back.recv(&mut bytes) {
            forth.send_to(&bytes[..count], from).unwrap();
        }
    });
    thread::spawn(move || datagrams(&near, &far, &tell, knobs));
    at
}

fn pass(mut from: TcpStream, mut to: TcpStream, number: Option<u16>, knobs: Knobs) {
    let is = |knob: Option<u16>| number.is_some() && knob == number;
    let mut passed = 0;
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut piece = bytes[..count].to_vec();
        if (passed..passed + count).contains(&AT) {
            let at = AT - passed;
            if is(knobs.flips) {
                piece[at] ^= 4;
            }
            if is(knobs.loses_a_byte) {
                piece.remove(at);
            }
            if is(knobs.cuts) {
                break;
            }
            if is(knobs.holds) {
                // Longer than anybody waits.
                thread::sleep(4 * PATIENCE);
            }
        }
        passed += count;
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    if is(knobs.cuts) {
        let _ = from.shutdown(Shutdown::Both);
    }
}

fn datagrams(
    near: &UdpSocket,
    far: &UdpSocket,
    tell: &std::sync::mpsc::Sender<SocketAddr>,
    knobs: Knobs,
) {
    let mut bytes = [0; 2000];
    let mut held = None;
    for number in 0.. {
        let (count, from) = near.recv_from(&mut bytes).unwrap();
        if number == 0 {
            tell.send(from).unwrap();
        }
        let number = Some(number);
        if number == knobs.drops {
            continue;
        }
        if number == knobs.swaps {
            held = Some(bytes[..count].to_vec());
            continue;
        }
        far.send(&bytes[..count]).unwrap();
        if number == knobs.doubles {
            far.send(&bytes[..count]).unwrap();
        }
        if let Some(held) = held.take() {
            far.send(&held).unwrap();
        }
    }
}

fn talk(knobs: Knobs, load: Load) -> Report {
    let server = Server::bind(LOCAL.into(), PATIENCE).unwrap();
    let to = relay(server.address().unwrap(), knobs);
    let over = Arc::new(AtomicBool::new(false));
    let is_over = over.clone();
    let served = thread::spawn(move || server.serve(|| is_over.load(Ordering::Relaxed)));
    let plan = TalkPlan {
        to,
        load,
        ping_pps: 0,
        patience: PATIENCE,
        lossless: true,
        until_bytes: None,
    };
    let time = Duration::from_millis(600);
    let report = call(&plan, || {}, |since| since >= time).unwrap();
    over.store(true, Ordering::Relaxed);
    served.join().unwrap().unwrap();
    report
}

fn load() -> Load {
    Load {
        tcp: 9,
        bulk_bytes_per_second: 100_000,
        chat_ms: 5,
        udp_pps: 200,
        udp_bytes: 100,
    }
}

/// Connections reset, mismatches, stuck ones.
fn counts(report: &Report) -> (u64, u64, u64) {
    let it = report;
    (it.connections_reset, it.mismatches, it.stuck)
}

#[test]
fn what_is_said_arrives() {
    let report = talk(Knobs::default(), load());
    assert!(report.is_clean(), "{}", report.table());
    assert_eq!(counts(&report), (0, 0, 0));
    let there = report.there.as_ref().unwrap();
    for (here, there) in report.here.tcp.iter().zip(&there.tcp) {
        assert_eq!(here.sent_bytes, there.received_bytes);
        assert_eq!(here.received_bytes, there.sent_bytes);
        let most = here.sent_bytes.max(here.received_bytes);
        assert!(most > 20_000, "{}", report.table());
        let silent = [here, there].map(|it| it.longest_silence_ms.is_some());
        assert_eq!(silent, [here.kind != Kind::Up, here.kind == Kind::Up]);
    }
    let udp = there.udp.as_ref().unwrap();
    assert!(udp.sent > 80 && udp.received.received > 80);
    assert_eq!(report.here.udp.as_ref().unwrap().sent, udp.received.sent);
}

#[test]
fn a_byte_that_changed_is_a_mismatch() {
    for number in [0, 2] {
        let knobs = Knobs {
            flips: Some(number),
            ..Knobs::default()
        };
        let report = talk(knobs, load());
        assert_eq!(report.mismatches, 1, "{}", report.table());
        assert!(!report.is_clean());
        let there = &report.there.as_ref().unwrap().tcp[usize::from(number)];
        assert!(there.mismatch, "{}", report.table());
        let at = AT - 10;
        let fault = there.fault.as_ref().unwrap();
        assert!(fault.ends_with(&format!(" at {at}")), "{fault}");
    }
}

#[test]
fn a_byte_that_is_lost_is_a_mismatch() {
    let knobs = Knobs {
        loses_a_byte: Some(3),
        ..Knobs::default()
    };
    let report = talk(knobs, load());
    assert_eq!(report.mismatches, 1, "{}", report.table());
}

#[test]
fn a_connection_that_is_cut_is_reset() {
    for number in [0, 2] {
        let knobs = Knobs {
            cuts: Some(number),
            ..Knobs::default()
        };
        let report = talk(knobs, load());
        assert_eq!(counts(&report), (1, 0, 0), "{}", report.table());
        assert!(!report.is_clean());
    }
}

#[test]
fn a_connection_that_stands_still_is_stuck_and_its_silence_is_long() {
    let knobs = Knobs {
        holds: Some(5),
        ..Knobs::default()
    };
    let report = talk(knobs, load());
    assert_eq!(report.stuck, 1, "{}", report.table());
    assert!(report.tcp_longest_silence_ms > 200.0, "{}", report.table());
    assert!(!report.is_clean());
}

#[test]
fn datagrams_are_counted_exactly() {
    let knobs = Knobs {
        drops: Some(17),
        doubles: Some(30),
        swaps: Some(40),
        ..Knobs::default()
    };
    let report = talk(knobs, load());
    assert!(!report.is_clean());
    let there = report.there.as_ref().unwrap().udp.as_ref().unwrap();
    let found = &there.received;
    assert_eq!(found.sent, found.received + 1);
    assert_eq!((found.lost, found.doubled, found.reordered), (1, 1, 1));
    assert_eq!(found.missing, [[17, 17]]);
    assert_eq!(found.twice, [30]);
    assert_eq!(report.here.udp.as_ref().unwrap().received.lost, 0);
    assert_eq!(counts(&report), (0, 0, 0));
}

#[test]
fn a_session_by_its_commands() {
    let program = env!("CARGO_BIN_EXE_ferry-bench");
    let mut server = Command::new(program)
        .args("talk serve --listen 127.0.0.1:0 --once --json".split(' '))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let listening: serde_json::Value = serde_json::from_str(&line).unwrap();
    let to = listening["listening"].as_str().unwrap();
    let said = Command::new(program)
        .args("talk call --tcp 6 --bulk-kib 8192 --mib 1 --udp --json --lossless --to".split(' '))
        .arg(to)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(said.status.success(), "{said:?}");
    let out_text = String::from_utf8(said.stdout).unwrap();
    let lines: Vec<serde_json::Value> = out_text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0], serde_json::json!({ "talking": true }));
    assert_eq!(lines[1]["connections_reset"], 0);
    for connection in &lines[1]["here"]["tcp"].as_array().unwrap()[..2] {
        let bytes = connection["sent_bytes"]
            .as_u64()
            .max(connection["received_bytes"].as_u64());
        assert!(bytes >= Some(1 << 20), "{connection}");
    }
    assert!(server.wait().unwrap().success());

    let usage = Command::new(program)
        .args("talk call --tcp 2000 --to".split(' '))
        .arg(to)
        .output()
        .unwrap();
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    let nobody = Command::new(program)
        .args("talk call --to".split(' '))
        .arg(to)
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
}
