//! A small fuzzer: inputs of a corpus, changed at random. No coverage is measured; stable Rust is enough.
//!
//! Without `FUZZ_SECONDS` every target has the same few mutants in every run: a test like any other. With it mutants are made
//! for that long, or with `FUZZ_COUNT` so many; others each time. An input that fails is kept in the corpus, and so tried first in every later run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Mutants of a short run.
const SHORT: u64 = 1000;
/// Mutants that are kept to be changed again.
const POOL: usize = 512;
/// The longest input.
const LONGEST: usize = 8192;
/// No input may take longer. (They take milliseconds; a busy machine takes its time, too.)
const SLOW: Duration = Duration::from_secs(30);

/// Call `check` with `seeds`, with every input of `tests/fuzz/corpus/TARGET`, and with mutants of both; `words` are put in as
/// they are.
#[allow(clippy::print_stdout, reason = "a long run says what it did")]
pub fn fuzz(target: &str, seeds: Vec<Vec<u8>>, words: &[&str], check: impl Fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let found = std::fs::read_dir(&corpus).into_iter().flatten();
    let mut files: Vec<PathBuf> = found.map(|file| file.expect("a file").path()).collect();
    files.sort();
    let mut pool = seeds;
    for file in &files {
        let input = std::fs::read(file).expect("an input");
        run(&input, &check, file, false);
        pool.push(input);
    }
    assert!(!pool.is_empty(), "{} is empty", corpus.display());

    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (seconds, count) = (number("FUZZ_SECONDS"), number("FUZZ_COUNT"));
    let begin = Instant::now();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64);
    let mut random = Random(if seconds.or(count).is_some() { now() } else { 1 });
    let own = pool.len();
    let mut made = 0;
    let goes_on = |made| match seconds {
        Some(seconds) => begin.elapsed() < Duration::from_secs(seconds),
        None => made < count.unwrap_or(SHORT),
    };
    while goes_on(made) {
        let mut input = pool[random.below(pool.len())].clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &pool, words, &mut random);
        }
        input.truncate(LONGEST);
        let kept = corpus.join(format!("found-{:016x}", random.next()));
        run(&input, &check, &kept, true);
        if random.below(8) == 0 {
            if pool.len() < POOL {
                pool.push(input);
            } else {
                let place = own + random.below(pool.len() - own);
                pool[place] = input;
            }
        }
        made += 1;
    }
    println!("{target}: {own} inputs, {made} mutants in {} s", begin.elapsed().as_secs());
}

/// Check an input; one that fails is written to `file` if it is new.
fn run(input: &[u8], check: &impl Fn(&[u8]), file: &Path, is_new: bool) {
    let begin = Instant::now();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(input)));
    let slow = begin.elapsed() > SLOW;
    if result.is_ok() && !slow {
        return;
    }
    if is_new {
        let kept = std::fs::create_dir_all(file.parent().expect("a corpus"));
        kept.and_then(|()| std::fs::write(file, input)).expect("the input is kept");
    }
    let what = if slow { "takes too long" } else { "fails" };
    panic!("the input {} {what}: {:?}", file.display(), String::from_utf8_lossy(input));
}

fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(16)).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next() as u8,
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, copy);
        }
        4 => {
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            let length = random.below(64).min(other.len() - from);
            input.splice(at..end, other[from..from + length].iter().copied());
        }
        5 | 6 if !words.is_empty() => {
            let word = words[random.below(words.len())];
            input.splice(at..at, word.bytes());
        }
        7 => input.truncate(at.max(1)),
        _ => input.insert(at, b"\0\n \\\",=:/-$&*{}()#\xff"[random.below(18)]),
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 up to `limit`, without it; 0 for none.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }
}
