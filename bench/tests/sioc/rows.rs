//! The golden tables.

use ferry_bench::sioc::rows;

fn within_five_percent(name: char) {
    let row = rows::run(name).unwrap();
    assert!(row.lines.len() >= 4);
    let table = rows::text(std::slice::from_ref(&row));
    for line in &row.lines {
        assert!(line.error_pct.abs() <= 5.0, "{}\n{table}", line.client);
    }
    // The model is the publication's: where it is not a host's own luck, its figure is met as well.
    for line in row
        .lines
        .iter()
        .filter(|line| !line.client.starts_with("host "))
    {
        if let Some(published) = line.published {
            super::near(&line.client, line.ours, published, 5.0);
        }
    }
}

#[test]
fn a() {
    within_five_percent('A');
}

#[test]
fn b() {
    within_five_percent('B');
}

#[test]
fn c() {
    within_five_percent('C');
}

#[test]
fn d() {
    within_five_percent('D');
}

#[test]
fn e() {
    within_five_percent('E');
}

#[test]
fn f() {
    within_five_percent('F');
}

#[test]
fn g() {
    within_five_percent('G');
}

#[test]
fn h() {
    within_five_percent('H');
}
