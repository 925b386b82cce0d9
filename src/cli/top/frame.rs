//! One picture, from what was found now and what was there before. Pure.

use super::super::human;
use super::super::list::{master, mounted, shown};
use super::super::table::{Cell, Column, Style, Table};
use super::Output;
use autofs_cr::discover::facts::{AutofsMount, Survey, Waiter};
use autofs_cr::engine::ledger::Program;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Programs that are shown.
const PROGRAMS: usize = 8;
/// With fewer rows than this for all tables there are none for programs.
const SMALL: usize = 6;
/// From then on a lookup is taken for stuck.
const LONG: Duration = Duration::from_secs(2);

/// What was found at one time.
#[derive(Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// The same for people: seconds since 1970.
    pub clock: u64,
    /// From the kernel.
    pub survey: Survey,
    /// What our engine counts, as Prometheus reads it.
    pub metrics: Option<String>,
    /// Who its lookups come from, most first.
    pub programs: Vec<Program>,
}

/// What the last pictures showed.
#[derive(Debug, Default)]
pub struct History {
    /// Since when a task waits: by its number, its process' start, and whether it expires.
    waiting: HashMap<(i32, u64, bool), Instant>,
    engine: Option<(Instant, Lookups)>,
}

impl History {
    /// The next picture, of so many rows where that is a limit.
    pub fn frame(&mut self, sample: Sample, output: &Output, rows: Option<usize>) -> String {
        let waits = self.waits(&sample);
        let mut text = summary(&sample, waits.len());
        if let Some(metrics) = &sample.metrics {
            text += &self.engine(Lookups::parse(metrics), sample.at);
        }
        let mut tables =
            [waiting(&waits), mounts(&sample.survey.mounts), programs(&sample.programs, sample.clock)];
        if let Some(rows) = rows {
            fit(rows.saturating_sub(text.lines().count()), &mut tables);
        }
        for table in tables.iter().filter(|table| table.lines() > 0) {
            text += "\n";
            text += &table.render(output);
        }
        text
    }

    /// Who waits, for how long, longest first.
    fn waits<'s>(&mut self, sample: &'s Sample) -> Vec<Wait<'s>> {
        let placed =
            sample.survey.mounts.iter().flat_map(|mount| mount.waiters.iter().map(move |w| (w, Some(mount))));
        let unplaced = sample.survey.unplaced_waiters.iter().map(|waiter| (waiter, None));
        let mut seen = HashMap::new();
        let mut waits: Vec<_> = placed
            .chain(unplaced)
            .map(|(waiter, mount)| {
                let key = (waiter.tid, waiter.process.start_time, waiter.expiring);
                let since = self.waiting.get(&key).copied().unwrap_or(sample.at);
                seen.insert(key, since);
                Wait { waiter, mount, age: sample.at.saturating_duration_since(since) }
            })
            .collect();
        self.waiting = seen;
        waits.sort_by_key(|wait| (std::cmp::Reverse(wait.age), wait.waiter.tid));
        waits
    }

    /// What the engine answered since the last picture; in the first one, since it began.
    fn engine(&mut self, now: Lookups, at: Instant) -> String {
        let last = self.engine.replace((at, now.clone()));
        let Some((before, last)) = last.filter(|(_, last)| last.answered() <= now.answered()) else {
            return format!(
                "engine: {} so far, {} failed{}\n",
                human::count(now.answered(), "lookup"),
                now.failed,
                now.times()
            );
        };
        let since = now.since(&last);
        let seconds = at.saturating_duration_since(before).as_secs_f64().max(0.001);
        #[allow(clippy::cast_precision_loss, reason = "a rate that is shown with one digit")]
        let rate = since.answered() as f64 / seconds;
        format!("engine: {rate:.1} lookups/s, {} failed{}\n", since.failed, since.times())
    }
}

struct Wait<'s> {
    waiter: &'s Waiter,
    mount: Option<&'s AutofsMount>,
    age: Duration,
}

fn summary(sample: &Sample, waiting: usize) -> String {
    let mounts = &sample.survey.mounts;
    let keys: usize = mounts.iter().map(|mount| mount.covering.len()).sum();
    let time = human::date(sample.clock);
    let autofs = human::count(mounts.len(), "autofs mount");
    format!("{time}: {autofs}, {keys} mounted on them, {waiting} waiting\n")
}

/// Each table shows its beginning: thousands of mounts do not push away the programs, nor waiters the mounts.
fn fit(rows: usize, tables: &mut [Table; 3]) {
    let headings = |tables: &[Table]| 2 * tables.iter().filter(|table| table.lines() > 0).count();
    if rows < headings(tables) + SMALL {
        tables[2].shorten(0);
    }
    let room = rows.saturating_sub(headings(tables));
    let [waiting, mounts, programs] = tables;
    programs.shorten((room / 3).max(room.saturating_sub(waiting.lines() + mounts.lines())));
    let room = room.saturating_sub(programs.lines());
    waiting.shorten((room / 2).max(room.saturating_sub(mounts.lines())));
    mounts.shorten(room.saturating_sub(waiting.lines()));
}

fn waiting(waits: &[Wait<'_>]) -> Table {
    let mut table = Table::new(&[
        Column::right("WAITS"),
        Column::right("TASK"),
        Column::long("PROGRAM", 8),
        Column::long("ON", 12),
        Column::long("MASTER", 14),
    ]);
    for Wait { waiter, mount, age } in waits {
        let style = if *age >= LONG && !waiter.expiring { Style::Bad } else { Style::Plain };
        let doing = if waiter.expiring { " (expires)" } else { "" };
        table.row(vec![
            Cell::styled(format!("{:.1}s", age.as_secs_f64()), style),
            waiter.tid.to_string().into(),
            format!("{}{doing}", waiter.comm).into(),
            mount.map_or("?".into(), |mount| shown(&mount.path)).into(),
            mount.map_or("-".into(), master),
        ]);
    }
    table
}

fn mounts(mounts: &[AutofsMount]) -> Table {
    let mut table = Table::new(&[
        Column::long("PATH", 12),
        Column::optional("TYPE"),
        Column::right("WAITING"),
        Column::new("MOUNTED"),
        Column::optional("IDLE"),
        Column::long("MASTER", 14),
    ]);
    let mut sorted: Vec<_> = mounts.iter().collect();
    sorted.sort_by_key(|mount| (std::cmp::Reverse(mount.waiters.len()), mount.covering.is_empty()));
    for mount in sorted {
        let waiting = mount.waiters.len();
        table.row(vec![
            shown(&mount.path).into(),
            mount.options.mount_type.to_string().into(),
            if waiting == 0 { "-".into() } else { Cell::styled(waiting.to_string(), Style::Warning) },
            mounted(mount).into(),
            human::duration(mount.options.timeout).into(),
            master(mount),
        ]);
    }
    table
}

fn programs(programs: &[Program], now: u64) -> Table {
    let mut table = Table::new(&[
        Column::right("LOOKUPS"),
        Column::right("LAST"),
        Column::right("UID"),
        Column::right("PID"),
        Column::long("PROGRAM", 12),
        Column::long("MOST", 12),
    ]);
    for program in programs.iter().take(PROGRAMS) {
        let most = program.triggers.first().map_or("-".into(), |looked| shown(&looked.path));
        table.row(vec![
            program.lookups.to_string().into(),
            match now.saturating_sub(program.last) {
                0 => "now".into(),
                seconds => format!("{} ago", human::duration(seconds)).into(),
            },
            program.uid.to_string().into(),
            program.pid.to_string().into(),
            if program.command.is_empty() { &program.comm } else { &program.command }.as_str().into(),
            most.into(),
        ]);
    }
    table
}

/// Lookups that an engine has answered.
#[derive(Clone, Debug, Default, PartialEq)]
struct Lookups {
    failed: u64,
    /// Upper bound in seconds, and how many took no longer; ascending, the last one is all.
    buckets: Vec<(f64, u64)>,
}

impl Lookups {
    /// From the text that [`Request::Metrics`](autofs_cr::engine::control::Request) gets.
    fn parse(text: &str) -> Self {
        let mut lookups = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.rsplit_once(' ')) {
            let label = |prefix: &str| name.strip_prefix(prefix)?.strip_suffix("\"}");
            let Ok(value) = value.parse::<u64>() else { continue };
            if let Some(bound) = label("autofs_cr_requests_duration_seconds_bucket{le=\"") {
                lookups.buckets.push((bound.parse().unwrap_or(f64::INFINITY), value));
            } else if label("autofs_cr_requests_total{result=\"").is_some_and(|result| result != "ok") {
                lookups.failed += value;
            }
        }
        lookups
    }

    fn answered(&self) -> u64 {
        self.buckets.last().map_or(0, |(_, count)| *count)
    }

    fn since(&self, last: &Self) -> Self {
        let counts = self.buckets.iter().zip(&last.buckets);
        Self {
            failed: self.failed.saturating_sub(last.failed),
            buckets: counts.map(|((bound, now), (_, then))| (*bound, now.saturating_sub(*then))).collect(),
        }
    }

    /// The bound that so many percent of them keep.
    fn within(&self, percent: u64) -> Option<f64> {
        let needed = (self.answered() * percent).div_ceil(100);
        self.buckets.iter().find(|(_, count)| *count >= needed).map(|(bound, _)| *bound)
    }

    fn times(&self) -> String {
        match (self.answered(), self.within(50), self.within(99)) {
            (1.., Some(half), Some(most)) => {
                format!("; half within {}, 99% within {}", time(half), time(most))
            }
            _ => String::new(),
        }
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s.is_infinite() => "more than a minute".into(),
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Output = Output { width: None, colours: false };
    const SURVEY: &str = include_str!("../../../tests/data/list.json");

    fn sample(at: Instant) -> Sample {
        Sample {
            at,
            clock: 1_700_000_000,
            survey: serde_json::from_str(SURVEY).unwrap(),
            metrics: None,
            programs: Vec::new(),
        }
    }

    #[test]
    fn who_waits_is_timed_from_picture_to_picture() {
        let start = Instant::now();
        let mut history = History::default();
        let first = history.frame(sample(start), &PLAIN, None);
        assert!(first.starts_with("2023-11-14 22:13:20 UTC: "), "{first}");
        assert!(first.contains("\nWAITS") && first.contains("0.0s"), "{first}");
        let second = history.frame(sample(start + Duration::from_millis(2500)), &PLAIN, None);
        assert!(second.contains("2.5s") && !second.contains("0.0s"), "{second}");
        let mut nobody = sample(start + Duration::from_secs(3));
        nobody.survey.mounts.iter_mut().for_each(|mount| mount.waiters.clear());
        nobody.survey.unplaced_waiters.clear();
        let third = history.frame(nobody, &PLAIN, None);
        assert!(third.contains(" 0 waiting\n") && !third.contains("WAITS"), "{third}");
        assert!(history.waiting.is_empty());
    }

    #[test]
    fn a_small_terminal_shows_something_of_everything() {
        let mut large = sample(Instant::now());
        let mount = large.survey.mounts.iter().find(|mount| !mount.waiters.is_empty()).unwrap().clone();
        large.survey.mounts = vec![mount; 100];
        let program = r#"{"command": "cat", "comm": "cat", "uid": 0, "pid": 7, "cgroup": "", "lookups": 5,
            "first": 0, "last": 0, "triggers": [], "others": 0}"#;
        large.programs = vec![serde_json::from_str(program).unwrap(); 9];
        let frame = History::default().frame(large, &PLAIN, Some(24));
        assert_eq!(frame.lines().count(), 24, "{frame}");
        let notes: Vec<_> = frame.lines().filter(|line| line.starts_with("    and ")).collect();
        assert_eq!(notes.len(), 3, "{frame}");
    }

    fn metrics(buckets: [u64; 3], failed: u64) -> String {
        let [a, b, c] = buckets;
        format!(
            "# HELP autofs_cr_requests_total Lookups answered.\n\
             autofs_cr_requests_total{{result=\"ok\"}} {}\nautofs_cr_requests_total{{result=\"unknown\"}} {failed}\n\
             autofs_cr_requests_duration_seconds_bucket{{le=\"0.00005\"}} {a}\n\
             autofs_cr_requests_duration_seconds_bucket{{le=\"0.005\"}} {b}\n\
             autofs_cr_requests_duration_seconds_bucket{{le=\"+Inf\"}} {c}\n\
             autofs_cr_requests_duration_seconds_sum 1.5\n",
            c - failed
        )
    }

    #[test]
    fn the_engine_tells_rates_and_times() {
        let start = Instant::now();
        let mut history = History::default();
        let mut with = |seconds, text| {
            let metrics = Some(text);
            let sample = Sample { metrics, ..sample(start + Duration::from_secs(seconds)) };
            let frame = history.frame(sample, &PLAIN, None);
            frame.lines().nth(1).unwrap().to_owned()
        };
        assert_eq!(
            with(0, metrics([6, 10, 10], 1)),
            "engine: 10 lookups so far, 1 failed; half within 50 us, 99% within 5 ms"
        );
        assert_eq!(
            with(2, metrics([6, 109, 111], 1)),
            "engine: 50.5 lookups/s, 0 failed; half within 5 ms, 99% within more than a minute"
        );
        assert_eq!(with(3, metrics([6, 109, 111], 1)), "engine: 0.0 lookups/s, 0 failed");
        // another engine
        assert_eq!(
            with(4, metrics([1, 1, 1], 0)),
            "engine: 1 lookup so far, 0 failed; half within 50 us, 99% within 50 us"
        );
    }

    #[test]
    fn the_metrics_are_those_that_an_engine_writes() {
        use autofs_cr::engine::metrics::Metrics;
        let engine = Metrics::default();
        engine.request(Ok(()), Instant::now());
        engine.request(Err(autofs_cr::sys::Errno::NOENT), Instant::now());
        let lookups = Lookups::parse(&engine.render(&autofs_cr::engine::state::Counts::default()));
        assert_eq!((lookups.answered(), lookups.failed), (2, 1));
        assert!(lookups.buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }
}
