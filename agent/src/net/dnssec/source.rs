//! Where the records of a proof come from: one server, asked once for each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::stream::{self, Stream};
use hickory_net::NetError;
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::xfer::DnsHandle;
use hickory_proto::op::{DnsRequest, DnsResponse, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use probeops_shared::tools::dns::Dns;
use probeops_shared::tools::dns::record_type::RecordType as Kind;
use probeops_shared::tools::dns::report::AttemptResult;
use probeops_shared::tools::dns::validation::{DnsValidationQuery, VALIDATION_QUERIES_MAX};
use probeops_shared::tools::network::{Source as Address, ms};
use tokio::sync::{OnceCell, mpsc};

use crate::net::dns::message::{Query, is_truncated, name_of};
use crate::net::dns::{self, Way};

/// A question of the proof, and its answer.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    /// In words why there is none.
    pub(super) answer: Result<DnsResponse, String>,
}

impl Exchange {
    /// Why it does not help.
    pub(super) fn failure(&self) -> Option<String> {
        let asked = format!("{} {}", name_of(&self.name), self.kind);
        match &self.answer {
            Err(why) => Some(format!("{asked}: {why}")),
            Ok(answer) => match answer.metadata.response_code {
                ResponseCode::NoError | ResponseCode::NXDomain => None,
                code => Some(format!("{asked}: the server answered {}", code_name(code))),
            },
        }
    }
}

type Cell = Arc<OnceCell<Arc<Exchange>>>;

/// A server.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    server: SocketAddr,
    way: Way,
    /// What was said of retries and patience counts here too.
    options: Arc<Dns>,
    asked: Arc<Mutex<HashMap<(Name, RecordType), Cell>>>,
    told: mpsc::UnboundedSender<DnsValidationQuery>,
}

impl Source {
    /// The server, and what is told of each question as it is answered.
    pub(crate) fn new(server: SocketAddr, way: Way, options: &Dns) -> (Self, mpsc::UnboundedReceiver<DnsValidationQuery>) {
        let (told, heard) = mpsc::unbounded_channel();
        // Everything, signed, and unchecked: a resolver that checks would keep back what is to be checked here.
        let options = Dns { dnssec: true, checking_disabled: true, nsid: false, ..options.clone() };
        (Self { server, way, options: Arc::new(options), asked: Arc::default(), told }, heard)
    }

    /// What was asked until now.
    pub(super) fn exchanges(&self) -> Vec<Arc<Exchange>> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.values().filter_map(|cell| cell.get().cloned()).collect()
    }

    pub(super) async fn ask(&self, name: Name, kind: RecordType) -> Result<DnsResponse, NetError> {
        let name = name.to_lowercase();
        let cell = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let room = asked.len() < usize::try_from(VALIDATION_QUERIES_MAX).unwrap_or(usize::MAX);
            match asked.get(&(name.clone(), kind)) {
                Some(cell) => Arc::clone(cell),
                None if room => Arc::clone(asked.entry((name.clone(), kind)).or_default()),
                None => return Err(NetError::Message("the proof takes more questions than may be asked")),
            }
        };
        let exchange = cell.get_or_init(|| self.exchange(name, kind)).await;
        exchange.answer.clone().map_err(NetError::Msg)
    }

    async fn exchange(&self, name: Name, kind: RecordType) -> Arc<Exchange> {
        let started = Instant::now();
        let answer = self.fetch(&name, kind).await;
        let result = match &answer {
            Ok(answer) => code_name(answer.metadata.response_code),
            Err(why) => why.clone(),
        };
        let kind_text = Kind::of(kind.into()).to_string();
        let query = DnsValidationQuery { name: name_of(&name), kind: kind_text, result, elapsed_ms: ms(started.elapsed()) };
        // Nobody listens when the run has ended.
        drop(self.told.send(query));
        Arc::new(Exchange { name, kind, answer })
    }

    async fn fetch(&self, name: &Name, kind: RecordType) -> Result<DnsResponse, String> {
        let query = Query::of(name.clone(), Kind::of(kind.into()), &self.options)?;
        let (patience, from) = (self.options.timeout.duration(), self.options.source.map(Address::address));
        let ask = async |way: &Way| dns::ask((from, self.server), way, query.bytes(), |bytes| query.is_answered_by(bytes), patience).await;
        let mut why = AttemptResult::Timeout.to_string();
        for _ in 0..self.options.tries.get() {
            let mut answer = ask(&self.way).await;
            if answer.as_ref().is_ok_and(|answer| matches!(self.way, Way::Udp) && is_truncated(&answer.bytes)) {
                answer = ask(&Way::Tcp).await;
            }
            match answer {
                Ok(answer) => {
                    return DnsResponse::from_buffer(answer.bytes).map_err(|error| format!("the answer cannot be read: {error}"));
                }
                Err(none) => why = none.detail.unwrap_or_else(|| format!("no answer ({})", none.result)),
            }
        }
        Err(why)
    }
}

fn code_name(code: ResponseCode) -> String {
    dns::message::rcode(code.into()).name
}

impl DnsHandle for Source {
    type Response = Pin<Box<dyn Stream<Item = Result<DnsResponse, NetError>> + Send>>;
    type Runtime = TokioRuntimeProvider;

    fn send(&self, request: DnsRequest) -> Self::Response {
        let source = self.clone();
        Box::pin(stream::once(async move {
            let asked = request.queries.first().cloned().ok_or(NetError::Message("no question"))?;
            source.ask(asked.name().clone(), asked.query_type()).await
        }))
    }
}
