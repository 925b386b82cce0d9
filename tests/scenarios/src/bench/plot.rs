//! Lines over logarithmic axes, as SVG.

use std::fmt::Write;

/// A line with its name.
pub struct Line {
    pub name: &'static str,
    /// Mounts, seconds; ascending.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart also without colours seen: by their names at the ends of the lines.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A drawing of lines over the number of mounts; times in seconds.
pub fn svg(title: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = Axis::around(points().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Axis::around(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{title}</text>\n"
    );
    for value in x.decades() {
        let at = x.at(value);
        let (top, bottom) = (TOP, HEIGHT - BOTTOM);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value}</text>",
            bottom + 20.0
        );
    }
    for value in y.decades() {
        let at = y.at(value);
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {at:.1}H{}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            seconds(value)
        );
    }
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"{}\">mounts</text>", HEIGHT - 10.0);
    let mut below = f64::MIN;
    let mut ends: Vec<(usize, f64)> =
        lines.iter().enumerate().filter_map(|(n, line)| Some((n, y.at(line.points.last()?.1)))).collect();
    ends.sort_by(|a, b| a.1.total_cmp(&b.1));
    for (n, end) in ends {
        let (line, colour) = (&lines[n], COLOURS[n % COLOURS.len()]);
        let path: Vec<String> = line
            .points
            .iter()
            .map(|(mounts, time)| format!("{:.1} {:.1}", x.at(*mounts), y.at(*time)))
            .collect();
        let _ = writeln!(
            out,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join("L")
        );
        for point in path {
            let (cx, cy) = point.split_once(' ').unwrap_or_default();
            let _ = writeln!(out, "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"3\" fill=\"{colour}\"/>");
        }
        // Names that would lie on each other move down.
        below = end.max(below + 16.0);
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            WIDTH - RIGHT + 8.0,
            below + 4.0,
            line.name
        );
    }
    out + "</svg>\n"
}

fn seconds(value: f64) -> String {
    match value {
        value if value >= 0.999 => format!("{value:.0} s"),
        value if value >= 0.999e-3 => format!("{:.0} ms", value * 1e3),
        value => format!("{:.0} µs", value * 1e6),
    }
}

/// A logarithmic axis over whole decades.
struct Axis {
    first: f64,
    last: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (least, most) = values
            .fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| (least.min(value), most.max(value)));
        let first = least.log10().floor();
        Self { first, last: most.log10().ceil().max(first + 1.0), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value.log10() - self.first) / (self.last - self.first) * (self.to - self.from)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.first as i32..=self.last as i32).map(|exponent| 10f64.powi(exponent))
    }
}
