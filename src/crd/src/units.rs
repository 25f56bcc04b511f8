//! Quantities and durations as people write them: `8Gi`, `64Mi`, `5m`, `1h30m`.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// A number of bytes as written in a file, in the notation of Kubernetes quantities. Not checked before
/// [`Quantity::bytes`] reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl Quantity {
    /// The number of bytes.
    ///
    /// # Errors
    /// What to write instead, if this is no whole, positive number of bytes below 2^63.
    pub fn bytes(&self) -> Result<u64, String> {
        let remedy = "write a number with Ki, Mi, Gi or Ti (or k, M, G, T), such as 8Gi";
        let text = self.0.as_str();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let unit: u64 = match suffix {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ if text.starts_with('-') => return Err(format!("{text:?} is negative; {remedy}")),
            _ => return Err(format!("{text:?} is no quantity of bytes; {remedy}")),
        };
        let wrong = || format!("{text:?} is no quantity of bytes; {remedy}");
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 {
            return Err(wrong());
        }
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
        let scaled: u128 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
        let bytes = scaled.checked_mul(u128::from(unit)).ok_or_else(wrong)? / scale;
        match i64::try_from(bytes) {
            Ok(bytes) => Ok(bytes.unsigned_abs()),
            Err(_) => Err(format!("{text:?} is more than any disk holds; {remedy}")),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    /// From text or from a whole number of bytes, as Kubernetes accepts both.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 8Gi")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Quantity, E> {
                Ok(Quantity(bytes.to_string()))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Quantity, E> {
                Ok(Quantity(bytes.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn schema_id() -> Cow<'static, str> {
        concat!(module_path!(), "::Quantity").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": r"^[0-9]+(\.[0-9]{1,9})?(k|M|G|T|Ki|Mi|Gi|Ti)?$",
        })
    }
}

/// A span of time as written in a file, in the notation of Go: `300s`, `5m`, `1h30m`. Not checked before
/// [`TimeSpan::duration`] reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct TimeSpan(#[schemars(regex(pattern = r"^([0-9]+(h|m|s|ms))+$"))] pub String);

impl TimeSpan {
    /// The span of time.
    ///
    /// # Errors
    /// What to write instead, if this is no span of time.
    pub fn duration(&self) -> Result<Duration, String> {
        let remedy = "write a number with h, m, s or ms, such as 5m or 1h30m";
        let wrong = || format!("{:?} is no span of time; {remedy}", self.0);
        let mut rest = self.0.as_str();
        if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{rest:?} has no unit; write {rest}s for seconds or {rest}m for minutes"));
        }
        if rest.starts_with('-') {
            return Err(format!("{rest:?} is negative; {remedy}"));
        }
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            let unit_end =
                rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
            let millis = match &rest[digits..unit_end] {
                "ms" => Some(number),
                "s" => number.checked_mul(1_000),
                "m" => number.checked_mul(60_000),
                "h" => number.checked_mul(3_600_000),
                _ => return Err(wrong()),
            };
            let part = Duration::from_millis(millis.ok_or_else(wrong)?);
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = &rest[unit_end..];
        }
        Ok(total)
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("1Ki", 1 << 10),
            ("64Mi", 64 << 20),
            ("8Gi", 8 << 30),
            ("2Ti", 2 << 40),
            ("1.5Gi", 3 << 29),
            ("5M", 5_000_000),
            ("1k", 1000),
        ] {
            assert_eq!(Quantity(text.to_owned()).bytes(), Ok(bytes), "{text}");
        }
        for text in
            ["", "Gi", "8GB", "8gi", "-8Gi", "8 Gi", "1.2.3Gi", ".5Gi", "99999999999Ti", "1e3", "0x10"]
        {
            let message = Quantity(text.to_owned()).bytes().expect_err(text);
            assert!(message.contains("such as 8Gi"), "{text}: {message}");
        }
    }

    #[test]
    fn time_spans() {
        for (text, secs) in [("5m", 300), ("300s", 300), ("1h30m", 5400), ("1h0m5s", 3605), ("0s", 0)] {
            assert_eq!(TimeSpan(text.to_owned()).duration(), Ok(Duration::from_secs(secs)), "{text}");
        }
        assert_eq!(TimeSpan("250ms".to_owned()).duration(), Ok(Duration::from_millis(250)));
        for text in
            ["", "m", "5", "-5m", "5 m", "5min", "5d", "1.5h", "99999999999999999999h", "9999999999999999h"]
        {
            assert!(TimeSpan(text.to_owned()).duration().is_err(), "{text}");
        }
    }
}
