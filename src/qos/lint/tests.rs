//! Each rule, broken and kept.

use std::path::Path;

use super::*;
use crate::qos::datastore::DatastoreQos;
use crate::qos::picture;
use crate::qos::tests::config;

fn facts(path: &str, qos: &str) -> DatastoreFacts {
    let said: DatastoreQos = toml::from_str(qos).unwrap();
    DatastoreFacts {
        path: path.into(),
        named: true,
        medium_said: said.medium.is_some(),
        settings: said.settings(),
        device: Device::of(Path::new("/proc")),
        is_directory: true,
        disks: vec![DiskFacts {
            id: "d".parse().unwrap(),
            limited: false,
            reservation: 0,
            shared: false,
        }],
    }
}

/// The rules that are broken.
fn broken(datastores: &[DatastoreFacts]) -> Vec<&'static str> {
    let found = lint(datastores, &[]);
    let bad = found.iter().filter(|it| it.level >= Level::Warning);
    bad.map(|it| it.check).collect()
}

#[test]
fn a_datastore_that_is_as_it_should_be() {
    for medium in ["fc", "sas", "sata", "ssd", "nvme"] {
        let good = facts("/a", &format!("sioc = 'on'\nmedium = '{medium}'"));
        assert_eq!(lint(&[good], &[]), []);
    }
}

#[test]
fn disks_without_io_control() {
    assert_eq!(
        broken(&[facts("/a", "sioc = 'off'")]),
        ["datastore-without-sioc"]
    );
    // Measured, and one disk alone: worth knowing.
    let one = facts("/a", "");
    let found = lint(std::slice::from_ref(&one), &[]);
    assert_eq!((found.len(), found[0].level), (1, Level::Note));
    let two = DatastoreFacts {
        disks: [one.disks.clone(), one.disks.clone()].concat(),
        ..one.clone()
    };
    assert_eq!(broken(&[two]), ["datastore-without-sioc"]);
    let unnamed = DatastoreFacts {
        named: false,
        ..facts("/a", "sioc = 'off'")
    };
    let found = lint(std::slice::from_ref(&unnamed), &[]);
    assert!(
        found[0].found.contains("no [[datastore]] section"),
        "{found:?}"
    );
    let mend = found[0].mend.as_deref().unwrap();
    assert!(mend.contains("ferry datastore set /a --sioc on"), "{mend}");
    let empty = DatastoreFacts {
        disks: Vec::new(),
        ..unnamed
    };
    assert_eq!(lint(&[empty], &[]), []);
}

#[test]
fn thresholds_that_do_not_fit_the_medium() {
    let threshold = |medium: &str, ms: f64| {
        broken(&[facts(
            "/a",
            &format!("sioc = 'on'\nmedium = '{medium}'\nthreshold_ms = {ms}"),
        )])
    };
    assert!(threshold("sata", 40.0).is_empty());
    assert_eq!(threshold("sata", 29.0), ["threshold-out-of-range"]);
    assert_eq!(threshold("ssd", 30.0), ["threshold-out-of-range"]);
    assert_eq!(threshold("nvme", 0.2), ["threshold-out-of-range"]);
    let unsaid = lint(&[facts("/a", "sioc = 'on'\nthreshold_ms = 3")], &[]);
    let mend = unsaid[0].mend.as_deref().unwrap();
    assert!(mend.contains("ssd is only supposed"), "{mend}");
    let auto = facts("/a", "sioc = 'on'\nthreshold_ms = 'auto'");
    assert!(broken(&[auto]).is_empty());
}

#[test]
fn datastores_on_one_device_are_treated_alike() {
    let on = "sioc = 'on'\nmedium = 'sata'";
    let other = "sioc = 'on'\nmedium = 'sata'\nthreshold_ms = 30";
    assert!(broken(&[facts("/a", on), facts("/b", on)]).is_empty());
    let found = lint(&[facts("/a", on), facts("/b", other)], &[]);
    assert_eq!((found.len(), found[0].check), (1, "same-device"));
    assert!(
        found[0].found.contains("differs in threshold_ms"),
        "{found:?}"
    );
    let elsewhere = DatastoreFacts {
        device: None,
        ..facts("/b", other)
    };
    assert!(broken(&[facts("/a", on), elsewhere]).is_empty());
}

#[test]
fn disks_without_a_limit_where_hosts_share() {
    let mut shared = facts("/a", "sioc = 'on'");
    shared.disks[0].shared = true;
    let mut limited = shared.disks[0].clone();
    (limited.id, limited.limited) = ("e".parse().unwrap(), true);
    shared.disks.push(limited);
    let found = lint(&[shared], &[]);
    assert_eq!((found.len(), found[0].check), (1, "disk-without-limit"));
    assert_eq!(found[0].about, "disk d");
}

#[test]
fn reservations_and_devices_are_worth_a_note() {
    let mut reserved = facts("/a", "sioc = 'on'");
    reserved.disks[0].reservation = 500;
    reserved.is_directory = false;
    let found = lint(&[reserved], &[]);
    let checks: Vec<_> = found.iter().map(|it| (it.level, it.check)).collect();
    let note = Level::Note;
    assert_eq!(
        checks,
        [(note, "reservations"), (note, "no-statistics-file")]
    );
    assert!(found[0].found.contains("reserve 500"), "{found:?}");
}

#[test]
fn a_group_that_bounds_nothing() {
    let group = GroupConfig::new("g".parse().unwrap());
    assert!(lint(&[], &[(group.clone(), 0)]).is_empty());
    assert_eq!(lint(&[], &[(group, 2)])[0].check, "group-without-limit");
}

#[test]
fn what_is_judged_is_what_a_daemon_would_take_up() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    std::fs::create_dir_all(root.join("state/disks")).unwrap();
    let kept = format!(
        r#"{{"disk":{{"id":"k","path":"{}/k.raw","shared":true}}}}"#,
        root.display()
    );
    std::fs::write(root.join("state/disks/k.json"), kept).unwrap();
    let text = format!(
        "[[datastore]]\npath = {root:?}\nsioc = 'on'\n\
         [[disk_group]]\nname = 'g'\nlimit_iops = 9\n\
         [[disk]]\nid = 'm'\npath = 'memory:1M'\n\
         [[disk]]\nid = 'd'\npath = '{0}/d.raw'\ngroup = 'g'\n",
        root.display()
    );
    let found = picture::judge(&config(&root, &text).unwrap());
    let about: Vec<_> = found.iter().map(|it| it.about.as_str()).collect();
    // The kept one makes the datastore shared, and only that one has no limit.
    assert_eq!(about, ["disk k"], "{found:?}");
}
