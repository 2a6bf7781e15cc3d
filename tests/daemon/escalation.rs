//! Machines that make no progress, and what is done about them.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::hook::Hook;
use crate::rig::{Guest, Host, MIB, PATIENCE, eventually, ferry, image, text};

/// Longer than a fault delay, and longer than anything that the daemon does in one of its turns.
const NO_MORE: Duration = Duration::from_millis(1200);

fn section(hook: &Hook, fault_delay: f64, more: &str) -> String {
    let path = hook.path();
    format!("[escalation]\nhook = {path:?}\nfault_delay = {fault_delay}\n{more}\n")
}

fn host(dir: &Path, sections: &str) -> Host {
    Host::with(dir, "a", "", sections)
}

fn vm(host: &Host, name: &str) -> Value {
    host.run(&["vm", "show", name]).ok()
}

fn events(host: &Host) -> Vec<Value> {
    let list = host.run(&["events"]).ok();
    list["events"].as_array().unwrap().clone()
}

#[test]
fn a_stalled_disk_is_three_restarts_and_one_call_for_help() {
    let dir = tempfile::tempdir().unwrap();
    let hook = Hook::new(dir.path(), "echo the hook has spoken");
    let vms = "[[vm]]\nname = \"web\"\ndisks = [\"d\", \"e\"]\n\
               [[disk]]\nid = \"e\"\npath = \"delay:60000:null:1M\"\n\
               [[disk]]\nid = \"d\"\npath = \"memory:1M\"";
    let host = host(dir.path(), &format!("{}{vms}", section(&hook, 0.4, "")));
    let mut well = Guest::at(&host.socket("d"));
    let mut stalled = Guest::at(&host.socket("e"));
    std::thread::sleep(NO_MORE);
    assert_eq!(hook.calls(), Vec::<String>::new(), "idle is no fault");
    assert!(stalled.read(Duration::ZERO).is_none());
    let calls = [
        "web restart 1",
        "web restart 2",
        "web restart 3",
        "web escalate 3",
    ];
    hook.called(&calls);
    // The other disk is served all the while, and says nothing about the one that is not.
    assert!(well.read(PATIENCE).is_some());
    let shown = vm(&host, "web");
    assert_eq!(shown["state"], "escalated", "{shown}");
    assert_eq!(shown["attempts"], 3, "{shown}");
    assert_eq!(shown["in_flight"], 1, "{shown}");
    assert_eq!(shown["disks"][0]["id"], "d", "in the order of the section");
    assert_eq!(shown["disks"][0]["in_flight"], 0, "{shown}");
    assert!(
        shown["disks"][1]["oldest_ms"].as_u64() > Some(1500),
        "{shown}"
    );
    std::thread::sleep(NO_MORE);
    hook.called(&calls);

    let report = hook.report("escalate3");
    assert_eq!(report["event"], "escalate");
    assert_eq!(report["vm"]["attempts"], 3);
    let (one, other) = (&report["disks"][0], &report["disks"][1]);
    assert_eq!(
        (one["id"].as_str(), other["id"].as_str()),
        (Some("d"), Some("e"))
    );
    for disk in [one, other] {
        assert_eq!(disk["phase"], "serving", "{report}");
        assert_eq!(disk["epoch"], 1, "{report}");
        assert_eq!(disk["attached"], true, "{report}");
        assert_eq!(disk["last_error"], Value::Null, "{report}");
    }
    let ages = &report["vm"]["disks"][1];
    assert_eq!(ages["in_flight"], 1, "{report}");
    assert!(ages["stalled_ms"].as_u64() > Some(1500), "{report}");
    let reason = report["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("disk e has completed nothing for "),
        "{reason}"
    );
    assert_eq!(report["migrations"]["disks"], Value::Array(Vec::new()));
    let told = report["events"].as_array().unwrap();
    let faults = told.iter().filter(|event| event["what"] == "fault").count();
    assert_eq!(faults, 4, "{report}");
    let environment = hook.environment("restart2");
    for line in [
        "FERRY_EVENT=restart",
        "FERRY_VM=web",
        "FERRY_ATTEMPT=2",
        "FERRY_REASON=disk e",
    ] {
        assert!(environment.contains(line), "{environment}");
    }
    let log = std::fs::read_to_string(host.dir.join("log")).unwrap();
    assert!(log.contains("the hook has spoken"), "{log}");
    // Its VMM goes, and the device waits for the disk: who asks does not wait with it.
    drop(stalled);
    eventually("nobody can say", || {
        vm(&host, "web")["disks"][1]["attached"] == Value::Null
    });
    assert_eq!(host.disk("d").unwrap()["attached"], true);
}

#[test]
fn heartbeats_that_stop_are_faults_and_those_that_never_came_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let hook = Hook::new(dir.path(), "");
    let (file, socket) = (dir.path().join("beat"), dir.path().join("beat.sock"));
    std::fs::write(&file, "of an earlier run").unwrap();
    let vms = format!(
        "restart_attempts = 1\n[[vm]]\nname = \"f\"\nheartbeat = \"file:{}\"\n\
         [[vm]]\nname = \"s\"\nheartbeat = \"socket:{}\"\n\
         [[vm]]\nname = \"never\"\nheartbeat = \"file:/nowhere/beat\"",
        file.display(),
        socket.display()
    );
    let host = host(dir.path(), &section(&hook, 0.5, &vms));
    let mut sender = UnixStream::connect(&socket).unwrap();
    std::thread::sleep(NO_MORE);
    assert_eq!(hook.calls(), Vec::<String>::new(), "nothing has beaten yet");
    let began = Instant::now();
    while began.elapsed() < NO_MORE {
        std::fs::write(&file, format!("{:?}", began.elapsed())).unwrap();
        sender.write_all(b".").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(hook.calls(), Vec::<String>::new(), "both beat");
    let list = host.run(&["vm", "list"]).ok();
    assert!(
        list["vms"][0]["heartbeat"]["age_ms"].as_u64() < Some(500),
        "{list}"
    );
    assert_eq!(list["vms"][2]["heartbeat"]["age_ms"], Value::Null);
    eventually("all four calls", || hook.calls().len() == 4);
    std::thread::sleep(NO_MORE);
    let of = |vm: &str| {
        let mut calls = hook.calls();
        calls.retain(|call| call.starts_with(vm));
        calls
    };
    assert_eq!(of("f"), ["f restart 1", "f escalate 1"]);
    assert_eq!(of("s"), ["s restart 1", "s escalate 1"]);
    assert_eq!(of("never"), Vec::<String>::new());
    assert!(
        hook.report("restart1")["reason"]
            .as_str()
            .unwrap()
            .starts_with("no heartbeat for")
    );
}

#[test]
fn a_machine_that_recovers_gets_its_attempts_back() {
    let dir = tempfile::tempdir().unwrap();
    let hook = Hook::new(dir.path(), "");
    let vms = "healthy_period = 1\n[[vm]]\nname = \"web\"\ndisks = [\"d\"]\nrestart_attempts = 2\n\
               [[disk]]\nid = \"d\"\npath = \"delay:700:null:1M\"";
    let host = host(dir.path(), &section(&hook, 0.5, vms));
    let mut guest = Guest::at(&host.socket("d"));
    // Slow once: a restart, and no second one as it went on.
    assert!(guest.read(PATIENCE).is_some());
    hook.called(&["web restart 1"]);
    eventually("it is recovering", || {
        vm(&host, "web")["state"] == "recovering"
    });
    eventually("it is healthy", || vm(&host, "web")["state"] == "healthy");
    assert_eq!(vm(&host, "web")["attempts"], 0);
    assert!(guest.read(PATIENCE).is_some());
    hook.called(&["web restart 1", "web restart 1"]);
    // And a third time before the healthy period is over: the attempts go on.
    assert!(guest.read(PATIENCE).is_some());
    hook.called(&["web restart 1", "web restart 1", "web restart 2"]);
}

#[test]
fn time_in_which_the_daemon_stood_still_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let hook = Hook::new(dir.path(), "");
    let vms = "[[vm]]\nname = \"web\"\ndisks = [\"d\"]\n\
               [[disk]]\nid = \"d\"\npath = \"delay:2500:null:1M\"";
    let host = host(dir.path(), &section(&hook, 1.2, vms));
    let mut guest = Guest::at(&host.socket("d"));
    assert!(guest.read(Duration::ZERO).is_none());
    eventually("it is seen", || vm(&host, "web")["in_flight"] == 1);
    host.signal("STOP");
    std::thread::sleep(Duration::from_secs(2));
    host.signal("CONT");
    eventually("it is served", || vm(&host, "web")["in_flight"] == 0);
    assert_eq!(hook.calls(), Vec::<String>::new());
    // The same wait, watched all the time, is one.
    assert!(guest.read(PATIENCE).is_some());
    hook.called(&["web restart 1"]);
}

#[test]
fn a_hook_that_hangs_is_killed_and_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("hook/pids");
    // The first time only, so that none is left behind.
    let hang = format!(
        "[ $FERRY_ATTEMPT = 1 ] || exit 0\nsleep 1000 &\necho $$ $! > {}\nwait",
        pids.display()
    );
    let hook = Hook::new(dir.path(), &hang);
    let vms = "hook_timeout = 2\n[[vm]]\nname = \"web\"\ndisks = [\"d\"]\n\
               [[disk]]\nid = \"d\"\npath = \"delay:60000:null:1M\"\n\
               [[disk]]\nid = \"other\"\npath = \"memory:1M\"";
    let host = host(dir.path(), &section(&hook, 0.3, vms));
    let mut stalled = Guest::at(&host.socket("d"));
    assert!(stalled.read(Duration::ZERO).is_none());
    hook.called(&["web restart 1"]);
    let began = Instant::now();
    let mut other = Guest::at(&host.socket("other"));
    assert!(other.read(PATIENCE).is_some());
    assert_eq!(vm(&host, "web")["hook_running"], true);
    assert!(
        began.elapsed() < Duration::from_millis(1500),
        "the daemon waits for the hook"
    );
    // No second one beside it, though its time has come.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(hook.calls(), ["web restart 1"]);
    let pids = std::fs::read_to_string(pids).unwrap();
    let killed = |event: &Value| {
        event["text"]
            .as_str()
            .unwrap()
            .contains("was killed after 2s")
    };
    eventually("it is killed", || events(&host).iter().any(killed));
    for pid in pids.split_whitespace() {
        // A child of it that is dead may wait for its new parent to notice.
        let alive = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => !stat.contains(") Z "),
            Err(_) => false,
        };
        eventually("all of its group is dead", || !alive());
    }
    eventually("the next attempt", || hook.calls().len() == 2);
}

#[test]
fn hooks_that_cannot_be_run_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("ferry.toml");
    let begin = |sections: &str| {
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        let places = format!("state_dir = {state:?}\nrun_dir = {run:?}\n");
        std::fs::write(&config, format!("{places}{sections}")).unwrap();
        ferry(&["daemon", "--json", "--config", text(&config)])
    };
    let escalation = |hook: &Path| format!("[escalation]\nhook = {hook:?}\n");
    let missing = dir.path().join("missing");
    begin(&escalation(&missing)).refused(&["missing", "cannot be run", "put it there"]);
    std::fs::write(&missing, "#!/bin/sh\n").unwrap();
    begin(&escalation(&missing)).refused(&["chmod +x"]);
    let of_one = format!("[[vm]]\nname = \"web\"\nhook = {missing:?}\n");
    begin(&of_one).refused(&["chmod +x"]);
    begin(&escalation(dir.path())).refused(&["no file"]);
    let error = begin(&escalation(Path::new("bin/hook"))).error(2);
    assert!(error.contains("absolute path"), "{error}");
    let error = begin("[[vm]]\nname = \"web\"\nheartbeat = \"/beat\"\n").error(2);
    assert!(error.contains("socket:/PATH"), "{error}");
    let busy = dir.path().join("beat.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&busy).unwrap();
    let taken = format!(
        "[[vm]]\nname = \"web\"\nheartbeat = \"socket:{}\"\n",
        busy.display()
    );
    begin(&taken).refused(&["beat.sock", "listens there already"]);
}

#[test]
fn disks_are_taken_up_after_those_they_need_or_say_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let vms = "[[vm]]\nname = \"web\"\ndisks = [\"first\", \"second\", \"third\"]\n\
               [[disk]]\nid = \"third\"\npath = \"memory:1M\"\n\
               [[disk]]\nid = \"second\"\npath = \"/nowhere/second.raw\"\n\
               [[disk]]\nid = \"first\"\npath = \"memory:1M\"\n\
               [[disk]]\nid = \"apart\"\npath = \"memory:1M\"";
    let host = host(dir.path(), vms);
    assert!(host.disk("first").is_some() && host.disk("apart").is_some());
    assert!(host.disk("second").is_none() && host.disk("third").is_none());
    let shown = vm(&host, "web");
    let ids = shown["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|disk| disk["id"].as_str().unwrap());
    assert_eq!(ids.collect::<Vec<_>>(), ["first", "second", "third"]);
    let problem = |at: usize| {
        shown["disks"][at]["problem"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(problem(0), "");
    assert!(problem(1).contains("/nowhere"), "{shown}");
    assert!(
        problem(2).contains("disk second, which comes before it"),
        "{shown}"
    );
    let said = |event: &&Value| matches!(event["what"].as_str(), Some("disk_up" | "disk_refused"));
    let order: Vec<_> = events(&host)
        .iter()
        .filter(said)
        .map(|event| event["disk"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(order, ["first", "second", "third", "apart"]);
    // Once it is mended, nothing is held against it.
    host.run(&["disk", "add", "third", "--path", "memory:1M"])
        .ok();
    assert_eq!(vm(&host, "web")["disks"][2]["problem"], Value::Null);
    let last = events(&host).pop().unwrap();
    assert_eq!(
        (last["what"].as_str(), last["disk"].as_str()),
        (Some("command"), Some("third"))
    );
}

#[test]
fn a_hook_is_told_of_a_takeover_and_inherits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let fds = dir.path().join("hook/fds");
    let hook = Hook::new(
        dir.path(),
        &format!("ls -l /proc/self/fd > {}.$FERRY_EVENT", fds.display()),
    );
    let vms = "[[vm]]\nname = \"web\"\ndisks = [\"d\"]";
    let host = host(dir.path(), &section(&hook, 5.0, vms));
    // What the hook is run with, besides what it opens itself.
    let try_out = |event: &str| {
        host.run(&["vm", "try-hook", "web", "--event", event]).ok();
        let done = |it: &Value| {
            let text = it["text"].as_str().unwrap();
            text.starts_with(event) && text.ends_with("the hook is done")
        };
        eventually("it has ended", || events(&host).iter().any(done));
        let listed = std::fs::read_to_string(fds.with_extension(event)).unwrap();
        let links = listed.lines().filter_map(|line| line.split_once(" -> "));
        let mut links: Vec<_> = links.map(|(_, to)| to.to_owned()).collect();
        links.retain(|to| !to.starts_with("pipe:") && !to.contains("/fd"));
        links.sort_unstable();
        links
    };
    // The tests' runner has left some open for everybody.
    let inherited = try_out("restart");
    image(&host.image(), MIB);
    host.add(&[]).ok();
    // With what a front-end brings: memory, eventfds, the region of what is in flight.
    Guest::at(&host.socket("d")).check();
    let _guest = Guest::at(&host.socket("d"));
    assert_eq!(try_out("takeover"), inherited, "a hook inherits");
    assert_eq!(hook.calls(), ["web restart 1", "web takeover"]);
    let environment = hook.environment("takeover");
    let socket = format!("FERRY_SOCKET={}", host.socket("d").display());
    for line in [
        "FERRY_EVENT=takeover",
        "FERRY_DISK=d",
        "FERRY_VM=web",
        "FERRY_EPOCH=1",
        "FERRY_TRIAL=1",
        &socket,
    ] {
        assert!(
            environment.lines().any(|it| it == line),
            "{line}: {environment}"
        );
    }
    let report = hook.report("takeover");
    assert_eq!(report["disk"], "d");
    assert_eq!(report["vm"]["name"], "web");
    assert_eq!(report["disks"][0]["path"], text(&host.image()));
}
