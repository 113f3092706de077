//! Bodies: JSON by their content type, bounded in size and in the time they may take to arrive.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use probeops_shared::job::JOB_BYTES_MAX;
use probeops_shared::problem::Code;

use crate::problem::Problem;
use crate::routes::fit::Seen;

/// The largest body, in bytes.
pub(super) const BODY_BYTES_MAX: usize = JOB_BYTES_MAX;
/// So much of a body that is too large is read and thrown away: a client that is still sending would not see the answer.
const DISCARDED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a body may take to arrive.
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// The body of a request that says it is JSON.
pub(super) struct JsonBody(pub(super) Bytes);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let read = read(body, &parts.headers).await?;
        parts.extensions.get::<Seen>().into_iter().for_each(|seen| seen.keep(&read));
        check_type(&parts.headers)?;
        Ok(Self(read))
    }
}

/// The body of a request that needs none: nothing, or an empty object.
pub(super) struct NoBody;

impl<S: Sync> FromRequest<S> for NoBody {
    type Rejection = Problem;
    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let read = read(body, &parts.headers).await?;
        if read.is_empty() || read.trim_ascii() == b"{}" {
            return Ok(Self);
        }
        parts.extensions.get::<Seen>().into_iter().for_each(|seen| seen.keep(&read));
        Err(Problem::new(Code::Invalid, "this takes no body; send none, or {}"))
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let how = "with curl, add -H 'Content-Type: application/json'";
    let unsupported = |detail: String| Err(Problem::new(Code::UnsupportedMediaType, detail));
    if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        let encoding: String = String::from_utf8_lossy(encoding.as_bytes()).chars().take(64).collect();
        return unsupported(format!("the body is encoded as `{encoding}`; send it as it is, without Content-Encoding"));
    }
    let Some(given) = headers.get(CONTENT_TYPE) else {
        return unsupported(format!("the body has no content type; it must be application/json ({how})"));
    };
    let given = String::from_utf8_lossy(given.as_bytes());
    if given.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let shown: String = given.chars().take(64).collect();
    unsupported(format!("the body's content type is `{shown}`; it must be application/json ({how})"))
}

async fn read(body: Body, headers: &HeaderMap) -> Result<Bytes, Problem> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let reading = async {
        if announced.is_some_and(|length| length > BODY_BYTES_MAX) {
            discard(body).await;
            return Err(too_large());
        }
        gather(body).await
    };
    tokio::time::timeout(BODY_WITHIN, reading).await.unwrap_or_else(|_elapsed| {
        Err(Problem::new(Code::RequestTimeout, format!("the body did not arrive within {} s", BODY_WITHIN.as_secs())))
    })
}

async fn gather(mut body: Body) -> Result<Bytes, Problem> {
    let mut gathered = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::new(Code::Invalid, format!("the body ended before it was complete: {error}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        if gathered.len() + piece.len() > BODY_BYTES_MAX {
            discard(body).await;
            return Err(too_large());
        }
        gathered.extend_from_slice(&piece);
    }
    Ok(gathered.freeze())
}

async fn discard(mut body: Body) {
    let mut discarded = 0;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, Bytes::len);
        if discarded > DISCARDED_BYTES_MAX {
            return;
        }
    }
}

fn too_large() -> Problem {
    Problem::new(Code::TooLarge, format!("the body is larger than {BODY_BYTES_MAX} bytes; no job needs so much"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(content_type: Option<&'static str>) -> Result<(), Problem> {
        let mut headers = HeaderMap::new();
        content_type.map(|value| headers.insert(CONTENT_TYPE, value.parse().unwrap()));
        check_type(&headers)
    }

    #[test]
    fn json_is_known_by_its_content_type() {
        for good in ["application/json", "Application/JSON; charset=utf-8"] {
            assert!(typed(Some(good)).is_ok(), "{good}");
        }
        for bad in [None, Some("application/x-www-form-urlencoded"), Some("text/json"), Some("application/jsonx"), Some("")] {
            let problem = typed(bad).unwrap_err();
            assert_eq!(problem.code(), Code::UnsupportedMediaType);
            assert!(problem.detail().contains("-H 'Content-Type: application/json'"), "{problem}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, "application/json".parse().unwrap());
        headers.insert(CONTENT_ENCODING, "gzip".parse().unwrap());
        assert!(check_type(&headers).unwrap_err().detail().contains("encoded as `gzip`"));
    }

    #[tokio::test]
    async fn a_body_is_gathered_up_to_its_bound() {
        let whole = vec![b'x'; BODY_BYTES_MAX];
        assert_eq!(read(Body::from(whole.clone()), &HeaderMap::new()).await.unwrap().len(), BODY_BYTES_MAX);
        let larger = [whole, vec![b'x']].concat();
        assert_eq!(read(Body::from(larger.clone()), &HeaderMap::new()).await.unwrap_err().code(), Code::TooLarge);
        let mut announced = HeaderMap::new();
        announced.insert(CONTENT_LENGTH, larger.len().into());
        assert_eq!(read(Body::from(larger), &announced).await.unwrap_err().code(), Code::TooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let pieces = futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
        let endless = Body::from_stream(futures_util::StreamExt::chain(pieces, futures_util::stream::pending()));
        let problem = read(endless, &HeaderMap::new()).await.unwrap_err();
        assert_eq!((problem.code(), problem.detail()), (Code::RequestTimeout, "the body did not arrive within 10 s"));
    }
}
