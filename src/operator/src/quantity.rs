//! Quantities of Kubernetes (apimachinery, pkg/api/resource): what they are worth, and the form in which the API server
//! stores them, so that what is applied is what is read back.
//!
//! The canonical form is that of `CanonicalizeBytes`: no fraction, the largest suffix that needs none, binary suffixes
//! stay binary unless the number is below 1024.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
/// Everything is counted in units of this, the smallest that a quantity can have.
const NANO: u128 = 1_000_000_000;

/// The canonical form. What is no quantity, or not below 2^63, stays as it is: the API server refuses it with a
/// message of its own.
pub fn canonical(text: &str) -> String {
    parse(text).map_or_else(|| text.to_owned(), |(nanos, notation)| format(nanos, notation))
}

/// What a quantity is worth, in billionths; less than that is rounded away from zero. `None` if it is none, or not below 2^63.
pub fn nanos(text: &str) -> Option<i128> {
    let (negative, size) = match text.strip_prefix('-') {
        Some(rest) if !rest.starts_with('+') => (true, rest),
        _ => (false, text),
    };
    let nanos = i128::try_from(parse(size)?.0).ok()?;
    Some(if negative { -nanos } else { nanos })
}

/// How a quantity is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Notation {
    /// `1500m`.
    Decimal,
    /// `8Gi`.
    Binary,
    /// `10e3`.
    Exponent,
}

/// In billionths, and how it was written.
fn parse(text: &str) -> Option<(u128, Notation)> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    let mantissa: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let binary = BINARY.iter().find(|(name, _)| *name == suffix);
    let scaled = |exponent: i32| {
        let exponent = exponent.checked_add(9)? - places;
        let power = 10u128.checked_pow(exponent.unsigned_abs())?;
        // What is smaller than a billionth is rounded up, as apimachinery does.
        if exponent >= 0 { mantissa.checked_mul(power) } else { Some(mantissa.div_ceil(power)) }
    };
    let (nanos, notation) = if let Some((_, bits)) = binary {
        (scaled(0)?.checked_mul(1 << bits)?, Notation::Binary)
    } else if let Some((_, exponent)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        (scaled(*exponent)?, Notation::Decimal)
    } else {
        let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
        (scaled((-9..=18).contains(&exponent).then_some(exponent)?)?, Notation::Exponent)
    };
    (nanos < u128::from(u64::MAX / 2) * NANO).then_some((nanos, notation))
}

fn format(nanos: u128, notation: Notation) -> String {
    if notation == Notation::Binary && nanos >= 1024 * NANO && nanos.is_multiple_of(NANO) {
        let bytes = nanos / NANO;
        let fits = BINARY.iter().rev().find(|(_, bits)| bytes.is_multiple_of(1 << bits));
        return fits.map_or_else(|| bytes.to_string(), |(name, bits)| format!("{}{name}", bytes >> bits));
    }
    if nanos == 0 {
        return "0".to_owned();
    }
    let fits = DECIMAL.iter().rev().find_map(|(name, exponent)| {
        let unit = 10u128.checked_pow(u32::try_from(exponent + 9).ok()?)?;
        nanos.is_multiple_of(unit).then(|| match (notation, exponent) {
            (Notation::Exponent, exponent) if *exponent != 0 => format!("{}e{exponent}", nanos / unit),
            _ => format!("{}{name}", nanos / unit),
        })
    });
    fits.unwrap_or_else(|| format!("{nanos}n"))
}

/// The same requirements with canonical quantities.
pub fn canonical_resources(resources: &ResourceRequirements) -> ResourceRequirements {
    let all = |map: &BTreeMap<String, Quantity>| {
        map.iter().map(|(name, q)| (name.clone(), Quantity(canonical(&q.0)))).collect()
    };
    ResourceRequirements {
        claims: resources.claims.clone(),
        limits: resources.limits.as_ref().map(all),
        requests: resources.requests.as_ref().map(all),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_api_server_writes_them() {
        for (written, stored) in [
            ("0.5", "500m"),
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.1", "100m"),
            (".5", "500m"),
            ("2.0", "2"),
            ("1e3", "1e3"),
            ("1e4", "10e3"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("8Gi", "8Gi"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("0.5Ki", "512"),
            ("1025Ki", "1025Ki"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("0", "0"),
            ("0Gi", "0"),
            ("100M", "100M"),
            ("1000M", "1G"),
            ("250u", "250u"),
        ] {
            assert_eq!(canonical(written), stored, "{written}");
        }
        for other in ["", "x", "Gi", "1.2.3", "1Zi", "-1", "99999999999999999999", "1e99"] {
            assert_eq!(canonical(other), other);
        }
    }

    #[test]
    fn worth() {
        for (text, worth) in [
            ("1n", 1),
            ("0.5", 500_000_000),
            ("-1", -1_000_000_000),
            ("+1", 1_000_000_000),
            ("1.5Ki", 1536 * 1_000_000_000),
            ("1e3", 1_000_000_000_000),
        ] {
            assert_eq!(nanos(text), Some(worth), "{text}");
        }
        for text in ["", "x", "1x", ".", "1.2.3", "Ki", "-", "-+1", "--1", "1e99"] {
            assert_eq!(nanos(text), None, "{text}");
        }
    }

    #[test]
    fn the_canonical_form_is_its_own() {
        for text in ["0.5", "1.5Gi", "1e3", "1024", "3M", "7n", "1023Ki", "1Ei"] {
            assert_eq!(canonical(&canonical(text)), canonical(text));
        }
    }
}
