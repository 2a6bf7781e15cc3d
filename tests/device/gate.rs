//! In and out of service: a held disk lets its requests wait, and none fails.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferry_bench::frontend::{GuestMemory, Op, QueueOptions, Status, VmmOptions};
use ferry_dataplane::disk::Service;
use ferry_dataplane::lifecycle::{DiskLifecycle, LifecycleError};
use ferry_vhost::blk::qos::{Qos, QosKeeper};

use crate::rig::{
    Answer, Guest, Host, MIB, assert_clean, code, eventually, finish, load, memory_disk, options,
    plan, poll_for, say, slow,
};

const REST: Duration = Duration::from_millis(60);

fn count() -> (Arc<AtomicU32>, Arc<AtomicU32>) {
    let counter = Arc::new(AtomicU32::new(0));
    (counter.clone(), counter)
}

#[test]
fn a_quiesced_disk_drains_and_holds_and_a_resumed_one_serves() {
    let host = Host::new(1);
    let served = host.serve(&slow(memory_disk(MIB), 80), 1);
    let mut guest = Guest::start(&served, 1);
    let buffer = guest.buffer(512);
    for _ in 0..3 {
        for at in 0..8 {
            if at == 5 {
                std::thread::sleep(Duration::from_millis(30));
                served.device.quiesce(Box::new(|| {})).unwrap();
            }
            guest.queues[0].submit(Op::Write, at, &[buffer]).unwrap();
            guest.queues[0].commit().unwrap();
        }
        // What was taken is answered, and nothing else is taken.
        let used = guest.queues[0].ring().used_index();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(guest.queues[0].ring().used_index(), used, "drained");
        // Its VMM is answered all the same.
        guest.vmm.reload_config().unwrap();
        served.device.resume();
        for _ in 0..8 {
            assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
        }
    }
    assert_eq!(served.requests(), 24);
}

#[test]
fn a_load_only_pauses_while_its_disk_is_held() {
    let host = Host::new(2);
    let served = host.serve(&host.image("disk.raw", 8 * MIB), 2);
    let guest = Guest::start(&served, 2);
    let load = load(&guest, 16, false, &plan(8 * MIB, 31));
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(20));
        served.device.quiesce(Box::new(|| {})).unwrap();
        let before = served.requests();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(served.requests(), before, "served while held");
        served.device.resume();
    }
    assert_clean(load);
}

#[test]
fn a_restart_of_held_rings_is_reported() {
    let host = Host::new(1);
    let served = host.serve(&memory_disk(MIB), 1);
    let mut guest = Guest::start(&served, 1);
    let bases = guest.vmm.stop().unwrap();
    let (restarts, seen) = count();
    let hook = Box::new(move || {
        restarts.fetch_add(1, Ordering::SeqCst);
    });
    served.device.quiesce(hook).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    guest.vmm.start_at(&guest.device, &bases).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    served.device.resume();
    guest.write(0, 0, &[1; 512]);
    let bases = guest.vmm.stop().unwrap();
    guest.vmm.start_at(&guest.device, &bases).unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 1, "no more after a resume");
}

#[test]
fn a_disk_is_activated_by_the_first_request_and_not_by_a_start() {
    let host = Host::new(2);
    for polled in [false, true] {
        let name = format!("polled-{polled}");
        let served = host.serve_as(&name, &memory_disk(MIB), 2, Service::Held);
        let (calls, seen) = count();
        let hook = Box::new(move || {
            calls.fetch_add(1, Ordering::SeqCst);
            true
        });
        served.device.await_activation(hook).unwrap();
        // Every ring is kicked once, as VMMs do.
        let mut guest = Guest::start(&served, 2);
        if polled {
            let none = 0x101u64.to_ne_bytes();
            let answer = say(&mut guest.vmm, code::SET_VRING_KICK, &none, &[]);
            assert_eq!(answer, Answer::Done);
        }
        for queue in &guest.device.queues().to_vec() {
            queue.kick.write(1).unwrap();
        }
        std::thread::sleep(REST);
        assert_eq!(
            seen.load(Ordering::SeqCst),
            0,
            "a start is no request ({name})"
        );
        let buffer = guest.buffer(512);
        guest.queues[1].submit(Op::Write, 0, &[buffer]).unwrap();
        guest.queues[1].commit().unwrap();
        assert_eq!(finish(&mut guest.queues[1]).status, Status::Ok);
        guest.write(0, 0, &[1; 512]);
        assert_eq!(seen.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn what_waits_at_the_start_activates() {
    let host = Host::new(1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Held);
    let memory = GuestMemory::new(8 * MIB).unwrap();
    let silent = VmmOptions {
        kick_on_start: false,
        ..options()
    };
    let mut guest = Guest::ready(&served, &memory, 1, silent, QueueOptions::default());
    let buffer = guest.buffer(512);
    guest.queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    let _ = guest.device.queues()[0].kick.read();
    served.device.await_activation(Box::new(|| true)).unwrap();
    guest.vmm.start(&guest.device).unwrap();
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
}

#[test]
fn a_hook_that_says_no_keeps_the_requests_waiting() {
    let host = Host::new(1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Held);
    let (calls, seen) = count();
    let hook = Box::new(move || {
        calls.fetch_add(1, Ordering::SeqCst);
        false
    });
    served.device.await_activation(hook).unwrap();
    let mut guest = Guest::start(&served, 1);
    let buffer = guest.buffer(512);
    for _ in 0..3 {
        guest.queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
        guest.queues[0].commit().unwrap();
        guest.queues[0].kick().unwrap();
        assert_eq!(poll_for(&mut guest.queues[0], REST), None);
    }
    assert_eq!(seen.load(Ordering::SeqCst), 1, "asked once");
    assert_eq!(served.requests(), 0);
    served.device.resume();
    for _ in 0..3 {
        assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
    }
}

/// A hook that says yes after something else was decided opens nothing.
#[test]
fn an_activation_that_comes_too_late_opens_nothing() {
    let host = Host::new(1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Held);
    let slow_hook = Box::new(|| {
        std::thread::sleep(Duration::from_millis(100));
        true
    });
    served.device.await_activation(slow_hook).unwrap();
    let mut guest = Guest::start(&served, 1);
    let buffer = guest.buffer(512);
    guest.queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    served.device.quiesce(Box::new(|| {})).unwrap();
    assert_eq!(
        poll_for(&mut guest.queues[0], Duration::from_millis(200)),
        None
    );
    served.device.resume();
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
}

#[test]
fn held_rings_stop_and_start_at_once() {
    let host = Host::new(1);
    let served = host.serve_as("disk", &memory_disk(MIB), 1, Service::Held);
    let mut guest = Guest::start(&served, 1);
    let buffer = guest.buffer(512);
    guest.queues[0].submit(Op::Write, 0, &[buffer]).unwrap();
    guest.queues[0].commit().unwrap();
    let began = Instant::now();
    assert_eq!(guest.vmm.stop().unwrap(), [0], "nothing was taken");
    guest.vmm.start_at(&guest.device, &[0]).unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    served.device.resume();
    assert_eq!(finish(&mut guest.queues[0]).status, Status::Ok);
}

/// Moves the state of one device to another; the guest's rings stood at 5.
fn exported(host: &Host) -> (Vec<u8>, Guest) {
    let source = host.serve_as("source", &memory_disk(MIB), 2, Service::Open);
    let mut guest = Guest::start(&source, 2);
    for sector in 0..5 {
        guest.write(1, sector, &[1; 512]);
    }
    assert!(matches!(
        source.device.export(),
        Err(LifecycleError::Refused(_))
    ));
    assert_eq!(guest.vmm.stop().unwrap(), [0, 5]);
    (source.device.export().unwrap(), guest)
}

#[test]
fn an_imported_disk_serves_only_the_machine_it_came_with() {
    let host = Host::new(1);
    let (state, guest) = exported(&host);
    let target = host.serve_as("target", &memory_disk(MIB), 2, Service::Held);
    target.device.import(&state).unwrap();
    let (calls, seen) = count();
    let hook = Box::new(move || {
        calls.fetch_add(1, Ordering::SeqCst);
        true
    });
    target.device.await_activation(hook).unwrap();
    // Another machine, freshly started, with a request that waits.
    let memory = GuestMemory::new(8 * MIB).unwrap();
    let mut stranger = Guest::ready(&target, &memory, 2, options(), QueueOptions::default());
    let buffer = stranger.buffer(512);
    stranger.queues[1].submit(Op::Write, 0, &[buffer]).unwrap();
    stranger.queues[1].commit().unwrap();
    stranger.vmm.start(&stranger.device).unwrap();
    assert_eq!(
        poll_for(&mut stranger.queues[1], REST),
        None,
        "served a stranger"
    );
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    drop(stranger);
    // The machine itself, at its indices.
    let Guest {
        device,
        mut queues,
        memory,
        ..
    } = guest;
    let mut vmm = target.vmm();
    vmm.start_at(&device, &[0, 5]).unwrap();
    let data = ferry_bench::frontend::Segment {
        addr: memory.alloc(512, 512).unwrap(),
        len: 512,
    };
    let status = crate::rig::run(&mut queues[1], Op::Write, 9, &[data]);
    assert_eq!((status, seen.load(Ordering::SeqCst)), (Status::Ok, 1));
    // It has arrived: it may begin anew, as after a reboot.
    vmm.stop().unwrap();
    drop(vmm);
    let mut rebooted = Guest::start(&target, 2);
    rebooted.write(1, 0, &[2; 512]);
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let host = Host::new(1);
    let (state, _guest) = exported(&host);
    for (name, bytes, queues) in [("larger", 2 * MIB, 2), ("queues", MIB, 1)] {
        let target = host.serve_as(name, &memory_disk(bytes), queues, Service::Held);
        let refused = target.device.import(&state);
        assert!(
            matches!(refused, Err(LifecycleError::BadState(_))),
            "{name}"
        );
        target.device.resume();
        target.assert_serves();
    }
    let target = host.serve_as("target", &memory_disk(MIB), 2, Service::Held);
    for cut in [0, 1, state.len() / 2, state.len() - 1] {
        assert!(target.device.import(&state[..cut]).is_err(), "{cut} bytes");
    }
    for at in 0..state.len() {
        let mut bent = state.clone();
        bent[at] ^= 0x40;
        assert!(target.device.import(&bent).is_err(), "byte {at} changed");
    }
    // A machine that runs here from elsewhere is not the one that stopped there.
    let running = Guest::start(&target, 2);
    assert!(target.device.import(&state).is_err());
    drop(running);
    eventually("the import", || target.device.import(&state).is_ok());
}

/// Keeps what a disk is to get, as a daemon does.
#[derive(Default)]
struct Keeper(Mutex<Option<Qos>>);

impl QosKeeper for Keeper {
    fn qos(&self) -> Option<Qos> {
        self.0.lock().unwrap().clone()
    }

    fn take_qos(&self, qos: Qos) {
        *self.0.lock().unwrap() = Some(qos);
    }
}

#[test]
fn shares_and_credit_go_with_the_state() {
    let host = Host::new(1);
    let source = host.serve_as("source", &memory_disk(MIB), 1, Service::Held);
    let target = host.serve_as("target", &memory_disk(MIB), 1, Service::Held);
    let other = host.serve_as("other", &memory_disk(2 * MIB), 1, Service::Held);
    let (keeper, kept, untold) = <(Arc<Keeper>, Arc<Keeper>, Arc<Keeper>)>::default();
    target.device.keep_qos(kept.clone());
    other.device.keep_qos(untold.clone());
    // Of a disk that nothing was said of, or that nobody asks, nothing is said.
    let plain = source.device.export().unwrap();
    source.device.keep_qos(keeper.clone());
    assert_eq!(source.device.export().unwrap(), plain);
    target.device.import(&plain).unwrap();
    assert_eq!(kept.qos(), None);
    let mut qos = Qos {
        credit_ns: 5_000_000,
        group: Some("vm".into()),
        ..Qos::default()
    };
    qos.policy.limit_iops = Some(1000);
    keeper.take_qos(qos.clone());
    let state = source.device.export().unwrap();
    target.device.import(&state).unwrap();
    assert_eq!(kept.qos(), Some(qos.clone()));
    // What came without changes nothing; a state that is refused does not either.
    target.device.import(&plain).unwrap();
    assert_eq!(kept.qos(), Some(qos));
    assert!(other.device.import(&state).is_err());
    assert_eq!(untold.qos(), None);
}
