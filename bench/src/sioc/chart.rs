//! The chart for the documentation: four disks through a congestion, without control and with it.

use std::fmt::Write;
use std::ops::Range;

use super::array::ArraySpec;
use super::client::{ClientSpec, SECOND};
use super::spec::{Control, WorldSpec};
use super::world::World;

const WIDTH: f64 = 860.0;
const PANEL: (f64, f64) = (370.0, 170.0);
const LEFT: [f64; 2] = [52.0, 472.0];
const TOP: [f64; 2] = [92.0, 312.0];
/// Seconds, and one point for each.
const SECONDS: u64 = 90;
const COLOURS: [&str; 4] = ["#009e73", "#56b4e9", "#e69f00", "#cc79a7"];

/// The disks: shares and depth. The last one comes with the congestion, and goes.
const DISKS: [(u32, u32); 4] = [(4000, 48), (2000, 32), (1000, 16), (1000, 256)];
const FLOOD: Range<u64> = 20 * SECOND..60 * SECOND;

fn name((shares, depth): (u32, u32)) -> String {
    let when = if depth == 256 {
        ", from 20 to 60 s"
    } else {
        ""
    };
    format!("{shares} shares, depth {depth}{when}")
}

fn world(control: Option<Control>) -> World {
    let disk = |(at, (shares, depth)): (usize, (u32, u32))| {
        let disk = ClientSpec::disk(at / 2, shares, depth);
        if depth == 256 {
            disk.during(FLOOD)
        } else {
            disk
        }
    };
    let clients = DISKS.into_iter().enumerate().map(disk).collect();
    let spec = WorldSpec::new(ArraySpec::seeking(24, 4000.0), clients);
    let mut world = World::new(match control {
        Some(control) => spec.controlled(control),
        None => spec,
    });
    world.run_to(SECONDS * SECOND);
    world
}

/// A figure for each second, as far as there is one.
type Curve = Vec<Option<f64>>;

fn curve(world: &World, disk: usize, latency: bool) -> Curve {
    let second = |at: u64| {
        let had = world.had(disk, at * SECOND..(at + 1) * SECOND);
        let value = if latency { had.guest_ms() } else { had.iops() };
        (had.ios > 0).then_some(value)
    };
    (0..SECONDS).map(second).collect()
}

/// The chart as an SVG document.
pub fn draw() -> String {
    let control = Control {
        period_ns: SECOND,
        ..Control::default()
    };
    let worlds = [world(None), world(Some(control))];
    let height = TOP[1] + PANEL.1 + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"15\">Four disks on two hosts, and one of them floods \
         the array</text>\n\
         <text x=\"10\" y=\"37\" fill=\"#555\">A simulated array of 4000 IOPS. Latency as the \
         guests see it; threshold 30 ms at the array.</text>\n"
    );
    legend(&mut out);
    for (column, world) in worlds.iter().enumerate() {
        let title = ["without control", "with control"][column];
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" font-size=\"13\">{title}</text>",
            LEFT[column],
            TOP[0] - 8.0
        );
        for (line, latency) in [false, true].into_iter().enumerate() {
            let curves: Vec<_> = (0..DISKS.len())
                .map(|disk| curve(world, disk, latency))
                .collect();
            let most = most(&worlds, latency);
            panel(&mut out, (LEFT[column], TOP[line]), &curves, most, latency);
        }
    }
    out += "</svg>\n";
    out
}

/// The end of the scale, the same for both columns.
fn most(worlds: &[World; 2], latency: bool) -> f64 {
    let disks = |world| (0..DISKS.len()).flat_map(move |disk| curve(world, disk, latency));
    let most = worlds.iter().flat_map(disks).flatten().fold(1.0, f64::max);
    let step = step(most);
    (most / step).ceil() * step
}

/// A round number that is four to ten times in another.
fn step(most: f64) -> f64 {
    let power = 10f64.powf((most / 4.0).log10().floor());
    let times = [5.0, 2.0, 1.0]
        .into_iter()
        .find(|times| times * power * 4.0 <= most);
    times.unwrap_or(1.0) * power
}

fn legend(out: &mut String) {
    let mut x = 10.0;
    for (name, colour) in DISKS.map(name).into_iter().zip(COLOURS) {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"48\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"58\">{name}</text>",
            x + 17.0
        );
        x += 40.0 + 6.0 * name.len() as f64;
    }
}

fn panel(out: &mut String, (left, top): (f64, f64), curves: &[Curve], most: f64, latency: bool) {
    let (width, height) = PANEL;
    let x = |second: f64| left + second / SECONDS as f64 * width;
    let y = |value: f64| top + height - value / most * height;
    let step = step(most);
    let mut value = 0.0;
    while value <= most * 1.0001 {
        let (right, y) = (left + width, y(value));
        let _ = writeln!(
            out,
            "<line x1=\"{left:.1}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{value}</text>",
            left - 5.0,
            y + 4.0
        );
        value += step;
    }
    for second in (0..=SECONDS).step_by(15) {
        let at = x(second as f64);
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{:.1}\" stroke=\"#eee\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{second} s</text>",
            top + height,
            top + height + 14.0
        );
    }
    let unit = if latency {
        "latency, ms"
    } else {
        "I/Os a second"
    };
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\">{unit}</text>",
        left + 4.0,
        top + 12.0
    );
    for (curve, colour) in curves.iter().zip(COLOURS) {
        line(out, curve, colour, &x, &y);
    }
}

/// A curve, with gaps where nothing was.
fn line(
    out: &mut String,
    curve: &Curve,
    colour: &str,
    x: &dyn Fn(f64) -> f64,
    y: &dyn Fn(f64) -> f64,
) {
    let mut path = String::new();
    let mut drawing = false;
    for (second, value) in curve.iter().enumerate() {
        if let Some(value) = value {
            let command = if drawing { 'L' } else { 'M' };
            let _ = write!(
                path,
                "{command}{:.1} {:.1}",
                x(second as f64 + 0.5),
                y(*value)
            );
        }
        drawing = value.is_some();
    }
    let _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_round_steps() {
        assert_eq!([step(70.0), step(3400.0), step(9.0)], [10.0, 500.0, 2.0]);
    }

    #[test]
    fn the_chart_has_a_curve_for_each_disk_in_each_panel() {
        let svg = draw();
        assert_eq!(svg.matches("<path").count(), 16);
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
