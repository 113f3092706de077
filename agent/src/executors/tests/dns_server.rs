//! A small name server for the zone `test.`, over UDP and TCP on one port of 127.0.0.1.

use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, PTR, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// The server; it ends with this value.
pub(super) struct DnsServer {
    pub(super) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl DnsServer {
    pub(super) async fn start() -> Self {
        // The same port for both: taken over UDP first, and another one tried where TCP has it already.
        let (datagrams, connections) = loop {
            let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            if let Ok(connections) = TcpListener::bind(datagrams.local_addr().unwrap()).await {
                break (datagrams, connections);
            }
        };
        Self::serve(datagrams, connections)
    }

    /// Two of them, on one port of 127.0.0.1 and 127.0.0.2.
    pub(super) async fn start_twice() -> (Self, Self) {
        loop {
            let one = Self::start().await;
            let other = SocketAddr::from(([127, 0, 0, 2], one.address.port()));
            if let (Ok(datagrams), Ok(connections)) = (UdpSocket::bind(other).await, TcpListener::bind(other).await) {
                return (one, Self::serve(datagrams, connections));
            }
        }
    }

    fn serve(datagrams: UdpSocket, connections: TcpListener) -> Self {
        let address = datagrams.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (mut bytes, mut rebound) = ([0; 4096], false);
            loop {
                let (length, from) = datagrams.recv_from(&mut bytes).await.unwrap();
                if let Some(mut answer) = answer(&bytes[..length], &mut rebound) {
                    if answer.to_vec().unwrap().len() > 512 {
                        answer = answer.truncate();
                    }
                    datagrams.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (stream, _) = connections.accept().await.unwrap();
                serve(stream).await;
            }
        });
        Self { address, _tasks: tasks }
    }
}

async fn serve(mut stream: TcpStream) {
    let Ok(length) = stream.read_u16().await else { return };
    let mut bytes = vec![0; usize::from(length)];
    if stream.read_exact(&mut bytes).await.is_err() {
        return;
    }
    if let Some(answer) = answer(&bytes, &mut false) {
        let answer = answer.to_vec().unwrap();
        stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    }
}

/// `rebound` is whether the name whose address changes has been asked for before.
pub(super) fn answer(bytes: &[u8], rebound: &mut bool) -> Option<Message> {
    let mut message = Message::from_vec(bytes).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    let (name, kind) = (message.queries[0].name().clone(), message.queries[0].query_type());
    let mut addresses = |octets: &[[u8; 4]]| {
        if kind == RecordType::A {
            message.add_answers(octets.iter().map(|[a, b, c, d]| Record::from_rdata(name.clone(), 60, RData::A(A::new(*a, *b, *c, *d)))));
        }
    };
    match name.to_ascii().as_str() {
        "local.test." => addresses(&[[127, 0, 0, 1]]),
        "elsewhere.test." => addresses(&[[127, 66, 0, 1]]),
        "metadata.test." => addresses(&[[169, 254, 169, 254]]),
        // A resolver puts the whole chain of aliases into its answer.
        alias @ ("alias.test." | "nickname.test.") if kind == RecordType::A => {
            let (of, address) =
                if alias == "alias.test." { ("metadata.test.", [169, 254, 169, 254]) } else { ("Local.test.", [127, 0, 0, 1]) };
            let of = Name::from_ascii(of).unwrap();
            message.add_answer(Record::from_rdata(name.clone(), 60, RData::CNAME(CNAME(of.clone()))));
            message.add_answer(Record::from_rdata(of, 60, RData::A(A::from(Ipv4Addr::from(address)))));
        }
        "mixed.test." => addresses(&[[169, 254, 169, 254], [127, 0, 0, 1]]),
        "many.test." => addresses(&(0..100).map(|last| [169, 254, 0, last]).collect::<Vec<_>>()),
        "rebinding.test." if kind == RecordType::A => {
            addresses(if *rebound { &[[169, 254, 169, 254]] } else { &[[127, 0, 0, 1]] });
            *rebound = true;
        }
        "alias.test." | "nickname.test." | "rebinding.test." => {}
        "large.test." => {
            let texts = (0..20).map(|number| RData::TXT(TXT::new(vec![format!("{number}{}", "x".repeat(100))])));
            message.add_answers(texts.map(|text| Record::from_rdata(name.clone(), 60, text)));
        }
        "2.0.8.10.in-addr.arpa." if kind == RecordType::PTR => {
            let name_of = RData::PTR(PTR(Name::from_ascii("router.test.").unwrap()));
            message.add_answer(Record::from_rdata(name.clone(), 60, name_of));
        }
        "silent.test." => return None,
        "forged.test." => message.metadata.id = message.metadata.id.wrapping_add(1),
        _ => {
            message.metadata.response_code = ResponseCode::NXDomain;
            let zone = Name::from_ascii("test.").unwrap();
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 5);
            message.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
        }
    }
    Some(message)
}
