//! What was published, what the book says, and what comes out here, side by side.
//!
//! A to E are PARDA's (Gulati, Ahmad, Waldspurger, FAST 2009), F and G VMware's for Storage I/O
//! Control, H mClock's example (Gulati, Merchant, Varman, OSDI 2010). The arrays are made to have the
//! throughput that was published; where a publication says nothing of depths, clients keep as much
//! under way as their part takes.

mod parda;
mod vmware;

use comfy_table::{CellAlignment, Table as Text, presets};
use serde::{Serialize, Serializer};

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The row that it belongs to.
    pub row: char,
    /// Whose figure it is, and of what where it is not I/Os a second.
    pub client: String,
    /// What was published; nothing where only a picture or a word was.
    pub published: Option<f64>,
    /// What it should be, by the book.
    #[serde(serialize_with = "rounded")]
    pub ideal: f64,
    /// What it was here.
    #[serde(serialize_with = "rounded")]
    pub ours: f64,
    /// How far ours is from the ideal, in percent of it.
    #[serde(serialize_with = "rounded")]
    pub error_pct: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde has it
fn rounded<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64((value * 1000.0).round() / 1000.0)
}

/// A set-up and its figures.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its letter.
    pub name: char,
    /// The set-up.
    pub about: String,
    /// The figures.
    pub lines: Vec<Line>,
}

impl Row {
    fn new(name: char, about: impl Into<String>) -> Row {
        Row {
            name,
            about: about.into(),
            lines: Vec::new(),
        }
    }

    fn add(
        &mut self,
        client: impl Into<String>,
        published: impl Into<Option<f64>>,
        ideal: f64,
        ours: f64,
    ) {
        self.lines.push(Line {
            row: self.name,
            client: client.into(),
            published: published.into(),
            ideal,
            ours,
            error_pct: (ours / ideal - 1.0) * 100.0,
        });
    }
}

/// The letters of all rows.
pub const NAMES: [char; 8] = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];

/// Simulates a row; none of another name.
pub fn run(name: char) -> Option<Row> {
    match name {
        'A' => Some(parda::equal_hosts()),
        'B' => Some(parda::unequal_hosts()),
        'C' => Some(parda::hosts_that_stop()),
        'D' => Some(parda::a_stranger_joins()),
        'E' => Some(parda::an_idle_disk()),
        'F' => Some(vmware::shares()),
        'G' => Some(vmware::little_and_limited()),
        'H' => Some(vmware::reservations()),
        _ => None,
    }
}

/// Rows for people.
pub fn text(rows: &[Row]) -> String {
    let mut text = Text::new();
    text.load_preset(presets::UTF8_FULL_CONDENSED);
    let header = ["row", "client", "published", "ideal", "ours", "error"];
    text.set_header(header);
    for row in rows {
        for line in &row.lines {
            let number = |value: f64| match value.abs() {
                large if large >= 100.0 => format!("{value:.0}"),
                middling if middling >= 10.0 => format!("{value:.1}"),
                _ => format!("{value:.2}"),
            };
            text.add_row([
                line.row.to_string(),
                line.client.clone(),
                line.published.map_or_else(String::new, number),
                number(line.ideal),
                number(line.ours),
                format!("{:+.1} %", line.error_pct),
            ]);
        }
    }
    for column in 2..6 {
        if let Some(column) = text.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut out = String::from("I/Os a second unless another unit is named\n");
    for row in rows {
        out += &format!("{}: {}\n", row.name, row.about);
    }
    out + &text.to_string()
}
