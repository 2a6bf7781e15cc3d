//! `ferry-bench sioc`.

use std::process::{Command, Output};

fn sioc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ferry-bench"))
        .arg("sioc")
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn one_row_for_machines_and_for_people() {
    let output = sioc(&["--row", "h", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let lines: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = lines.as_array().unwrap();
    let line = &lines[0];
    assert_eq!(
        (&line["row"], &line["published"]),
        (&"H".into(), &250.0.into())
    );
    for line in lines {
        let (ideal, ours) = (
            line["ideal"].as_f64().unwrap(),
            line["ours"].as_f64().unwrap(),
        );
        let error = line["error_pct"].as_f64().unwrap();
        assert!(((ours / ideal - 1.0) * 100.0 - error).abs() < 0.1, "{line}");
        assert_eq!(line.as_object().unwrap().len(), 6);
    }
    let output = sioc(&["--row", "H"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("OLTP, 2500 IOPS") && text.contains("published"),
        "{text}"
    );
}

#[test]
fn a_row_that_is_not_there_and_a_chart_that_is() {
    let output = sioc(&["--row", "X"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("not one of A to H"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chart.svg");
    let output = sioc(&["--row", "H", "--svg", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
}
