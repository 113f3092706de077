//! Which content type a client prefers, by its `Accept` (RFC 9110 section 12.5.1).
//!
//! Of problems `application/problem+json` says more, but n8n and others hand it to their users as text; they ask for `application/json` first.

/// How much a client wants a content type: by its quality, then by how exactly it is named.
pub(crate) type Preference = (u16, u8);

/// Whether `application/json` is preferred to `application/problem+json`.
pub(super) fn prefers_plain_json(accept: Option<&str>) -> bool {
    accept.is_some_and(|accept| preference(accept, "application", "json") > preference(accept, "application", "problem+json"))
}

/// The most exact range that includes `<wanted>/<subtype>` counts.
pub(crate) fn preference(accept: &str, wanted: &str, subtype: &str) -> Preference {
    let ranges = accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (kind, given) = parts.next()?.split_once('/')?;
        let exactness = match (kind.trim().to_ascii_lowercase().as_str(), given.trim().to_ascii_lowercase().as_str()) {
            (kind, given) if kind == wanted && given == subtype => 3,
            (kind, "*") if kind == wanted => 2,
            ("*", "*") => 1,
            _ => return None,
        };
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        Some((exactness, quality.map_or(1000, thousandths)))
    });
    ranges.max_by_key(|(exactness, _)| *exactness).map_or((0, 0), |(exactness, quality)| (quality, exactness))
}

/// `0.8` as 800; what is no number counts as nothing.
fn thousandths(text: &str) -> u16 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    match (whole, digits) {
        ("1", true) => 1000,
        ("0", true) => format!("{fraction:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_json_is_for_those_who_ask_for_it_first() {
        for (accept, plain) in [
            ("application/json", true),
            ("Application/JSON", true),
            ("application/json, */*", true),
            ("application/json, text/plain, */*", true),
            ("application/json,text/html,application/xhtml+xml,application/xml,text/*;q=0.9, image/*;q=0.8, */*;q=0.7", true),
            ("application/json, application/problem+json;q=0.9", true),
            ("application/json;q=0.5", true),
            ("application/problem+json, application/json", false),
            ("application/problem+json, application/json;q=0.9", false),
            ("application/json;q=0.5, application/problem+json;q=0.6", false),
            ("application/json;q=0, */*", false),
            ("*/*", false),
            ("application/*", false),
            ("text/html", false),
            ("nonsense", false),
            ("", false),
        ] {
            assert_eq!(prefers_plain_json(Some(accept)), plain, "{accept}");
        }
        assert!(!prefers_plain_json(None));
    }
}
