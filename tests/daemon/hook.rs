//! Programs of an operator's, for the daemon to run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::rig::{eventually, text};

/// A hook that writes down what it was told, in a directory of its own.
pub struct Hook {
    dir: PathBuf,
}

impl Hook {
    /// `more` is done after that.
    pub fn new(dir: &Path, more: &str) -> Hook {
        let dir = dir.join("hook");
        std::fs::create_dir(&dir).unwrap();
        let hook = Hook { dir };
        let said = hook.dir.display();
        let script = format!(
            "#!/bin/sh\n\
             cp \"$FERRY_REPORT\" {said}/report.$FERRY_EVENT$FERRY_ATTEMPT\n\
             env | grep ^FERRY_ | sort > {said}/env.$FERRY_EVENT$FERRY_ATTEMPT\n\
             echo $FERRY_VM $FERRY_EVENT $FERRY_ATTEMPT >> {said}/calls\n{more}\n"
        );
        program(&hook.path(), &script);
        hook
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn calls(&self) -> Vec<String> {
        let calls = std::fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Waits for just these calls.
    #[track_caller]
    pub fn called(&self, calls: &[&str]) {
        eventually(&format!("{calls:?}"), || self.calls().len() >= calls.len());
        assert_eq!(self.calls(), calls);
    }

    pub fn report(&self, event: &str) -> Value {
        let text = std::fs::read(self.dir.join(format!("report.{event}"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub fn environment(&self, event: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("env.{event}"))).unwrap()
    }
}

/// Written by another process: one that is forked from this one meanwhile would keep the file open
/// for writing for a moment, and what is open so cannot be run.
pub fn program(path: &Path, script: &str) {
    let mut shell = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod +x \"$0\"", text(path)])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = shell.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(shell.wait().unwrap().success());
}
