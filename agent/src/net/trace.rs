//! Probes that are meant to die on the way, by ICMP, UDP or TCP, and who says that they did. None of them needs a privilege.

mod udp;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use probeops_shared::tools::network::{Family, IcmpMessage, MplsLabel};
use probeops_shared::tools::ping::report::{PingMethod, TcpReply};
use probeops_shared::tools::trace::{HANDSHAKE_PATIENCE, TraceFlow, TraceMethod};
use socket2::Socket;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use self::udp::UdpFlow;
use crate::net::icmp::{self, Answer, Conversation, EchoSocket, Fragments, Icmp, Kind, Request};
use crate::net::syn::{self, Handshake, Syn};
use crate::net::words;

/// How many answers wait for a run that is busy: more than the probes it can have under way.
const HEARD_MAX: usize = 256;
/// What a socket is told of how many probes a trace sends: one serves all of them, as the pacer lets all traces together send no more than it has
/// numbers for.
const PACED: usize = 0;

/// Where probes go, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    /// To whom.
    pub(crate) to: IpAddr,
    /// What they are made of.
    pub(crate) carrier: Carrier,
    /// From which address of this machine.
    pub(crate) source: Option<IpAddr>,
    /// Their differentiated services code point.
    pub(crate) dscp: Option<u8>,
    /// How much they carry, over ICMP and UDP.
    pub(crate) payload_bytes: usize,
    /// Whether they may be cut.
    pub(crate) fragments: Fragments,
    /// How many flows there are.
    pub(crate) flows: u8,
    /// Whether the probes of each are alike, over UDP and TCP. Over TCP they must then be sent one by one.
    pub(crate) flow: TraceFlow,
}

/// What probes are made of, and to which port they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Icmp,
    Udp(u16),
    Tcp(u16),
}

/// An answer to a probe.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// The probe's number with whoever sent it.
    pub(crate) tag: u64,
    /// How long after it.
    pub(crate) rtt: Duration,
    /// What.
    pub(crate) sign: Sign,
}

/// What became of a probe.
#[derive(Clone, Debug)]
pub(crate) enum Sign {
    /// The target replied, over TCP with a yes or a no.
    Reply(Option<TcpReply>),
    /// Somebody sent an ICMP error.
    Icmp {
        /// What it says and who says it.
        icmp: IcmpMessage,
        /// The labels that the probe bore where it was dropped.
        mpls: Vec<MplsLabel>,
    },
    /// The system gave up, in its own words.
    Failed(String),
    /// An error about one of several probes, which does not say which: their ports must differ from now on.
    Nameless,
}

/// What sends the probes of a trace and hears of them; dropped, it frees all its sockets.
#[derive(Debug)]
pub(crate) struct Tracer {
    course: Course,
    means: Means,
}

#[derive(Debug)]
enum Means {
    Icmp { sockets: Vec<Arc<dyn EchoSocket>>, conversation: Conversation },
    Udp { flows: Flows, port: u16, news: News },
    Tcp { handshakes: Handshakes, port: u16, news: News },
}

/// Probes over TCP.
#[derive(Debug, Default)]
struct Handshakes {
    /// One for each flow whose probes are alike: what keeps its port.
    ports: Vec<(Socket, SocketAddr)>,
    under_way: HashMap<u64, AbortOnDropHandle<()>>,
    /// Those that are not listened to any more, and may still have their sockets.
    ending: Vec<AbortOnDropHandle<()>>,
}

/// The sockets of probes over UDP.
#[derive(Debug)]
enum Flows {
    /// One for each flow.
    Constant(Vec<UdpFlow>),
    /// One for each probe.
    PerProbe(HashMap<u64, UdpFlow>),
}

#[derive(Debug)]
struct News {
    tell: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
}

impl Tracer {
    /// Opens what is needed.
    pub(crate) fn open(icmp: &Icmp, course: Course) -> io::Result<Self> {
        let (tell, heard) = mpsc::channel(HEARD_MAX);
        let news = News { tell, heard };
        let means = match course.carrier {
            Carrier::Icmp => {
                let socket = |flow| {
                    let Course { source, fragments, .. } = course;
                    icmp.socket(Kind { family: Family::of(course.to), source, fragments, flow }, PACED)
                };
                Means::Icmp { sockets: (1..=course.flows).map(socket).collect::<io::Result<_>>()?, conversation: Conversation::new() }
            }
            Carrier::Udp(port) => {
                let flows = match course.flow {
                    TraceFlow::Constant => {
                        Flows::Constant((0..course.flows).map(|_| UdpFlow::open(&course, port, &news.tell)).collect::<io::Result<_>>()?)
                    }
                    TraceFlow::PerProbe => Flows::PerProbe(HashMap::new()),
                };
                Means::Udp { flows, port, news }
            }
            Carrier::Tcp(port) => {
                let flows = if course.flow == TraceFlow::Constant { course.flows } else { 0 };
                let ports = (0..flows).map(|_| syn::keep_port(course.to, course.source)).collect::<io::Result<_>>()?;
                Means::Tcp { handshakes: Handshakes { ports, ..Handshakes::default() }, port, news }
            }
        };
        Ok(Self { course, means })
    }

    /// With which kind of socket.
    pub(crate) fn method(&self) -> TraceMethod {
        match &self.means {
            Means::Icmp { sockets, .. } if sockets.iter().any(|socket| socket.method() == PingMethod::IcmpRaw) => TraceMethod::IcmpRaw,
            Means::Icmp { .. } => TraceMethod::IcmpDatagram,
            Means::Udp { .. } => TraceMethod::Udp,
            Means::Tcp { .. } => TraceMethod::TcpConnect,
        }
    }

    /// Whether the probes of a flow are alike.
    pub(crate) fn flow(&self) -> TraceFlow {
        match &self.means {
            Means::Icmp { .. } | Means::Udp { flows: Flows::Constant(_), .. } => TraceFlow::Constant,
            Means::Udp { flows: Flows::PerProbe(_), .. } => TraceFlow::PerProbe,
            Means::Tcp { .. } => self.course.flow,
        }
    }

    /// Sends a probe under a number of the caller's own that dies after `ttl` routers; when it left.
    pub(crate) async fn send(&mut self, tag: u64, ttl: u8, flow: usize) -> io::Result<Instant> {
        let course = self.course;
        match &mut self.means {
            Means::Icmp { sockets, conversation } => {
                let request = Request { to: course.to, ttl: Some(ttl), dscp: course.dscp, payload_bytes: course.payload_bytes };
                conversation.send(of_flow(sockets, flow)?, tag, &request).await
            }
            Means::Udp { flows: Flows::Constant(flows), .. } => of_flow(flows, flow)?.send(tag, ttl),
            Means::Udp { flows: Flows::PerProbe(sockets), port, news } => {
                let socket = UdpFlow::open(&course, *port, &news.tell)?;
                let at = socket.send(tag, ttl)?;
                sockets.insert(tag, socket);
                Ok(at)
            }
            Means::Tcp { handshakes: Handshakes { ports, under_way, ending }, port, news } => {
                let to = SocketAddr::new(course.to, *port);
                let from = match ports.as_slice() {
                    [] => course.source.map(|source| SocketAddr::new(source, 0)),
                    ports => {
                        // The system has only one socket at a time for the same two ports.
                        for ended in ending.drain(..) {
                            drop(ended.await);
                        }
                        Some(of_flow(ports, flow)?.1)
                    }
                };
                let syn = Syn { to, from, ttl: Some(ttl), dscp: course.dscp };
                under_way.insert(tag, AbortOnDropHandle::new(tokio::spawn(handshake(syn, tag, news.tell.clone()))));
                Ok(Instant::now())
            }
        }
    }

    /// The next that is heard of a probe; waits for ever where nothing is.
    pub(crate) async fn next(&mut self) -> Heard {
        match &mut self.means {
            Means::Icmp { conversation, .. } => {
                let icmp::Heard { tag, rtt, answer } = conversation.next().await;
                let sign = match answer {
                    Answer::Reply { .. } => Sign::Reply(None),
                    Answer::Error { icmp, mpls } => Sign::Icmp { icmp, mpls },
                };
                Heard { tag, rtt, sign }
            }
            Means::Udp { news, .. } | Means::Tcp { news, .. } => match news.heard.recv().await {
                Some(heard) => heard,
                // Not while we hold a sender ourselves.
                None => std::future::pending().await,
            },
        }
    }

    /// Gives each further probe over UDP a port of its own.
    pub(crate) fn vary_ports(&mut self) {
        if let Means::Udp { flows: flows @ Flows::Constant(_), .. } = &mut self.means {
            *flows = Flows::PerProbe(HashMap::new());
        }
    }

    /// Listens no longer for this one.
    pub(crate) fn forget(&mut self, tag: u64) {
        match &mut self.means {
            Means::Icmp { conversation, .. } => conversation.forget(tag),
            Means::Udp { flows: Flows::Constant(flows), .. } => flows.iter().for_each(|flow| flow.forget(tag)),
            Means::Udp { flows: Flows::PerProbe(sockets), .. } => drop(sockets.remove(&tag)),
            Means::Tcp { handshakes: Handshakes { ports, under_way, ending }, .. } => {
                let ended = under_way.remove(&tag).inspect(AbortOnDropHandle::abort);
                ending.extend(ended.filter(|_| !ports.is_empty()));
            }
        }
    }
}

/// The socket of a flow; flows beyond the last begin again with the first.
fn of_flow<T>(sockets: &[T], flow: usize) -> io::Result<&T> {
    sockets.get(flow % sockets.len().max(1)).ok_or_else(|| io::Error::other("there is no socket for any flow"))
}

async fn handshake(syn: Syn, tag: u64, tell: mpsc::Sender<Heard>) {
    let Ok((rtt, became)) = timeout(HANDSHAKE_PATIENCE, syn.ask()).await else { return };
    let sign = match became {
        Handshake::Answered(reply) => Sign::Reply(Some(reply)),
        Handshake::Error { icmp, mpls } => Sign::Icmp { icmp, mpls },
        Handshake::Failed(why) => Sign::Failed(why),
    };
    // Whoever asked may be gone.
    drop(tell.send(Heard { tag, rtt, sign }).await);
}

/// An error of the system in its own words.
pub(crate) fn unsent(error: &io::Error) -> Sign {
    Sign::Failed(words(error))
}
