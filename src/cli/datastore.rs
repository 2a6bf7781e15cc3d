//! `ferry datastore`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{cell, show};
use crate::control::Client;
use crate::error::{Done, Failure};
use crate::output;
use crate::qos::datastore::DatastoreQos;

/// What may be done with datastores.
#[derive(Subcommand)]
pub enum DatastoreCommand {
    /// The datastores, how they are steered, and how they do.
    List,
    /// Change how a datastore is steered, while its disks are served. What is not given stays.
    Set {
        /// Its directory, or a block device.
        path: PathBuf,
        #[command(flatten)]
        qos: DatastoreQos,
    },
}

/// Carries it out.
pub fn run(command: DatastoreCommand, client: &mut Client) -> Done {
    match command {
        DatastoreCommand::List => show(&client.call("datastore.list", json!({}))?, table),
        DatastoreCommand::Set { path, qos } => {
            // The daemon has a working directory of its own.
            let path = std::path::absolute(path)?;
            if qos.is_empty() {
                return Err(Failure::Usage(format!(
                    "datastore {}: say what to set: --sioc, --medium, --threshold-ms, \
                     --stats-period-ms, --unmanaged, --cost or --divide",
                    path.display()
                )));
            }
            let mut asked = serde_json::to_value(&qos)?;
            asked["path"] = json!(path);
            let line = client.call("datastore.set", asked)?;
            show(&line, |line| {
                let path = cell(&line["path"]);
                let mut text = if line["lasting"] == true {
                    format!("datastore {path} is set so, also after a restart")
                } else {
                    format!(
                        "datastore {path} is set so until the daemon starts again; its section of the \
                         configuration says otherwise: change it there as well"
                    )
                };
                if line["medium_said"] == false {
                    let medium = cell(&line["medium"]);
                    text += &format!(
                        "\nits medium is taken for {medium}, as nobody said it: --medium fc|sas|sata|ssd|nvme"
                    );
                }
                text
            });
        }
    }
    Ok(())
}

fn table(list: &Value) -> String {
    let rows = list["datastores"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| {
            let supposed = if it["medium_said"] == true {
                ""
            } else {
                " (?)"
            };
            let threshold = match &it["threshold_ms"] {
                Value::String(word) => format!("{} ({word})", ms(&it["threshold_ms_now"])),
                number => ms(number),
            };
            let disks = it["disks"].as_array().map_or(0, Vec::len);
            vec![
                cell(&it["path"]),
                cell(&it["sioc"]),
                format!("{}{supposed}", cell(&it["medium"])),
                threshold,
                cell(&it["state"]),
                ms(&it["latency_ms"]),
                number(&it["window"]),
                cell(&it["hosts"]),
                disks.to_string(),
            ]
        });
    let header = [
        "DATASTORE",
        "SIOC",
        "MEDIUM",
        "THRESHOLD",
        "STATE",
        "LATENCY",
        "WINDOW",
        "HOSTS",
        "DISKS",
    ];
    output::table(&header, rows.collect())
}

fn ms(value: &Value) -> String {
    value.as_f64().map_or("-".into(), |ms| {
        format!("{} ms", (ms * 100.0).round() / 100.0)
    })
}

fn number(value: &Value) -> String {
    value
        .as_f64()
        .map_or("-".into(), |number| format!("{number:.1}"))
}
