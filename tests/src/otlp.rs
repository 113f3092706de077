//! A collector: it takes spans by OTLP over HTTP and reads them with the protocol as its makers write it, not as we do.

use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Map, Value, json};

use crate::process::{HANG, LOOK_EVERY};
use crate::receiver::{Receiver, Reply};

/// Where spans are posted below a collector's address.
const PATH: &str = "/v1/traces";

/// A collector; it ends with the test's process.
#[derive(Debug)]
pub struct Collector(Receiver);

/// A span as it was told.
#[derive(Clone, Debug)]
pub struct Told {
    /// What is told of whose it is.
    pub resource: Map<String, Value>,
    /// The span.
    pub span: Span,
}

impl Collector {
    /// One that takes everything.
    pub fn start() -> Self {
        Self::answering(|_| Reply::status(200))
    }

    /// One that answers each request by how many came before it.
    pub fn answering(answer: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        Self(Receiver::start(move |before, _| answer(before)))
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.0.origin()
    }

    /// What came and was taken, byte for byte.
    pub fn bodies(&self) -> Vec<Vec<u8>> {
        self.0.received().into_iter().filter(|received| received.status == 200).map(|received| received.body).collect()
    }

    /// The headers of the first request.
    #[track_caller]
    pub fn first_headers(&self) -> Vec<(String, String)> {
        self.0.wait_for(PATH, 1).remove(0).headers
    }

    /// All spans that were taken.
    #[track_caller]
    pub fn told(&self) -> Vec<Told> {
        let taken = self.0.received_at(PATH).into_iter().filter(|received| received.status == 200);
        let mut told = Vec::new();
        for received in taken {
            assert_eq!(received.header("content-type"), Some("application/x-protobuf"));
            let request = ExportTraceServiceRequest::decode(received.body.as_slice()).expect("OTLP");
            for of_one in request.resource_spans {
                let resource = attributes(&of_one.resource.expect("whose they are").attributes);
                let spans = of_one.scope_spans.into_iter().flat_map(|scope| scope.spans);
                told.extend(spans.map(|span| Told { resource: resource.clone(), span }));
            }
        }
        told
    }

    /// The spans of a trace, once there are at least so many.
    #[track_caller]
    pub fn wait_for(&self, trace_id: &str, count: usize) -> Vec<Told> {
        let started = Instant::now();
        loop {
            let mut told = self.told();
            told.retain(|told| told.trace_id() == trace_id);
            if told.len() >= count {
                return told;
            }
            assert!(started.elapsed() < HANG, "{} of {count} spans of trace {trace_id}: {told:?}", told.len());
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Told {
    /// Its trace, in hexadecimal digits.
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// Itself.
    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    /// The span that caused it; empty of the first.
    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }

    /// An attribute; null if it has none of this name.
    pub fn attribute(&self, key: &str) -> Value {
        attributes(&self.span.attributes).remove(key).unwrap_or_default()
    }

    /// Its service.
    pub fn service(&self) -> &str {
        self.resource["service.name"].as_str().unwrap_or_default()
    }

    /// Its events: name and attributes.
    pub fn events(&self) -> Vec<(String, Map<String, Value>)> {
        self.span.events.iter().map(|event| (event.name.clone(), attributes(&event.attributes))).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn attributes(given: &[KeyValue]) -> Map<String, Value> {
    let value = |given: &Option<AnyValue>| match given.as_ref().and_then(|any| any.value.as_ref()) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::IntValue(number)) => json!(number),
        other => panic!("an attribute of a kind that is not told: {other:?}"),
    };
    given.iter().map(|attribute| (attribute.key.clone(), value(&attribute.value))).collect()
}
