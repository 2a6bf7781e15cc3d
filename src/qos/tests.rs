//! The words of the configuration.

use std::path::Path;

use ferry_dataplane::qos::{CostModel, Medium, Policy};

use super::datastore::{DatastoreQos, Divide, Sioc, Threshold, Unmanaged};
use super::disk::{DiskChange, DiskQos};
use super::said::Said;
use super::shares::Shares;
use crate::config::{Config, DiskConfig};

const MS: u64 = 1_000_000;

fn disk(more: &str) -> Result<DiskConfig, String> {
    let text = format!("id = 'd'\npath = 'null:1M'\n{more}");
    let disk: DiskConfig = toml::from_str(&text).map_err(|error| error.to_string())?;
    disk.check().map_err(|error| error.to_string())?;
    Ok(disk)
}

#[test]
fn shares_are_words_or_numbers() {
    let number = |text: &str| text.parse().map(Shares::number);
    assert_eq!(number("low"), Ok(500));
    assert_eq!(number("normal"), Ok(1000));
    assert_eq!(number("high"), Ok(2000));
    assert_eq!(number("2500"), Ok(2500));
    for bad in ["", "0", "-1", "High", "1.5", "1000001"] {
        let error = number(bad).unwrap_err();
        assert!(error.contains("low (500)"), "{bad}: {error}");
    }
    assert_eq!("2000".parse::<Shares>().unwrap().to_string(), "high");
    let kept = serde_json::to_value("high".parse::<Shares>().unwrap()).unwrap();
    assert_eq!(kept, 2000);
}

#[test]
fn a_disks_section_says_what_it_is_to_get() {
    let said = disk("shares = 'high'\nlimit_iops = 1000\nlimit_mbps = 20\nreservation = 100");
    let expected = Policy {
        shares: 2000,
        limit_iops: Some(1000),
        limit_bytes: Some(20_000_000),
        reservation_iops: 100,
    };
    assert_eq!(said.unwrap().qos().policy(), expected);
    let nothing = disk("").unwrap();
    assert_eq!(nothing.qos().policy(), Policy::default());
    // A file of a daemon that knew nothing of it, and one for such a daemon.
    let kept = serde_json::to_string(&nothing).unwrap();
    assert!(
        !kept.contains("shares") && !kept.contains("group"),
        "{kept}"
    );
    let all = disk("shares = 7\ngroup = 'g'").unwrap();
    let kept = serde_json::to_string(&all).unwrap();
    let again: DiskConfig = serde_json::from_str(&kept).unwrap();
    assert_eq!(again.qos(), all.qos());
}

#[test]
fn what_makes_no_sense_of_a_disk_is_refused_by_name() {
    let refused = |more: &str, words: &str| {
        let error = disk(more).err().unwrap_or_default();
        assert!(error.contains(words), "{more}: {error}");
    };
    refused("shares = 0", "from 1 to 1000000");
    refused("shares = 'most'", "low (500)");
    refused("limit_iops = 0", "would serve nothing");
    refused("limit_mbps = 0", "would serve nothing");
    refused("limit_iops = 2000000000", "at most 1000000000");
    refused(
        "limit_iops = 100\nreservation = 200",
        "above limit_iops = 100",
    );
    refused("group = 'a/b'", "not a name");
}

#[test]
fn a_change_leaves_what_it_does_not_say() {
    let change = |text: &str| serde_json::from_str::<DiskChange>(text).unwrap();
    let before = disk("shares = 'low'\nlimit_iops = 10\ngroup = 'g'")
        .unwrap()
        .qos();
    let after = change(r#"{"id":"d","limit_iops":"none","reservation":{"to":5}}"#).of(&before);
    let expected = DiskQos {
        shares: "low".parse().ok(),
        reservation: Some(5),
        group: "g".parse().ok(),
        ..DiskQos::default()
    };
    assert_eq!(after, expected);
    let alone = change(r#"{"id":"d","group":"none"}"#).of(&after);
    assert_eq!(alone.group, None);
    assert!(change(r#"{"id":"d"}"#).check().is_err());
    assert!(serde_json::from_str::<DiskChange>(r#"{"id":"d","limit":1}"#).is_err());
}

fn datastore(text: &str) -> Result<DatastoreQos, String> {
    let said: DatastoreQos = toml::from_str(text).map_err(|error| error.to_string())?;
    said.check()?;
    Ok(said)
}

#[test]
fn a_datastore_of_which_nothing_is_said_is_measured() {
    let settings = datastore("").unwrap().settings();
    assert_eq!(settings.sioc, Sioc::Stats);
    assert_eq!(settings.medium, Medium::Ssd);
    assert_eq!(settings.threshold, Threshold::Ns(15 * MS));
    assert_eq!(settings.period_ns, 2000 * MS);
    assert_eq!(settings.unmanaged, Unmanaged::Stop);
    assert_eq!(settings.cost_model(), CostModel::Size);
    assert_eq!(settings.divide, Divide::Disks);
}

#[test]
fn thresholds_and_periods_are_in_bounds() {
    let settings = |text: &str| datastore(text).map(|said| said.settings());
    let sata = settings("medium = 'sata'\ncost = 'time'").unwrap();
    assert_eq!(sata.threshold, Threshold::Ns(50 * MS));
    assert_eq!(sata.cost_model(), CostModel::DeviceTime(Medium::Sata));
    let by_hand = settings("threshold_ms = 0.5").unwrap();
    assert_eq!(by_hand.threshold, Threshold::Ns(MS / 2));
    let whole = settings("threshold_ms = 25").unwrap();
    assert_eq!(whole.threshold_ns(), 25 * MS);
    let auto = settings("threshold_ms = 'auto'\nmedium = 'nvme'").unwrap();
    assert_eq!(auto.threshold, Threshold::Auto);
    assert_eq!(auto.threshold_ns(), 2 * MS);
    for (bad, words) in [
        ("threshold_ms = 0.05", "0.1 to 1000"),
        ("threshold_ms = 1001", "0.1 to 1000"),
        ("threshold_ms = nan", "0.1 to 1000"),
        ("threshold_ms = 'fast'", "0.1 to 1000"),
        ("medium = 'tape'", "fc, sas, sata, ssd or nvme"),
        ("stats_period_ms = 99", "100 to 60000"),
        ("stats_period_ms = 60001", "100 to 60000"),
        ("sioc = 'yes'", "unknown variant"),
        ("treshold_ms = 3", "unknown field"),
    ] {
        let error = settings(bad).unwrap_err();
        assert!(error.contains(words), "{bad}: {error}");
    }
}

#[test]
fn what_is_kept_reads_as_it_was_said() {
    let said = datastore("sioc = 'on'\nthreshold_ms = 'auto'\nmedium = 'fc'").unwrap();
    let kept = serde_json::to_string(&said).unwrap();
    assert_eq!(serde_json::from_str::<DatastoreQos>(&kept).unwrap(), said);
    let change = datastore("threshold_ms = 3\ndivide = 'hosts'").unwrap();
    let both = change.or(&said);
    assert_eq!(both.sioc, Some(Sioc::On));
    assert_eq!(both.threshold_ms, Some(Threshold::Ns(3 * MS)));
    assert_eq!(change.conflicts(&said), ["threshold_ms"]);
    assert!(said.conflicts(&said).is_empty());
}

/// A configuration in a directory of its own.
pub(super) fn config(dir: &Path, more: &str) -> Result<Config, String> {
    let file = dir.join("ferry.toml");
    let text = format!(
        "state_dir = {:?}\nrun_dir = {:?}\n{more}",
        dir.join("state"),
        dir.join("run")
    );
    std::fs::write(&file, text).unwrap();
    Config::load(&file).map_err(|error| error.to_string())
}

#[test]
fn an_image_is_on_the_innermost_datastore() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    std::fs::create_dir(root.join("in")).unwrap();
    let text = format!(
        "[[datastore]]\npath = {root:?}\nsioc = 'on'\n[[datastore]]\npath = {:?}\nmedium = 'nvme'",
        root.join("in")
    );
    let said = Said::load(&config(&root, &text).unwrap());
    let outer = said.home(&root.join("a.raw"));
    assert_eq!((outer.path.as_path(), outer.named), (root.as_path(), true));
    assert_eq!(outer.settings().sioc, Sioc::On);
    assert_eq!(said.home(&root.join("in/b.raw")).path, root.join("in"));
    // Not what only begins like it.
    assert_eq!(said.home(&root.join("inside.raw")).path, root);
    let elsewhere = said.home(Path::new("/elsewhere/c.raw"));
    assert_eq!(elsewhere.path, Path::new("/elsewhere"));
    assert!(!elsewhere.named);
    assert_eq!(elsewhere.settings().sioc, Sioc::Off);
}

#[test]
fn sections_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(dir.path()).unwrap();
    let refused = |more: &str, words: &str| {
        let error = config(&root, more).err().unwrap_or_default();
        assert!(error.contains(words), "{more}: {error}");
    };
    let section = format!("[[datastore]]\npath = {root:?}\n");
    refused(&format!("{section}{section}"), "make one section of both");
    refused(&format!("{section}stats_period_ms = 5"), "100 to 60000");
    let file = root.join("file");
    std::fs::write(&file, b"x").unwrap();
    refused(
        &format!("[[datastore]]\npath = {file:?}"),
        "neither a directory nor a block device",
    );
    let group = "[[disk_group]]\nname = 'g'\nlimit_iops = 5\n";
    refused(&format!("{group}{group}"), "names must differ");
    refused("[[disk_group]]\nname = 'none'", "choose another name");
    refused("[[disk_group]]\nname = 'g'\nlimit_mbps = 0", "nothing");
    let disk = "[[disk]]\nid = 'd'\npath = 'null:1M'\ngroup = 'g'\n";
    refused(disk, "there is no group g");
    assert!(config(&root, &format!("{group}{disk}")).is_ok());
}
