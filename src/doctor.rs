//! `ferry doctor`: what this host lacks, what of a configuration is against good practice, and what to
//! do about either. It changes nothing, and asks no daemon.

mod host;

use std::path::Path;

use serde_json::json;

use crate::cli::show;
use crate::config::{Config, DiskConfig, default_run_dir, default_state_dir};
use crate::error::{Done, Failure};
use crate::output;
use crate::qos::lint::{Finding, Level};
use crate::qos::picture;

/// Where a daemon's configuration is by custom.
const CONFIG: &str = "/etc/ferry/ferry.toml";

/// Looks at all of it; an error when something makes serving impossible.
pub fn run(config: Option<&Path>) -> Done {
    let custom = Path::new(CONFIG);
    let path = config.or_else(|| custom.exists().then_some(custom));
    let (config, mut findings) = match path.map(Config::load) {
        None => (None, vec![no_config()]),
        Some(Ok(config)) => (Some(config), Vec::new()),
        Some(Err(error)) => {
            let about = path.unwrap_or(custom).display();
            let mend = "mend it as it says; a daemon does not start with it";
            let found = Finding::new(Level::Error, "configuration", about, error, Some(mend));
            (None, vec![found])
        }
    };
    let run_dir = config.as_ref().map(|it| it.run_dir.clone());
    let state_dir = config.as_ref().map(|it| it.state_dir.clone());
    findings.extend(host::look(&host::Wanted {
        run_dir: run_dir.unwrap_or_else(default_run_dir),
        state_dir: state_dir.unwrap_or_else(default_state_dir),
        group: config.as_ref().and_then(|it| it.group.clone()),
        disks: config.as_ref().map_or(0, |it| it.disks.len()),
        pins_memory: config
            .as_ref()
            .is_some_and(|it| it.disks.iter().any(|disk| disk.pin_guest_memory)),
        taps: config
            .as_ref()
            .is_some_and(|it| !it.nics.is_empty() || !it.switches.is_empty()),
    }));
    if let (Some(config), Some(path)) = (&config, path) {
        let judged = picture::judge(config);
        let well = Finding::new(
            Level::Ok,
            "configuration",
            path.display(),
            "it can be used",
            None,
        );
        findings.push(well);
        findings.extend(config.disks.iter().filter_map(image));
        findings.extend(judged);
    }
    tell(&findings)
}

/// An image that is not there keeps its disk from being served, and no other.
fn image(disk: &DiskConfig) -> Option<Finding> {
    let path = disk.path.path()?;
    if disk.incoming || path.exists() {
        return None;
    }
    let about = format!("disk {}", disk.id);
    let found = format!(
        "there is nothing at {}, or it cannot be reached",
        path.display()
    );
    let mend = "make it (ferry disk create), mount what it is on, or correct path; incoming = true if it \
                is moved here";
    Some(Finding::new(
        Level::Warning,
        "image",
        about,
        found,
        Some(mend),
    ))
}

fn no_config() -> Finding {
    let found = "there is none, and none was given: only the host is looked at";
    let mend = "ferry doctor --config FILE";
    Finding::new(Level::Note, "configuration", CONFIG, found, Some(mend))
}

fn tell(findings: &[Finding]) -> Done {
    let count = |level| findings.iter().filter(|it| it.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let said = json!({ "findings": findings, "errors": errors, "warnings": warnings });
    show(&said, |_| {
        let rows = findings.iter().map(|it| {
            let mut text = it.found.clone();
            if let Some(mend) = &it.mend {
                text = format!("{text}\n  -> {mend}");
            }
            vec![it.level.name().into(), it.about.clone(), text]
        });
        output::table(&["", "WHAT", "FOUND"], rows.collect())
    });
    match errors {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!(
            "nothing can be served here: {errors} error(s) and {warnings} warning(s), see above"
        ))),
    }
}

/// Says in the log what of a configuration is against good practice.
pub fn warn(config: &Config) {
    for Finding {
        level,
        check,
        about,
        found,
        mend,
    } in picture::judge(config)
    {
        let mend = mend.unwrap_or_default();
        match level {
            Level::Warning | Level::Error => {
                tracing::warn!(check, about, mend, "configuration: {found}");
            }
            _ => tracing::info!(check, about, mend, "configuration: {found}"),
        }
    }
}
