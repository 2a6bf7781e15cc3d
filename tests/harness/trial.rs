//! Trials: tests with a name, what they need, and what is shown when one fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Instant;

use libtest_mimic::{Failed, Trial};

use super::network;
use super::process::find_program;
use super::{Check, TestDir};

/// Older QEMUs have no `reconnect-ms` and another order of events.
const QEMU_MAJOR_MIN: u32 = 10;

/// A test: its name and what it does in its folder.
pub type Test = (&'static str, fn(&TestDir) -> Check);

/// Makes trials of tests that need QEMU. Where it is missing they are skipped,
/// each with a line that says so, but for CI, where they fail.
pub fn with_qemu(tests: &[Test]) -> Vec<Trial> {
    unless(missing(), tests)
}

/// The same for tests that need networks of their own as well.
pub fn with_networks(tests: &[Test]) -> Vec<Trial> {
    unless(missing().or_else(network::missing), tests)
}

/// Whether what is skipped elsewhere is a failure.
pub fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

fn unless(missing: Option<String>, tests: &[Test]) -> Vec<Trial> {
    let in_ci = in_ci();
    tests
        .iter()
        .map(|&(name, test)| match (&missing, in_ci) {
            (None, _) => Trial::test(name, move || run(name, test)),
            (Some(reason), false) => {
                eprintln!("SKIPPED {name}: {reason}");
                Trial::test(name, || Ok(())).with_ignored_flag(true)
            }
            (Some(reason), true) => {
                let reason = reason.clone();
                Trial::test(name, move || {
                    Err(Failed::from(format!("in CI, and {reason}")))
                })
            }
        })
        .collect()
}

/// Tests that take long; only `tests/run --long` knows them.
pub fn long(tests: &[Test]) -> Vec<Trial> {
    if is_long() {
        with_qemu(tests)
    } else {
        Vec::new()
    }
}

/// Whether the long tests are asked for.
pub fn is_long() -> bool {
    std::env::var_os("FERRY_LONG").is_some()
}

fn missing() -> Option<String> {
    for program in [
        "qemu-system-x86_64",
        "qemu-storage-daemon",
        "busybox",
        "cpio",
        "mkfs.ext4",
    ] {
        if find_program(program).is_none() {
            return Some(format!("{program} is missing (tests/setup installs it)"));
        }
    }
    let version = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = text
        .split("version ")
        .nth(1)
        .and_then(|rest| rest.split('.').next());
    match major.and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major >= QEMU_MAJOR_MIN => None,
        _ => Some(format!(
            "QEMU {QEMU_MAJOR_MIN} or newer is needed (tests/setup installs it)"
        )),
    }
}

fn run(name: &str, test: fn(&TestDir) -> Check) -> Result<(), Failed> {
    let start = Instant::now();
    let dir = TestDir::new(name)?;
    // A panic is a failure as any other: the logs are wanted then, too.
    let result = catch_unwind(AssertUnwindSafe(|| test(&dir)));
    println!("{name}: {:.1} s", start.elapsed().as_secs_f64());
    let words = match result {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(failure)) => failure.to_string(),
        Err(panic) => match panic.downcast_ref::<String>() {
            Some(words) => format!("panicked: {words}"),
            None => format!("panicked: {:?}", panic.downcast_ref::<&str>()),
        },
    };
    Err(Failed::from(format!("{words}\n\n{}", dir.log_tails())))
}
