use super::*;

#[test]
fn only_what_a_migration_needs_passes() {
    for good in [
        r#"{"execute":"query-status"}"#,
        r#"{"execute":"query-migrate","id":7}"#,
        r#"{"execute":"cont"}"#,
        r#"{"execute":"migrate-set-capabilities","arguments":{"capabilities":[]}}"#,
        r#"{"execute":"migrate-set-parameters","arguments":{"downtime-limit":300}}"#,
        r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:0.0.0.0:4444"}}"#,
        r#"{"execute":"migrate-incoming","arguments":{"channels":[{"channel-type":"main",
            "addr":{"transport":"socket","type":"inet","host":"::","port":"1"}}]}}"#,
    ] {
        assert!(qmp_allowed(good), "{good}");
    }
    for bad in [
        "",
        "cont",
        "[]",
        r#"{"execute":"quit"}"#,
        r#"{"execute":"human-monitor-command","arguments":{"command-line":"info"}}"#,
        r#"{"exec-oob":"cont"}"#,
        r#"{"execute":"cont","exec-oob":"quit"}"#,
        r#"{"execute":["cont"]}"#,
        r#"{"execute":"cont"} {"execute":"quit"}"#,
        r#"{"execute":"migrate-incoming"}"#,
        r#"{"execute":"migrate-incoming","arguments":{"uri":"unix:/etc/passwd"}}"#,
        r#"{"execute":"migrate-incoming","arguments":{"uri":"exec:rm -rf /"}}"#,
        r#"{"execute":"migrate-incoming","arguments":{"uri":"file:/etc/passwd"}}"#,
        r#"{"execute":"migrate-incoming","arguments":{"uri":"tcp:h:1","channels":[
            {"addr":{"transport":"exec","args":["sh"]}}]}}"#,
        r#"{"execute":"migrate-incoming","arguments":{"channels":[
            {"addr":{"transport":"socket","type":"fd","str":"3"}}]}}"#,
    ] {
        assert!(!qmp_allowed(bad), "{bad}");
    }
    assert!(!qmp_allowed(&format!(
        "{{\"execute\":\"cont\",\"id\":\"{}\"}}",
        "x".repeat(20_000)
    )));
}

#[test]
fn what_is_checked_is_what_is_sent() {
    // Of two keys the parser keeps one; the monitor must not see the other.
    let text = r#"{"execute":"quit","execute":"cont"}"#;
    assert_eq!(checked(text).unwrap(), r#"{"execute":"cont"}"#);
}

#[test]
fn socket_paths_do_not_wander() {
    assert!(checked_socket("/run/ferry/vm.qmp").is_ok());
    for bad in [
        "",
        "vm.qmp",
        "/run/../etc/x",
        "/a\0b",
        &format!("/{}", "x".repeat(120)),
    ] {
        assert!(checked_socket(bad).is_err(), "{bad}");
    }
}
