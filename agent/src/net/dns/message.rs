//! Questions to bytes, and bytes to answers. Header and names are decoded by hickory; the data of records is kept as it came and printed by
//! [`super::rdata`], so that one odd record does not hide the rest of a message.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query as Asked};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass as AskedClass, Name, RecordType as AskedType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use probeops_shared::host::DnsName;
use probeops_shared::tools::dns::record_type::RecordType;
use probeops_shared::tools::dns::report::{DnsCode, DnsEdns, DnsFlags, DnsQuestion, DnsRecord, DnsResponse};
use probeops_shared::tools::dns::{Dns, Transport};

use super::edns;
use super::rdata::{name_text, presentation};

/// The header of a message.
const HEADER_BYTES: usize = 12;
/// The class of the Internet.
const IN: u16 = 1;
/// The pseudo-record of EDNS.
const OPT: u16 = 41;

/// A query, ready to send.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    id: u16,
    name: Name,
    kind: RecordType,
    class: u16,
    bytes: Vec<u8>,
    /// Where the question ends in them; it begins behind the header.
    question_end: usize,
}

impl Query {
    /// Asks for records of this type and name; an address is asked for by its reverse name.
    pub(crate) fn new(target: &DnsName, kind: RecordType, options: &Dns) -> Result<Self, String> {
        let name = match target {
            DnsName::Address(address) => reverse_name(*address),
            DnsName::Name(name) => {
                Name::from_ascii(format!("{name}.")).map_err(|error| format!("the name cannot be asked for: {error}"))?
            }
        };
        Self::of(name, kind, options)
    }

    /// Asks for records of this type and name.
    pub(crate) fn of(name: Name, kind: RecordType, options: &Dns) -> Result<Self, String> {
        // Over HTTPS always the same, so that caches on the way know the question again (RFC 8484, 4.1).
        let id = if options.protocol == Transport::Https { 0 } else { rand::random() };
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = options.recursion;
        // We understand the answer's `ad`, and a server sets it only for those who say so (RFC 6840, 5.7).
        message.metadata.authentic_data = true;
        message.metadata.checking_disabled = options.checking_disabled;
        let class = options.class.number();
        let mut asked = Asked::query(name.clone(), AskedType::from(kind.number()));
        asked.set_query_class(AskedClass::from(class));
        message.add_query(asked);
        if options.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(options.edns_bytes.get_u16()).set_dnssec_ok(options.dnssec);
            if options.nsid {
                // Empty: the server fills it in.
                edns.options_mut().insert(EdnsOption::Unknown(edns::NSID, Vec::new()));
            }
            if let Some(subnet) = options.client_subnet {
                edns.options_mut().insert(EdnsOption::Unknown(edns::CLIENT_SUBNET, edns::client_subnet_asked(subnet)));
            }
            message.set_edns(edns);
        }
        let bytes = message.to_vec().map_err(|error| format!("the query cannot be written: {error}"))?;
        // Each label with its length, the root's, type and class.
        let question_end = HEADER_BYTES + name.iter().map(|label| label.len() + 1).sum::<usize>() + 1 + 4;
        Ok(Self { id, name, kind, class, bytes, question_end })
    }

    /// The message.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whose records it asks for.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Of which type.
    pub(crate) fn kind(&self) -> u16 {
        self.kind.number()
    }

    /// What it asks.
    pub(crate) fn question(&self) -> DnsQuestion {
        DnsQuestion { name: name_text(&self.name), class: class_name(self.class), kind: self.kind.to_string() }
    }

    /// Whether these bytes are an answer to it: nothing else that arrives counts (RFC 5452, 9.1).
    pub(crate) fn is_answered_by(&self, bytes: &[u8]) -> bool {
        let mut decoder = BinDecoder::new(bytes);
        let Ok(header) = Header::read(&mut decoder) else { return false };
        if header.metadata.id != self.id || header.metadata.message_type != MessageType::Response {
            return false;
        }
        // As a rule it is there byte for byte.
        let question = self.bytes.get(HEADER_BYTES..self.question_end);
        if header.counts.queries == 1 && question.is_some() && bytes.get(HEADER_BYTES..self.question_end) == question {
            return true;
        }
        // A server that could not read the question may leave it out (FORMERR).
        header.counts.queries == 0 || asked(&mut decoder).is_some_and(|asked| asked == (self.name.clone(), self.kind.number(), self.class))
    }
}

fn reverse_name(address: IpAddr) -> Name {
    let mut name = Name::from(address);
    name.set_fqdn(true);
    name
}

/// A name as it is printed.
pub(crate) fn name_of(name: &Name) -> String {
    name_text(name)
}

/// Whether the message says that it was cut.
pub(crate) fn is_truncated(bytes: &[u8]) -> bool {
    bytes.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Reads a message; in words why it cannot be read.
pub(crate) fn read(bytes: &[u8]) -> Result<DnsResponse, String> {
    let mut decoder = BinDecoder::new(bytes);
    let header = Header::read(&mut decoder).map_err(|error| format!("its header cannot be read: {error}"))?;
    let mut questions = Vec::new();
    for _ in 0..header.counts.queries {
        let (name, kind, class) = asked(&mut decoder).ok_or("its question cannot be read")?;
        questions.push(DnsQuestion { name: name_text(&name), class: class_name(class), kind: RecordType::of(kind).to_string() });
    }
    let (mut edns, mut upper_rcode) = (None, 0);
    let mut section = |count: u16, title: &str| -> Result<Vec<DnsRecord>, String> {
        let mut records = Vec::new();
        for index in 1..=count {
            match record(bytes, &mut decoder).ok_or_else(|| format!("record {index} of its {title} section cannot be read"))? {
                Read::Record(record) => records.push(record),
                Read::Edns(read, upper) => (edns, upper_rcode) = (Some(read), upper),
            }
        }
        Ok(records)
    };
    let counts = &header.counts;
    let answer = section(counts.answers, "answer")?;
    let authority = section(counts.authorities, "authority")?;
    let additional = section(counts.additionals, "additional")?;
    let metadata = &header.metadata;
    let (opcode, lower_rcode) = bytes.get(2).zip(bytes.get(3)).map_or((0, 0), |(upper, lower)| (upper >> 3 & 15, lower & 15));
    Ok(DnsResponse {
        id: metadata.id,
        opcode: opcode_name(opcode),
        rcode: rcode(upper_rcode << 4 | u16::from(lower_rcode)),
        flags: DnsFlags {
            aa: metadata.authoritative,
            tc: metadata.truncation,
            rd: metadata.recursion_desired,
            ra: metadata.recursion_available,
            ad: metadata.authentic_data,
            cd: metadata.checking_disabled,
        },
        edns,
        questions,
        answer,
        authority,
        additional,
        size_bytes: bytes.len(),
        answer_wire: None,
    })
}

fn asked(decoder: &mut BinDecoder<'_>) -> Option<(Name, u16, u16)> {
    Some((Name::read(decoder).ok()?, decoder.read_u16().ok()?.unverified(), decoder.read_u16().ok()?.unverified()))
}

enum Read {
    Record(DnsRecord),
    /// With the upper bits of the response code.
    Edns(DnsEdns, u16),
}

fn record(bytes: &[u8], decoder: &mut BinDecoder<'_>) -> Option<Read> {
    let (name, kind, class) = asked(decoder)?;
    let ttl_s = decoder.read_u32().ok()?.unverified();
    let length = usize::from(decoder.read_u16().ok()?.unverified());
    let start = decoder.index();
    let data = decoder.read_slice(length).ok()?.unverified();
    if kind == OPT {
        let [upper, version, flags, _] = ttl_s.to_be_bytes();
        let edns = DnsEdns { version, udp_bytes: class, dnssec_ok: flags & 0x80 != 0, options: edns::options(data) };
        return Some(Read::Edns(edns, u16::from(upper)));
    }
    let kind = RecordType::of(kind);
    let value = presentation(kind, bytes, start, start + length);
    Some(Read::Record(DnsRecord { name: name_text(&name), ttl_s, class: class_name(class), kind: kind.to_string(), value }))
}

fn class_name(class: u16) -> String {
    match class {
        IN => "IN".to_owned(),
        3 => "CH".to_owned(),
        4 => "HS".to_owned(),
        254 => "NONE".to_owned(),
        255 => "ANY".to_owned(),
        other => format!("CLASS{other}"),
    }
}

fn opcode_name(opcode: u8) -> String {
    const NAMES: [&str; 7] = ["QUERY", "IQUERY", "STATUS", "RESERVED3", "NOTIFY", "UPDATE", "DSO"];
    NAMES.get(usize::from(opcode)).map_or_else(|| format!("RESERVED{opcode}"), |name| (*name).to_owned())
}

/// IANA "DNS RCODEs".
pub(crate) fn rcode(code: u16) -> DnsCode {
    const NAMES: [&str; 12] = [
        "NOERROR",
        "FORMERR",
        "SERVFAIL",
        "NXDOMAIN",
        "NOTIMP",
        "REFUSED",
        "YXDOMAIN",
        "YXRRSET",
        "NXRRSET",
        "NOTAUTH",
        "NOTZONE",
        "DSOTYPENI",
    ];
    let name = match code {
        16 => "BADVERS".to_owned(),
        23 => "BADCOOKIE".to_owned(),
        _ => NAMES.get(usize::from(code)).map_or_else(|| format!("RESERVED{code}"), |name| (*name).to_owned()),
    };
    DnsCode { code, name }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::rdata::{A, CNAME};
    use hickory_proto::rr::{RData, Record};

    use super::*;

    fn query(name: &str) -> Query {
        Query::new(&name.parse().unwrap(), RecordType::A, &Dns::default()).unwrap()
    }

    fn answer(query: &Query) -> Message {
        let mut message = Message::from_vec(query.bytes()).unwrap();
        message.metadata.message_type = MessageType::Response;
        message.metadata.recursion_available = true;
        message
    }

    #[test]
    fn only_an_answer_to_the_question_counts() {
        let asked = query("Example.com");
        let good = answer(&asked);
        assert!(asked.is_answered_by(&good.to_vec().unwrap()));
        let mut other_id = good.clone();
        other_id.metadata.id = asked.id.wrapping_add(1);
        assert!(!asked.is_answered_by(&other_id.to_vec().unwrap()));
        assert!(!asked.is_answered_by(asked.bytes()), "its own question is no answer");
        let mut foreign = answer(&query("other.example"));
        foreign.metadata.id = asked.id;
        assert!(!asked.is_answered_by(&foreign.to_vec().unwrap()));
        assert!(!asked.is_answered_by(b"\0\0"));
    }

    #[test]
    fn an_answer_is_read_with_all_its_parts() {
        let asked = query("example.com");
        let mut message = answer(&asked);
        message.metadata.response_code = ResponseCode::NXDomain;
        let name = Name::from_ascii("example.com.").unwrap();
        message.add_answer(Record::from_rdata(name.clone(), 60, RData::CNAME(CNAME(Name::from_ascii("a.example.com.").unwrap()))));
        message.add_answer(Record::from_rdata(name, 300, RData::A(A::new(192, 0, 2, 1))));
        let bytes = message.to_vec().unwrap();
        let response = read(&bytes).unwrap();
        assert_eq!((response.rcode.code, response.rcode.name.as_str(), response.size_bytes), (3, "NXDOMAIN", bytes.len()));
        assert_eq!(response.flags, DnsFlags { rd: true, ra: true, ad: true, ..DnsFlags::default() });
        assert_eq!(response.questions, [asked.question()]);
        let values: Vec<&str> = response.answer.iter().map(|record| record.value.as_str()).collect();
        assert_eq!(values, ["a.example.com.", "192.0.2.1"]);
        assert_eq!(response.edns.map(|edns| edns.udp_bytes), Some(1232));
        let cut = read(&bytes[..bytes.len() - 20]).unwrap_err();
        assert!(cut.starts_with("record "), "{cut}");
    }

    #[test]
    fn options_become_the_querys_flags() {
        let options = Dns { recursion: false, dnssec: true, ..Dns::default() };
        let message = Message::from_vec(Query::new(&".".parse().unwrap(), "NS".parse().unwrap(), &options).unwrap().bytes()).unwrap();
        assert!(!message.metadata.recursion_desired && message.edns.unwrap().flags().dnssec_ok);
        let plain = Dns { edns: false, ..Dns::default() };
        let message = Message::from_vec(Query::new(&"a".parse().unwrap(), RecordType::of(65_280), &plain).unwrap().bytes()).unwrap();
        assert!(message.edns.is_none());
        assert_eq!(u16::from(message.queries[0].query_type()), 65_280);
    }

    #[test]
    fn an_address_is_asked_for_by_its_reverse_name() {
        for (target, name) in [
            ("192.0.2.1", "1.2.0.192.in-addr.arpa."),
            ("2001:db8::1", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa."),
            (".", "."),
            ("_dmarc.Example.com", "_dmarc.example.com."),
        ] {
            assert_eq!(query(target).question().name, name);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_fail_otherwise_than_in_words() {
        let mut bytes = answer(&query("example.com")).to_vec().unwrap();
        for index in 0..bytes.len() {
            for value in [0, 1, 0x3f, 0x40, 0xc0, 0xff] {
                let before = std::mem::replace(&mut bytes[index], value);
                drop(read(&bytes));
                bytes[index] = before;
            }
        }
        for length in 0..bytes.len() {
            drop(read(&bytes[..length]));
        }
    }
}
