//! Figures for people.

/// A number of bytes with three or more digits of precision, as in `12.3 MiB`.
pub(super) fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut size = 1024u128;
    while unit + 1 < UNITS.len() && u128::from(bytes) >= size * 1024 {
        size *= 1024;
        unit += 1;
    }
    let tenths = u128::from(bytes) * 10 / size;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A ratio in hundredths, as in `1.25`.
pub(super) fn ratio_text(value: u64, of: u64) -> String {
    let hundredths = u128::from(value) * 100 / u128::from(of.max(1));
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// A number of things, as in `1 range` or `2 ranges`.
pub(super) fn count_text(n: u64, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// A number of keys and bytes, as in `3 keys, 1.2 KiB`.
pub(super) fn load_text(keys: u64, bytes: u64) -> String {
    format!("{}, {}", count_text(keys, "key"), bytes_text(bytes))
}

/// Work, as in `1200 ops/s`.
pub(super) fn work_text(work: u64) -> String {
    format!("{work} ops/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let texts = [0, 1023, 1024, 1536, 1 << 20, 512 << 20, 3 << 39, u64::MAX].map(bytes_text);
        let expected =
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "512.0 MiB", "1.5 TiB", "16777215.9 TiB"];
        assert_eq!(texts, expected);
        assert_eq!(ratio_text(125, 100), "1.25");
        assert_eq!(ratio_text(7, 0), "7.00");
    }
}
