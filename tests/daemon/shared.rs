//! Two daemons on one datastore: moves without a copy, leases, takeovers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::hook::program;
use crate::rig::{Guest, Host, MIB, eventually, image, text};

/// Long enough for a lease to run out and a takeover to follow, had there been one.
const A_WHILE: Duration = Duration::from_millis(2500);

struct Shared {
    a: Host,
    b: Host,
    image: PathBuf,
    dir: tempfile::TempDir,
}

impl Shared {
    /// Disk `d` is A's, and B waits.
    fn new(fence: &str) -> Shared {
        Shared::with(fence, "")
    }

    /// The same, with more configuration.
    fn with(fence: &str, more: &str) -> Shared {
        let dir = tempfile::tempdir().unwrap();
        let datastore = dir.path().join("datastore");
        fs::create_dir(&datastore).unwrap();
        let more = format!("{}{more}", section(&datastore, fence));
        let a = Host::with(dir.path(), "a", "", &more);
        let b = Host::with(dir.path(), "b", "", &more);
        let path = datastore.join("d.raw");
        image(&path, MIB);
        let shared = Shared {
            a,
            b,
            image: path,
            dir,
        };
        shared.a.add_as("d", &shared.image, &["--shared"]).ok();
        shared.wait(&shared.b);
        shared
    }

    fn wait(&self, host: &Host) {
        let words = ["--shared", "--incoming"];
        host.add_as("d", &self.image, &words).ok();
    }
}

/// With leases that a test can wait for.
fn section(datastore: &Path, fence: &str) -> String {
    format!(
        "[[datastore]]\npath = {datastore:?}\nfence = \"{fence}\"\nlease_ms = 500\nio_ms = 100\n"
    )
}

fn lease(host: &Host) -> Value {
    host.run(&["lease", "show", "d"]).ok()["leases"][0].clone()
}

#[track_caller]
fn wait_lease(host: &Host, state: &str) -> Value {
    let mut line = Value::Null;
    eventually(&format!("the lease is {state}"), || {
        line = lease(host);
        line["lease"] == state
    });
    line
}

#[test]
fn shared_disk_moves_without_a_copy() {
    let shared = Shared::new("none");
    let Shared { a, b, image, .. } = &shared;
    let guest = a.guest();
    a.copy_to(b);
    let mut guest = guest.goes_on_at(&b.socket("d"));
    guest.check();
    a.wait_phase("moved");
    assert_eq!(b.phase(), "serving");
    assert!(image.exists(), "the image was set aside");
    let status = a.run(&["migrate", "status"]).ok();
    assert_eq!(status["disks"][0]["bytes_sent"], 0, "{status}");
    assert_eq!(wait_lease(b, "held")["epoch"], 2);
    assert_eq!(wait_lease(a, "elsewhere")["epoch"], 2);
    // And back, after which neither restart changes anything.
    b.copy_to(a);
    let mut guest = guest.goes_on_at(&a.socket("d"));
    guest.check();
    b.wait_phase("moved");
    let Shared { mut a, mut b, .. } = shared;
    b.restart();
    assert_eq!(b.phase(), "moved");
    a.restart();
    assert_eq!(a.phase(), "serving");
    Guest::at(&a.socket("d")).check();
}

#[test]
fn shared_disk_is_handed_back() {
    let shared = Shared::new("none");
    let (a, b) = (&shared.a, &shared.b);
    let mut guest = a.guest();
    a.copy_to(b);
    let bases = guest.stop();
    a.run(&["migrate", "release", "d"]).ok();
    assert_eq!(b.phase(), "granted");
    guest.resume(&bases);
    guest.check();
    assert_eq!(
        (a.phase(), b.phase()),
        ("serving".into(), "returned".into())
    );
    assert_eq!(wait_lease(a, "held")["epoch"], 3);
    // What was returned is not what is served: another move is another claim.
    a.copy_to(b);
    guest.goes_on_at(&b.socket("d")).check();
    assert_eq!(wait_lease(b, "held")["epoch"], 4);
}

#[test]
fn shared_image_is_refused_to_all_but_its_owner() {
    let shared = Shared::new("none");
    let (b, path) = (&shared.b, text(&shared.image));
    b.run(&["disk", "remove", "d"]).ok();
    b.add_as("d", &shared.image, &[]).refused(&["--shared"]);
    b.add_as("d", &shared.image, &["--shared"]).refused(&[
        "epoch 1",
        &shared.a.peer(),
        "--incoming",
    ]);
    let socket = shared.dir.path().join("serve.sock");
    crate::rig::ferry(&["serve", path, "--socket-path", text(&socket), "--json"])
        .refused(&["hosts share"]);
    let own = shared.dir.path().join("own.raw");
    image(&own, MIB);
    b.add_as("own", &own, &[]).ok();
    b.run(&["disk", "remove", "own"]).ok();
    b.add_as("own", &own, &["--shared"])
        .refused(&["a disk of one host"]);
}

#[test]
fn shared_disk_of_a_killed_host_is_taken_over() {
    let Shared {
        mut a,
        b,
        dir: _dir,
        ..
    } = Shared::new("lock-coherent");
    let _guest = a.guest();
    // The VM starts there when its disk does.
    let mut fresh = Guest::at(&b.socket("d"));
    assert!(fresh.read(A_WHILE).is_none(), "two hosts serve");
    a.kill();
    fresh.check();
    assert_eq!(b.phase(), "serving");
    assert_eq!(wait_lease(&b, "held")["epoch"], 2);
    // Who comes back finds out before it serves.
    a.start();
    assert_eq!(a.phase(), "taken over");
    let mut late = Guest::at(&a.socket("d"));
    assert!(late.read(A_WHILE).is_none(), "two hosts serve");
    fresh.check();
    // And takes over in its turn.
    drop(fresh);
    let mut b = b;
    b.kill();
    late.check();
    assert_eq!(wait_lease(&a, "held")["epoch"], 3);
}

#[test]
fn shared_disk_is_not_taken_over_without_a_fence() {
    let Shared {
        mut a,
        b,
        dir: _dir,
        ..
    } = Shared::new("none");
    let owner = lease(&a)["owner"].as_str().unwrap().to_owned();
    let wrong = lease(&b)["disk"].as_str().unwrap().to_owned();
    b.run(&["lease", "break", "d", "--fenced", &owner])
        .refused(&["has renewed its lease"]);
    a.kill();
    wait_lease(&b, "over");
    std::thread::sleep(A_WHILE);
    assert_eq!(b.phase(), "vacant");
    b.run(&["lease", "break", "d", "--fenced", &wrong])
        .refused(&["its owner is daemon", &owner]);
    b.run(&["lease", "break", "d", "--fenced", &owner]).ok();
    assert_eq!(b.phase(), "serving");
    Guest::at(&b.socket("d")).check();
    a.start();
    assert_eq!(a.phase(), "taken over");
}

#[test]
fn shared_disk_of_a_stopped_host_waits_for_its_lock() {
    let shared = Shared::new("lock-coherent");
    let (a, b) = (&shared.a, &shared.b);
    let mut guest = a.guest();
    a.signal("STOP");
    wait_lease(b, "over");
    // The process keeps what it may still write to.
    std::thread::sleep(A_WHILE);
    assert_ne!(b.phase(), "serving");
    a.signal("CONT");
    guest.check();
    wait_lease(a, "held");
    wait_lease(b, "elsewhere");
    assert_eq!(lease(a)["epoch"], 1);
}

/// A command that says no until it is told otherwise.
struct Fence {
    dir: tempfile::TempDir,
}

impl Fence {
    fn new() -> Fence {
        let fence = Fence {
            dir: tempfile::tempdir().unwrap(),
        };
        let script = format!(
            "#!/bin/sh\necho \"$FERRY_DISK $FERRY_OWNER $FERRY_ADDRESS\" >>{}\nexit $(cat {})\n",
            text(&fence.file("said")),
            text(&fence.file("verdict"))
        );
        program(&fence.file("fence"), &script);
        fence.says(1);
        fence
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn setting(&self) -> String {
        format!("command:{}", text(&self.file("fence")))
    }

    fn says(&self, verdict: u8) {
        fs::write(self.file("verdict"), verdict.to_string()).unwrap();
    }

    /// Waits until it was run for disk `d` of that owner.
    fn wait_asked(&self, owner: &str, at: &Host) {
        let said = || fs::read_to_string(self.file("said")).unwrap_or_default();
        eventually("the fence is asked", || said().ends_with('\n'));
        let words = said();
        let wanted = format!("d {owner} {}", at.peer());
        assert!(words.starts_with(&wanted), "{words}");
    }
}

#[test]
fn fence_command_is_asked_first() {
    let fence = Fence::new();
    let Shared {
        mut a,
        b,
        dir: _dir,
        ..
    } = Shared::new(&fence.setting());
    let owner = lease(&a)["owner"].as_str().unwrap().to_owned();
    a.kill();
    fence.wait_asked(&owner, &a);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(b.phase(), "vacant", "taken over though the fence said no");
    fence.says(0);
    b.wait_phase("serving");
    Guest::at(&b.socket("d")).check();
}

/// B has died between its claim and its record, and is back; and A, from which it took the disk.
fn unrecorded(fence: &Fence) -> (Shared, String) {
    let mut shared = Shared::new(&fence.setting());
    let owner = lease(&shared.a)["owner"].as_str().unwrap().to_owned();
    shared.b.kill();
    let claims = shared.image.parent().unwrap().join(".ferry");
    let disk = lease(&shared.a)["disk"].as_str().unwrap().to_owned();
    let id = fs::read_to_string(shared.b.dir.join("state/daemon-id")).unwrap();
    let claim = fs::read_to_string(claims.join(format!("{disk}.1"))).unwrap();
    let claim = claim.replace(&owner, id.trim());
    fs::write(claims.join(format!("{disk}.2")), claim).unwrap();
    shared.a.wait_phase("taken over");
    shared.b.start();
    fence.wait_asked(&owner, &shared.a);
    (shared, owner)
}

/// It does not know whether the owner that it had turned off was back before the claim.
#[test]
fn owner_is_fenced_again_for_a_claim_that_was_not_recorded() {
    let fence = Fence::new();
    let (shared, _) = unrecorded(&fence);
    std::thread::sleep(Duration::from_millis(500));
    assert_ne!(shared.b.phase(), "serving", "though the fence said no");
    fence.says(0);
    shared.b.wait_phase("serving");
    assert_eq!(lease(&shared.b)["epoch"], 2);
    Guest::at(&shared.b.socket("d")).check();
}

#[test]
fn a_persons_word_ends_a_takeover_whose_fence_says_no() {
    let fence = Fence::new();
    let (shared, owner) = unrecorded(&fence);
    let other = "00000000-0000-4000-8000-000000000000";
    let words = ["lease", "break", "d", "--fenced", other];
    shared
        .b
        .run(&words)
        .refused(&["its owner is daemon", &owner]);
    let words = ["lease", "break", "d", "--fenced", &owner];
    // The fence may be asked at the moment.
    eventually("the word is taken", || shared.b.run(&words).code == Some(0));
    shared.b.wait_phase("serving");
    Guest::at(&shared.b.socket("d")).check();
}

#[test]
fn of_two_contenders_one_takes_over() {
    let Shared {
        mut a,
        b,
        image,
        dir,
    } = Shared::new("lock-coherent");
    // It calls the datastore something else, and finds the same claims.
    let c = Host::with(dir.path(), "c", "", &section(dir.path(), "lock-coherent"));
    c.add_as("d", &image, &["--shared", "--incoming"]).ok();
    a.kill();
    let serving = || [&b, &c].map(|host| host.phase() == "serving");
    eventually("one takes over", || serving() != [false, false]);
    std::thread::sleep(A_WHILE);
    assert_ne!(serving(), [true, true], "both took over");
    assert_ne!(serving(), [false, false]);
    let claims = fs::read_dir(image.parent().unwrap().join(".ferry")).unwrap();
    let disk = lease(&b)["disk"].as_str().unwrap().to_owned();
    let names = claims.flatten().map(|it| it.file_name());
    let mut names: Vec<_> = names.filter_map(|it| it.into_string().ok()).collect();
    names.retain(|name| name.starts_with(&disk));
    names.sort();
    let wanted = ["1", "2", "2.settled"].map(|epoch| format!("{disk}.{epoch}"));
    assert_eq!(names, wanted, "an epoch was claimed for nothing");
}

#[test]
fn host_that_cannot_renew_stops_serving() {
    let shared = Shared::new("none");
    let (a, datastore) = (&shared.a, shared.image.parent().unwrap());
    let mut guest = a.guest();
    guest.check();
    let lapsed = |wanted| a.disk("d").is_some_and(|disk| disk["lapsed"] == wanted);
    eventually("it is served", || lapsed(false));
    // The datastore is gone, as far as the lease goes.
    let (claims, away) = (datastore.join(".ferry"), datastore.join("away"));
    fs::rename(&claims, &away).unwrap();
    eventually("it stops serving", || lapsed(true));
    assert!(guest.read(A_WHILE).is_none(), "served without a lease");
    assert_eq!(a.phase(), "serving");
    fs::rename(&away, &claims).unwrap();
    wait_lease(a, "held");
    guest.wait_any();
}

#[test]
fn destination_that_dies_granted_does_not_keep_the_disk() {
    let Shared {
        a,
        mut b,
        dir: _dir,
        ..
    } = Shared::new("lock-coherent");
    let mut guest = a.guest();
    a.copy_to(&b);
    let bases = guest.stop();
    a.run(&["migrate", "release", "d"]).ok();
    assert_eq!(b.phase(), "granted");
    b.kill();
    // The datastore is the witness that the link is not.
    guest.resume(&bases);
    guest.check();
    assert_eq!(a.phase(), "serving");
    assert_eq!(wait_lease(&a, "held")["epoch"], 3);
    b.start();
    assert_eq!(b.phase(), "taken over");
}

#[test]
fn released_disk_is_claimed_back_when_the_link_is_gone() {
    let Shared {
        a,
        mut b,
        dir: _dir,
        ..
    } = Shared::new("none");
    let mut guest = a.guest();
    a.copy_to(&b);
    let bases = guest.stop();
    // The grant reaches its host, and not its process.
    b.signal("STOP");
    std::thread::scope(|scope| {
        let release = scope.spawn(|| a.run(&["migrate", "release", "d"]));
        a.wait_phase("released");
        guest.resume(&bases);
        guest.wait_served(Duration::from_secs(40));
        let _ = release.join();
    });
    assert_eq!(a.phase(), "serving");
    assert_eq!(lease(&a)["epoch"], 3);
    b.signal("CONT");
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(b.phase(), "granted", "a grant that came late was honoured");
    assert_ne!(b.phase(), "serving");
    guest.check();
    b.restart();
    assert_ne!(b.phase(), "granted");
}

/// So that an operator's script starts the VM where its disk is now.
#[test]
fn a_takeover_runs_the_hook() {
    let dir = tempfile::tempdir().unwrap();
    let (hook, said) = (dir.path().join("hook"), dir.path().join("said"));
    let words = "$FERRY_EVENT $FERRY_DISK $FERRY_VM $FERRY_EPOCH $FERRY_FROM $FERRY_SOCKET";
    let script = format!("#!/bin/sh\necho {words} >>{}\n", text(&said));
    program(&hook, &script);
    let more = format!("[escalation]\nhook = {hook:?}\n[[vm]]\nname = \"web\"\ndisks = [\"d\"]\n");
    let shared = Shared::with("lock-coherent", &more);
    let Shared { mut a, b, .. } = shared;
    a.kill();
    b.wait_phase("serving");
    eventually("the hook is run", || said.exists());
    let words = fs::read_to_string(&said).unwrap();
    let socket = b.socket("d");
    let wanted = format!("takeover d web 2 {} {}\n", a.peer(), text(&socket));
    assert_eq!(words, wanted);
    let events = b.run(&["events"]).ok();
    assert!(events.to_string().contains("takeover"), "{events}");
}
