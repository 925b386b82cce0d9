//! What was measured.

use std::collections::BTreeMap;
use std::time::Duration;

/// What a figure is of: of a measure (`dump`, `start` ...), for so many mounts, by a program.
type Of = (&'static str, usize, &'static str);

/// All figures of a run, a value for each round: seconds, or KiB.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<Of, Vec<f64>>);

/// Several values of the same.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Some(Self { least: *values.first()?, median: *values.get(values.len() / 2)?, most: *values.last()? })
    }
}

impl Figures {
    /// One round more.
    pub fn add(&mut self, what: &'static str, size: usize, who: &'static str, value: f64) {
        println!("{size:>7}  {what:<24} {who:<10} {value:.6}");
        self.0.entry((what, size, who)).or_default().push(value);
    }

    /// One round more, of a time.
    pub fn time(&mut self, what: &'static str, size: usize, who: &'static str, time: Duration) {
        self.add(what, size, who, time.as_secs_f64());
    }

    /// Of all rounds.
    pub fn spread(&self, what: &'static str, size: usize, who: &'static str) -> Option<Spread> {
        Spread::of(self.0.get(&(what, size, who))?.iter().copied())
    }

    /// Round by round: the first divided by the second, so that a noisy moment meets both.
    pub fn ratio(&self, ours: Of, peer: Of) -> Option<Spread> {
        let pairs = self.0.get(&ours)?.iter().zip(self.0.get(&peer)?);
        Spread::of(pairs.map(|(ours, peer)| ours / peer))
    }

    /// Medians over the number of mounts.
    pub fn line(&self, what: &'static str, who: &'static str) -> Vec<(f64, f64)> {
        let sizes = self.0.keys().filter(|of| of.0 == what && of.2 == who).map(|of| of.1);
        sizes.filter_map(|size| Some((size as f64, self.spread(what, size, who)?.median))).collect()
    }
}
