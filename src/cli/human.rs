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

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn timeouts_as_people_write_them() {
        for (seconds, text) in
            [(0, "never"), (45, "45s"), (300, "5m"), (301, "5m1s"), (5_400, "1h30m"), (172_800, "2d")]
        {
            assert_eq!(duration(seconds), text);
        }
    }
}
