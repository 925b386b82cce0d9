//! Numbers as people read them.

/// Seconds as units: `45s`, `5m`, `1h30m`; 0 is `never`.
pub fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut texts = Vec::new();
    for (length, unit) in UNITS {
        if rest >= length {
            texts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    if texts.is_empty() { "never".into() } else { texts.concat() }
}

/// How many of something whose plural ends in s: `1 mount`, `2 mounts`.
pub fn count<N: std::fmt::Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    format!("{number} {what}{}", if number == N::from(1) { "" } else { "s" })
}

/// Seconds since 1970 in UTC: `2023-11-14 22:13:20 UTC`.
pub fn date(seconds: u64) -> String {
    let (mut days, time) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    // The calendar repeats after 400 years.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", days + 1)
}

#[cfg(test)]
mod tests {
    use super::{date, duration};

    #[test]
    fn timeouts_as_people_write_them() {
        for (seconds, text) in
            [(0, "never"), (45, "45s"), (300, "5m"), (301, "5m1s"), (5_400, "1h30m"), (172_800, "2d")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn dates_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (978_307_199, "2000-12-31 23:59:59 UTC"),
            (1_700_000_000, "2023-11-14 22:13:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (u64::MAX, "584554051223-11-09 07:00:15 UTC"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
