//! Counters and histograms, in the text format of Prometheus.
//!
//! Counting is a few atomic additions for each request; text is made only when somebody asks.

use super::state::Counts;
use crate::sys::Errno;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Upper bounds of the histograms' buckets: a bind mount takes 20 µs, a lookup is given up after 60 s.
const BOUNDS: [Duration; 15] = [
    Duration::from_micros(25),
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
];

/// How a request ended, as a label.
const RESULTS: [&str; 5] = ["ok", "unknown", "timeout", "busy", "failed"];

fn result_index(result: Result<(), Errno>) -> usize {
    match result {
        Ok(()) => 0,
        Err(Errno::NOENT) => 1,
        Err(Errno::TIMEDOUT) => 2,
        Err(Errno::BUSY) => 3,
        Err(_) => 4,
    }
}

/// The label of a result.
pub fn result_name(result: Result<(), Errno>) -> &'static str {
    RESULTS[result_index(result)]
}

#[derive(Debug, Default)]
struct Histogram {
    /// The last one is above all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn add(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let seconds = |duration: Duration| duration.as_secs_f64();
        head(text, name, "histogram", help);
        let mut sum = 0;
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS.map(Some).into_iter().chain([None])) {
            sum += bucket.load(Ordering::Relaxed);
            let bound = bound.map_or("+Inf".into(), |bound| seconds(bound).to_string());
            let _ = writeln!(text, "autofs_cr_{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let total = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        let _ = writeln!(text, "autofs_cr_{name}_sum {}\nautofs_cr_{name}_count {sum}", seconds(total));
    }
}

#[derive(Debug, Default)]
struct Counted {
    results: [AtomicU64; RESULTS.len()],
    times: Histogram,
}

impl Counted {
    fn add(&self, result: Result<(), Errno>, took: Duration) {
        self.results[result_index(result)].fetch_add(1, Ordering::Relaxed);
        self.times.add(took);
    }

    fn write(&self, text: &mut String, name: &str, help: [&str; 2]) {
        head(text, &format!("{name}_total"), "counter", help[0]);
        for (label, count) in RESULTS.iter().zip(&self.results) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "autofs_cr_{name}_total{{result=\"{label}\"}} {count}");
        }
        self.times.write(text, &format!("{name}_duration_seconds"), help[1]);
    }
}

/// What an engine has done since it began.
#[derive(Debug)]
pub struct Metrics {
    /// When it began.
    pub began: SystemTime,
    requests: Counted,
    unmounts: Counted,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { began: SystemTime::now(), requests: Counted::default(), unmounts: Counted::default() }
    }
}

impl Metrics {
    /// A lookup was answered that had been read `since`. Returns how long that took.
    pub fn request(&self, result: Result<(), Errno>, since: Instant) -> Duration {
        let took = since.elapsed();
        self.requests.add(result, took);
        took
    }

    /// An unmount job ended.
    pub fn unmount(&self, result: Result<(), Errno>, took: Duration) {
        self.unmounts.add(result, took);
    }

    /// As text.
    pub fn render(&self, counts: &Counts) -> String {
        let mut text = String::new();
        self.requests.write(
            &mut text,
            "requests",
            ["Lookups answered.", "Time from reading a lookup's request to its answer."],
        );
        self.unmounts.write(
            &mut text,
            "unmounts",
            ["Keys that were to be unmounted because they were idle.", "Time that unmounting a key took."],
        );
        let gauges = [
            ("mounts", counts.mounts, "Autofs mounts that are served."),
            ("mounted_keys", counts.mounted, "Keys that are mounted."),
            ("remembered_failures", counts.failed, "Failed lookups that are answered from memory."),
            ("jobs", counts.jobs, "Jobs that are running."),
            ("late_jobs", counts.late, "Jobs that took too long; their requests are answered."),
            ("waiting_requests", counts.waiting, "Requests that wait for a job."),
        ];
        for (name, value, help) in gauges {
            head(&mut text, name, "gauge", help);
            let _ = writeln!(text, "autofs_cr_{name} {value}");
        }
        head(&mut text, "start_time_seconds", "gauge", "When the engine began, seconds since 1970.");
        let began = self.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let _ = writeln!(text, "autofs_cr_start_time_seconds {began}");
        head(&mut text, "build_info", "gauge", "Its version.");
        let _ = writeln!(text, "autofs_cr_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP autofs_cr_{name} {help}\n# TYPE autofs_cr_{name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_nothing_is_lost() {
        let metrics = Metrics::default();
        for took in [1, 25, 26, 70_000_000] {
            metrics.unmount(Ok(()), Duration::from_micros(took));
        }
        metrics.unmount(Err(Errno::BUSY), Duration::from_millis(3));
        metrics.unmount(Err(Errno::IO), Duration::from_millis(3));
        let text = metrics.render(&Counts { mounts: 7, ..Counts::default() });
        for line in [
            "# TYPE autofs_cr_unmounts_duration_seconds histogram",
            "autofs_cr_unmounts_total{result=\"ok\"} 4",
            "autofs_cr_unmounts_total{result=\"busy\"} 1",
            "autofs_cr_unmounts_total{result=\"failed\"} 1",
            "autofs_cr_unmounts_duration_seconds_bucket{le=\"0.000025\"} 2",
            "autofs_cr_unmounts_duration_seconds_bucket{le=\"0.00005\"} 3",
            "autofs_cr_unmounts_duration_seconds_bucket{le=\"60\"} 5",
            "autofs_cr_unmounts_duration_seconds_bucket{le=\"+Inf\"} 6",
            "autofs_cr_unmounts_duration_seconds_count 6",
            "autofs_cr_requests_total{result=\"ok\"} 0",
            "autofs_cr_mounts 7",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
    }

    #[test]
    fn every_line_is_as_prometheus_reads_it() {
        for line in Metrics::default().render(&Counts::default()).lines() {
            let mut words = line.split(' ');
            match words.next() {
                Some("#") => assert!(matches!(words.next(), Some("HELP" | "TYPE")), "{line}"),
                Some(name) => {
                    assert!(name.starts_with("autofs_cr_"), "{line}");
                    assert!(words.next().unwrap().parse::<f64>().is_ok() && words.next().is_none(), "{line}");
                }
                None => unreachable!(),
            }
        }
    }
}
