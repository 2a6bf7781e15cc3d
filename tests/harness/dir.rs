//! A folder for one test, gone after it, and the logs in it.

use std::fs;
use std::path::{Path, PathBuf};

use super::Check;

const TAIL_LINES: usize = 40;

/// One test's folder. Short, since sockets live in it and a socket's path is
/// limited to 107 bytes.
pub struct TestDir {
    dir: tempfile::TempDir,
}

impl TestDir {
    /// Makes a new folder. `FERRY_KEEP=1` in the environment keeps it.
    pub fn new(name: &str) -> Check<Self> {
        let short: String = name.chars().take(24).collect();
        let mut dir = tempfile::Builder::new()
            .prefix(&format!("ferry-{short}-"))
            .tempdir()?;
        if std::env::var_os("FERRY_KEEP").is_some() {
            dir.disable_cleanup(true);
            println!("keeping {}", dir.path().display());
        }
        Ok(Self { dir })
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The last lines of every `*.log` file, oldest file first.
    pub fn log_tails(&self) -> String {
        let mut logs: Vec<PathBuf> = fs::read_dir(self.dir.path())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        logs.sort_by_key(|path| fs::metadata(path).and_then(|m| m.created()).ok());
        logs.iter().map(|path| tail(path)).collect()
    }
}

fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(
        "--- {name}, last of {} lines\n{}\n",
        lines.len(),
        lines[from..].join("\n")
    )
}
