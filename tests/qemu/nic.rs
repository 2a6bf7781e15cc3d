//! NICs as guests see them.

use libtest_mimic::Trial;

use crate::ensure;
use crate::harness::daemon::Daemon;
use crate::harness::guest::{Guest, Machine, Nic};
use crate::harness::trial::with_qemu;
use crate::harness::wait::secs;
use crate::harness::{Check, TestDir};

pub fn trials() -> Vec<Trial> {
    with_qemu(&[
        ("nics_of_two_guests_on_a_switch", with_offloads),
        ("nics_of_a_guest_that_takes_no_offloads", without_offloads),
    ])
}

fn with_offloads(dir: &TestDir) -> Check {
    two_guests(dir, "")
}

/// What the other guest leaves to it is done by the switch.
fn without_offloads(dir: &TestDir) -> Check {
    let off = [
        "csum",
        "gso",
        "guest_csum",
        "guest_tso4",
        "guest_tso6",
        "guest_ecn",
        "guest_ufo",
    ];
    let off: String = off.iter().map(|name| format!(",{name}=off")).collect();
    two_guests(dir, &format!("{off},mrg_rxbuf=off"))
}

/// Two guests that talk by TCP through a switch; the second one's NIC has such properties.
fn two_guests(dir: &TestDir, properties: &str) -> Check {
    let daemon = Daemon::spawn(dir, "a", &[], "")?;
    daemon.expect(&["switch", "add", "lan"])?;
    let boot = |name: &str, properties: &str| {
        let socket = dir.path(format!("{name}.nic"));
        let words = ["nic", "add", name, "--switch", "lan", "--socket-path"];
        let nic = daemon.expect(&[&words[..], &[&socket.display().to_string()]].concat())?;
        let machine = Machine {
            queues: 1,
            nics: vec![Nic {
                socket,
                mac: nic["mac"].as_str().unwrap_or_default().to_owned(),
                properties: properties.to_owned(),
            }],
            ..Machine::default()
        };
        Guest::boot(dir, name, &machine, &[])
    };
    let mut near = boot("near", "")?;
    let mut far = boot("far", properties)?;
    near.expect("ifconfig eth0 10.7.0.1 netmask 255.255.255.0 up")?;
    far.expect("ifconfig eth0 10.7.0.2 netmask 255.255.255.0 up")?;
    near.expect("ping -c 3 -W 10 10.7.0.2")?;
    send(&mut near, &mut far, "10.7.0.2")?;
    send(&mut far, &mut near, "10.7.0.1")?;
    // After a while without a frame nobody looks at the rings any more.
    std::thread::sleep(secs(2));
    near.expect("ping -c 1 -W 10 10.7.0.2")?;
    let list = daemon.expect(&["nic", "list"])?;
    for nic in list["nics"].as_array().into_iter().flatten() {
        println!("{nic}");
        for cause in ["malformed", "spoofed", "too_large", "capture_lost"] {
            ensure!(nic["dropped"][cause] == 0, "{cause}: {nic}");
        }
    }
    Ok(())
}

/// Eight MiB, whole.
fn send(from: &mut Guest, to: &mut Guest, address: &str) -> Check {
    // It would hang up at the end of its own input.
    to.spawn_bg(
        "receive",
        "mkfifo -m 600 /tmp/hold; nc -l -p 5001 <>/tmp/hold | sha256sum",
    )?;
    let sent = from.expect(&format!(
        "dd if=/dev/urandom of=/tmp/sent bs=1M count=8 2>/dev/null; sha256sum </tmp/sent; \
         while ! nc {address} 5001 </tmp/sent; do usleep 100000; done"
    ))?;
    to.finish_bg("receive", secs(60))?;
    let received = to.bg_log("receive", 1)?;
    ensure!(
        sent.trim() == received.trim(),
        "sent {sent:?}, received {received:?}"
    );
    Ok(())
}
