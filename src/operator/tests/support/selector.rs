//! Label and field selectors of lists and watches.

use serde_json::Value;

/// What a list or a watch asks for.
#[derive(Debug, Clone, Default)]
pub struct Selector {
    labels: Vec<Term>,
    fields: Vec<(Vec<String>, bool, String)>,
}

#[derive(Debug, Clone)]
enum Term {
    Is(String, Vec<String>),
    IsNot(String, Vec<String>),
    Has(String),
    HasNot(String),
}

impl Selector {
    /// From the two query parameters.
    pub fn parse(labels: &str, fields: &str) -> Self {
        let fields = fields.split(',').filter(|f| !f.is_empty()).map(|field| {
            let (path, equal, value) = match field.split_once("!=") {
                Some((path, value)) => (path, false, value),
                None => {
                    let (path, value) = field.split_once('=').expect("a field selector has a value");
                    (path, true, value.trim_start_matches('='))
                }
            };
            (path.split('.').map(str::to_owned).collect(), equal, value.to_owned())
        });
        Self { labels: terms(labels), fields: fields.collect() }
    }

    /// Whether the object is asked for.
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        let labels = self.labels.iter().all(|term| match term {
            Term::Is(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Term::IsNot(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Term::Has(key) => label(key).is_some(),
            Term::HasNot(key) => label(key).is_none(),
        });
        labels
            && self.fields.iter().all(|(path, equal, value)| {
                let found = path.iter().try_fold(object, |v, name| v.get(name)).and_then(Value::as_str);
                (found.unwrap_or_default() == value) == *equal
            })
    }
}

fn terms(text: &str) -> Vec<Term> {
    let mut rest = text;
    let mut terms = Vec::new();
    while !rest.is_empty() {
        let mut depth = 0;
        let end = rest.find(|c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth == 0
        });
        let (term, after) = end.map_or((rest, ""), |at| (&rest[..at], &rest[at + 1..]));
        terms.push(parse_term(term.trim()));
        rest = after;
    }
    terms
}

fn parse_term(term: &str) -> Term {
    let values = |list: &str| {
        list.trim()
            .trim_start_matches('(')
            .trim_end_matches(')')
            .split(',')
            .map(|v| v.trim().to_owned())
            .collect()
    };
    if let Some((key, list)) = term.split_once(" notin ") {
        Term::IsNot(key.trim().to_owned(), values(list))
    } else if let Some((key, list)) = term.split_once(" in ") {
        Term::Is(key.trim().to_owned(), values(list))
    } else if let Some((key, value)) = term.split_once("!=") {
        Term::IsNot(key.to_owned(), vec![value.to_owned()])
    } else if let Some((key, value)) = term.split_once('=') {
        Term::Is(key.to_owned(), vec![value.trim_start_matches('=').to_owned()])
    } else if let Some(key) = term.strip_prefix('!') {
        Term::HasNot(key.to_owned())
    } else {
        Term::Has(term.to_owned())
    }
}
