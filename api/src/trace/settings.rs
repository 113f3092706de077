//! Where spans go, and how many.

use std::path::Path;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use probeops_shared::http_url::HttpUrl;

/// The path of traces below a collector's address (OTLP/HTTP).
const TRACES: &str = "/v1/traces";
/// The service that this API is, unless told.
const SERVICE_NAME: &str = "probeops-api";
/// The largest file with headers.
const HEADERS_BYTES_MAX: usize = 16 * 1024;

/// Where spans go, and how many.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// Where they are posted.
    pub endpoint: HttpUrl,
    /// Headers that the collector wants; their values are secret.
    pub headers: HeaderMap,
    /// As which service.
    pub service_name: String,
    /// The share of the traces begun here that is kept, from 0 to 1.
    pub ratio: f64,
}

impl TraceSettings {
    /// Reads what was given; nothing where no collector is named.
    pub(crate) fn read(
        endpoint: Option<&str>,
        headers_file: Option<&Path>,
        service_name: Option<&str>,
        ratio: Option<f64>,
    ) -> Result<Option<Self>, String> {
        let ratio = ratio.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&ratio) {
            return Err(format!("otlp_ratio must be from 0 to 1, not {ratio}"));
        }
        // OpenTelemetry takes an empty variable as none.
        let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else { return Ok(None) };
        let refused = |detail: String| {
            format!("otlp_endpoint: {detail}; it must be a collector's address for OTLP over HTTP, such as http://127.0.0.1:4318")
        };
        // What a target may leave out, OpenTelemetry asks for.
        if !endpoint.contains("://") {
            return Err(refused("it has no scheme".to_owned()));
        }
        let base: HttpUrl = endpoint.parse().map_err(|detail: String| refused(detail))?;
        if base.path_and_query().contains('?') {
            return Err(refused("it has a query".to_owned()));
        }
        let path = base.path_and_query().trim_end_matches('/');
        let url = format!("{}://{}{path}{TRACES}", base.scheme().as_str(), base.authority());
        let endpoint = url.parse().map_err(refused)?;
        let headers = headers_file.map(headers).transpose()?.unwrap_or_default();
        let service_name = service_name.filter(|name| !name.is_empty()).unwrap_or(SERVICE_NAME).to_owned();
        Ok(Some(Self { endpoint, headers, service_name, ratio }))
    }
}

/// Reads a file with one header a line. Errors never have a value in them.
fn headers(path: &Path) -> Result<HeaderMap, String> {
    let refused = |detail: &str| format!("otlp_headers_file: {}: {detail}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| refused(&error.to_string()))?;
    if text.len() > HEADERS_BYTES_MAX {
        return Err(refused(&format!("has {} bytes, at most {HEADERS_BYTES_MAX} are read", text.len())));
    }
    let mut headers = HeaderMap::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let parsed = line.split_once(':').and_then(|(name, value)| {
            let mut value = HeaderValue::try_from(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(name.trim()).ok()?, value))
        });
        let (name, value) = parsed.ok_or_else(|| refused(&format!("line {number} is not `name: value`")))?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_traces_is_added_to_the_collectors_address() {
        let read = |endpoint| {
            TraceSettings::read(Some(endpoint), None, None, None).map(|settings| settings.map(|settings| settings.endpoint.to_string()))
        };
        for (given, posted_to) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://otlp.example/", "https://otlp.example/v1/traces"),
            ("https://otlp.example/otlp", "https://otlp.example/otlp/v1/traces"),
        ] {
            assert_eq!(read(given), Ok(Some(posted_to.to_owned())), "{given}");
        }
        assert_eq!(read(""), Ok(None));
        for bad in ["127.0.0.1:4318", "grpc://a:4317", "http://me:pw@a", "http://a?token"] {
            let error = read(bad).unwrap_err();
            assert!(error.starts_with("otlp_endpoint: ") && error.contains("http://127.0.0.1:4318") && !error.contains("pw"), "{error}");
        }
        assert!(TraceSettings::read(None, None, None, Some(1.5)).unwrap_err().contains("from 0 to 1, not 1.5"));
    }
}
