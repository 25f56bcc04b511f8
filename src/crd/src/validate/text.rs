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
