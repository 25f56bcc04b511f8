//! What texts look like that Kubernetes accepts as names.

/// True for the name of most objects: lower-case letters, digits, `-` and `.`.
pub(super) fn is_object_name(text: &str) -> bool {
    let part = |part: &str| {
        framed(part, |c| c.is_ascii_lowercase() || c.is_ascii_digit(), |c| c == '-') && !part.is_empty()
    };
    text.len() <= 253 && text.split('.').all(part)
}

/// True for the key of a label or annotation, such as `team` or `example.com/team`.
pub(super) fn is_qualified_name(text: &str) -> bool {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    let domain_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let domain_ok =
        domain.is_none_or(|d| !d.is_empty() && framed(d, domain_char, |c| matches!(c, '-' | '.')));
    text.len() <= 253 && domain_ok && !name.is_empty() && is_label_value(name)
}

/// True for the value of a label.
pub(super) fn is_label_value(text: &str) -> bool {
    text.len() <= 63 && framed(text, |c| c.is_ascii_alphanumeric(), |c| matches!(c, '-' | '_' | '.'))
}

/// True for the repository of an image, perhaps with tag and digest.
pub(super) fn is_image(text: &str) -> bool {
    text.len() <= 255
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '/' | '@'))
}

/// True if `text` is empty or has `outer` characters first and last, and `outer` and `inner` ones between.
fn framed(text: &str, outer: impl Fn(char) -> bool, inner: impl Fn(char) -> bool) -> bool {
    text.is_empty()
        || text.starts_with(&outer) && text.ends_with(&outer) && text.chars().all(|c| outer(c) || inner(c))
}

/// What an amount of a resource of Kubernetes stands for; `None` if it is no quantity.
///
/// An approximation, good enough to compare a request with a limit.
pub(super) fn amount(text: &str) -> Option<f64> {
    let number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-');
    let end = text.find(|c| !number(c)).unwrap_or(text.len());
    if end == text.len() {
        return text.parse().ok();
    }
    scaled(&text[..end], &text[end..])
}

fn scaled(number: &str, suffix: &str) -> Option<f64> {
    let scale = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024f64,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => 10f64.powi(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    number.parse::<f64>().ok().map(|number| number * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, good) in
            [("fast", true), ("a.b-c", true), ("", false), ("A", false), ("a..b", false), ("-a", false)]
        {
            assert_eq!(is_object_name(name), good, "{name}");
        }
        for (name, good) in [
            ("team", true),
            ("example.com/Team_a", true),
            ("", false),
            ("/a", false),
            ("a/", false),
            ("a/b/c", false),
        ] {
            assert_eq!(is_qualified_name(name), good, "{name}");
        }
        assert!(
            is_label_value("")
                && is_label_value("a.b")
                && !is_label_value("a ")
                && !is_label_value(&"a".repeat(64))
        );
        assert!(
            is_image("registry.example:5000/a/b") && !is_image("/a") && !is_image("a b") && !is_image("")
        );
    }

    #[test]
    fn amounts() {
        for (text, expected) in
            [("1", 1.0), ("1500m", 1.5), ("2Gi", 2_147_483_648.0), ("1e3", 1000.0), ("-1", -1.0)]
        {
            let amount = amount(text).unwrap_or(f64::NAN);
            assert!((amount - expected).abs() < 1e-9, "{text}: {amount}");
        }
        for text in ["", "much", "1GB", "Gi", "1 Gi", "1e"] {
            assert!(amount(text).is_none(), "{text}");
        }
    }
}
