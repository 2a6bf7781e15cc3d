//! Which monitor commands a peer may have run.
//!
//! A migration needs six. Everything else a monitor can do (hot-plug, dump memory, quit) is none of
//! a peer's business, and of the six `migrate-incoming` could start a program or open a file by its
//! address, so only sockets pass. What is checked is what is sent: the command is parsed and
//! printed again, so two readings of one text cannot differ.

use std::path::Path;

use serde_json::Value;

use crate::codec::QMP_BYTES_MAX;

/// Commands that may pass.
pub const ALLOWED: [&str; 6] = [
    "query-status",
    "query-migrate",
    "migrate-set-capabilities",
    "migrate-set-parameters",
    "migrate-incoming",
    "cont",
];

/// Whether a peer may have this command run.
pub fn qmp_allowed(command: &str) -> bool {
    checked(command).is_ok()
}

/// The command as it may be sent to the monitor, or why not.
pub fn checked(command: &str) -> Result<String, String> {
    if command.len() > QMP_BYTES_MAX {
        return Err(format!(
            "a monitor command has at most {QMP_BYTES_MAX} bytes"
        ));
    }
    let parsed: Value = serde_json::from_str(command)
        .map_err(|error| format!("the monitor command is not JSON: {error}"))?;
    let Value::Object(fields) = &parsed else {
        return Err("the monitor command is not a JSON object".into());
    };
    if let Some(extra) = fields
        .keys()
        .find(|k| !matches!(k.as_str(), "execute" | "arguments" | "id"))
    {
        return Err(format!(
            "the monitor command has a field {extra:?}, which is not passed on"
        ));
    }
    let name = fields
        .get("execute")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !ALLOWED.contains(&name) {
        return Err(format!(
            "the monitor command {name:?} is not passed on; these are: {}",
            ALLOWED.join(", ")
        ));
    }
    if name == "migrate-incoming" {
        tcp_only(fields.get("arguments"))?;
    }
    Ok(parsed.to_string())
}

/// TCP alone: `exec:` would run a program here, and for `unix:` QEMU removes whatever file is at the
/// path that the peer names.
fn tcp_only(arguments: Option<&Value>) -> Result<(), String> {
    let refuse = || Err("migrate-incoming is passed on for tcp: addresses only".into());
    let Some(Value::Object(arguments)) = arguments else {
        return refuse();
    };
    for (key, value) in arguments {
        let plain = match key.as_str() {
            "uri" => value.as_str().is_some_and(|u| u.starts_with("tcp:")),
            "channels" => value
                .as_array()
                .is_some_and(|list| list.iter().all(is_tcp_channel)),
            "exit-on-error" => value.is_boolean(),
            _ => false,
        };
        if !plain {
            return refuse();
        }
    }
    Ok(())
}

fn is_tcp_channel(channel: &Value) -> bool {
    let address = &channel["addr"];
    address["transport"] == "socket" && address["type"] == "inet"
}

/// Checks a socket path that a peer named: absolute, and without a way up.
pub fn checked_socket(socket: &str) -> Result<&Path, String> {
    let path = Path::new(socket);
    let plain = path.is_absolute() && !socket.split('/').any(|part| part == "..");
    if plain && socket.len() < 108 && !socket.contains('\0') {
        return Ok(path);
    }
    Err("the monitor's socket must be an absolute path of at most 107 bytes without \"..\"".into())
}

#[cfg(test)]
mod tests;
