//! The chart for the documentation: one bar for each ratio, on a scale of powers
//! of two, so that twice as fast and half as fast are equally long.

use std::fmt::Write;

use super::cell::Mix;
use super::runs::Peer;
use super::table::{CellResult, PeerResult, Table, cell_name};

const WIDTH: f64 = 860.0;
const LABELS: f64 = 300.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 14.0;
const TOP: f64 = 76.0;
/// The scale runs from a quarter to sixteen times.
const POWERS: std::ops::RangeInclusive<i32> = -2..=4;

struct Bar<'a> {
    label: String,
    peer: &'a PeerResult,
}

/// The table's reads as an SVG document.
pub fn chart(table: &Table) -> String {
    let reads = |c: &&CellResult| c.cell.mix == Mix::Read && !c.cell.is_growth();
    let mut bars = Vec::new();
    for cell in table.cells.iter().filter(reads) {
        let compared = |p: &&PeerResult| p.ratio.is_some() && p.peer != Peer::Ceiling;
        for (i, peer) in cell.peers.iter().filter(compared).enumerate() {
            let label = if i == 0 {
                cell_name(&cell.cell)
            } else {
                String::new()
            };
            bars.push(Bar { label, peer });
        }
    }
    draw(&bars, &table.machine)
}

fn draw(bars: &[Bar<'_>], machine: &str) -> String {
    let height = TOP + bars.len() as f64 * (BAR + 3.0) + 24.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\">Requests a second: Ferry over each peer, \
         random reads</text>\n\
         <text x=\"10\" y=\"37\" fill=\"#555\">Median and range of the rounds. {}</text>\n",
        escape(machine)
    );
    legend(&mut out, bars);
    for power in POWERS {
        let x = place(2f64.powi(power));
        let stroke = if power == 0 { "#333" } else { "#ddd" };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"{stroke}\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{}x</text>",
            height - 20.0,
            height - 7.0,
            2f64.powi(power)
        );
    }
    for (i, bar) in bars.iter().enumerate() {
        one(&mut out, bar, TOP + 2.0 + i as f64 * (BAR + 3.0));
    }
    out += "</svg>\n";
    out
}

fn one(out: &mut String, bar: &Bar<'_>, y: f64) {
    let Some(ratio) = bar.peer.ratio else {
        return;
    };
    let (one, end) = (place(1.0), place(ratio.spread.median));
    let (least, most) = (place(ratio.spread.min), place(ratio.spread.max));
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
         <line x1=\"{least:.1}\" x2=\"{most:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" \
         stroke=\"#222\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{:.2}</text>",
        LABELS - 8.0,
        y + BAR - 3.0,
        escape(&bar.label),
        one.min(end),
        (one - end).abs().max(1.0),
        colour(bar.peer.peer),
        most.max(end).max(one) + 5.0,
        y + BAR - 3.0,
        ratio.spread.median
    );
}

fn legend(out: &mut String, bars: &[Bar<'_>]) {
    let mut seen: Vec<Peer> = bars.iter().map(|b| b.peer.peer).collect();
    seen.sort_unstable();
    seen.dedup();
    let mut x = 10.0;
    for peer in seen {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"48\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{:.0}\" y=\"58\">{}</text>",
            colour(peer),
            x + 17.0,
            peer.name()
        );
        x += 40.0 + 7.0 * peer.name().len() as f64;
    }
}

/// Where a ratio stands, kept inside the drawing.
fn place(ratio: f64) -> f64 {
    let (least, most) = (f64::from(*POWERS.start()), f64::from(*POWERS.end()));
    let power = ratio.max(f64::MIN_POSITIVE).log2().clamp(least, most);
    LABELS + (power - least) / (most - least) * (WIDTH - LABELS - RIGHT)
}

fn colour(peer: Peer) -> &'static str {
    match peer {
        Peer::Qsd => "#e69f00",
        Peer::Stock => "#56b4e9",
        Peer::Native => "#009e73",
        Peer::Copy => "#cc79a7",
        Peer::Ferry | Peer::Ceiling => "#999999",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_and_half_are_equally_far_from_one() {
        let (half, one, two) = (place(0.5), place(1.0), place(2.0));
        assert!(((one - half) - (two - one)).abs() < 1e-9);
        assert_eq!(place(1e9), WIDTH - RIGHT, "kept inside");
        assert_eq!(place(0.0), LABELS);
    }
}
