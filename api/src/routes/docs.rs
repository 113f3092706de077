//! The page that shows what there is and lets a reader try it: Swagger UI 5.35.0 (Apache-2.0), as it is released. It asks nobody but this API.

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::App;

/// What the page may load and run: what is here. Swagger UI styles its parts one by one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
struct Asset {
    path: &'static str,
    content_type: &'static str,
    /// Whether it lies here compressed, and is sent so.
    gzip: bool,
    content: &'static [u8],
}

static ASSETS: [Asset; 4] = [
    Asset { path: "/docs", content_type: "text/html; charset=utf-8", gzip: false, content: include_bytes!("../../assets/docs.html") },
    Asset {
        path: "/docs/docs.js",
        content_type: "text/javascript; charset=utf-8",
        gzip: false,
        content: include_bytes!("../../assets/docs.js"),
    },
    Asset {
        path: "/docs/swagger-ui.css",
        content_type: "text/css; charset=utf-8",
        gzip: true,
        content: include_bytes!("../../assets/swagger-ui/swagger-ui.css.gz"),
    },
    Asset {
        path: "/docs/swagger-ui-bundle.js",
        content_type: "text/javascript; charset=utf-8",
        gzip: true,
        content: include_bytes!("../../assets/swagger-ui/swagger-ui-bundle.js.gz"),
    },
];

/// Adds the page. It is no operation of the API: it is for people.
pub(super) fn add(router: Router<App>) -> Router<App> {
    ASSETS.iter().fold(router, |router, asset| router.route(asset.path, get(async || answer(asset))))
}

fn answer(asset: &'static Asset) -> Response {
    let mut response = asset.content.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if asset.gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use data_encoding::HEXLOWER;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_page_is_swagger_ui_as_it_was_released() {
        for (path, sha256) in [
            ("/docs/swagger-ui-bundle.js", "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2"),
            ("/docs/swagger-ui.css", "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d"),
        ] {
            let asset = ASSETS.iter().find(|asset| asset.path == path).unwrap();
            let mut content = Vec::new();
            flate2::read::GzDecoder::new(asset.content).read_to_end(&mut content).unwrap();
            assert_eq!(HEXLOWER.encode(&Sha256::digest(&content)), sha256, "{path}");
        }
    }

    #[test]
    fn the_page_names_no_other_place() {
        for asset in ASSETS.iter().filter(|asset| !asset.gzip) {
            let text = std::str::from_utf8(asset.content).unwrap();
            assert!(!text.contains("://") && !text.contains("\"//"), "{}", asset.path);
        }
    }
}
