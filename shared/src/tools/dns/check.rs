//! What no option can say of itself alone.

use super::record_type::RecordType;
use super::secure::HttpPath;
use super::trace::TRACE_QUERIES_MAX;
use super::{Dns, RecordClass, Transport};
use crate::host::DnsName;
use crate::invalid::Invalid;
use crate::tools::network::check_duration;

impl Dns {
    /// Refuses combinations that mean nothing.
    pub(super) fn check_combinations(&self, target: &DnsName) -> Result<(), Invalid> {
        let kind = self.record_type(target);
        if let DnsName::Address(address) = target
            && (kind == RecordType::A || kind == RecordType::AAAA)
        {
            let detail =
                format!("{address} is an address, which is asked for by its reverse name; leave `type` out for PTR, or give a name");
            return Err(Invalid::new("/parameters/type", detail));
        }
        let mut named = self.resolver.iter().chain(self.compare_with.hosts());
        if named.clone().next().is_none() && self.port.is_some() {
            return Err(Invalid::new("/parameters/port", "`port` is a port of the `resolver`, and none is given"));
        }
        named.try_for_each(|resolver| {
            self.source.map_or(Ok(()), |source| source.check(self.family, resolver))?;
            self.family.check(resolver)
        })?;
        if self.trace && !self.compare_with.hosts().is_empty() {
            let detail = "`trace` asks the servers of each zone, and no resolvers; leave one of them out";
            return Err(Invalid::new("/parameters/compare_with", detail));
        }
        if let Some(twice) = self.resolver.as_ref().filter(|resolver| self.compare_with.hosts().contains(resolver)) {
            return Err(Invalid::new("/parameters/compare_with", format!("{twice} is the `resolver`, which is asked anyway")));
        }
        self.check_transport()?;
        self.check_validation()?;
        if self.trace {
            self.check_trace()?;
        }
        for (name, asked_for) in
            [("dnssec", self.dnssec), ("validate", self.validate), ("nsid", self.nsid), ("client_subnet", self.client_subnet.is_some())]
        {
            if asked_for && !self.edns {
                return Err(Invalid::new(format!("/parameters/{name}"), format!("`{name}` is asked for by EDNS, and `edns` is false")));
            }
        }
        Ok(())
    }

    fn check_transport(&self) -> Result<(), Invalid> {
        let refused = |name: &str, detail: String| Err(Invalid::new(format!("/parameters/{name}"), detail));
        let (protocol, secure) = (self.protocol, self.protocol.is_secure());
        if secure && self.resolver.is_none() {
            return refused("protocol", format!("the node's own name servers are not asked over {protocol}; name one in `resolver`"));
        }
        if secure && self.trace {
            return refused(
                "protocol",
                format!("the servers of zones are asked over udp or tcp, not over {protocol}; leave `trace` or `protocol` out"),
            );
        }
        let of_tls =
            [("tls_name", self.tls_name.is_some()), ("tls_verify", !self.tls_verify), ("ca_certificates", self.ca_certificates.is_some())];
        if let Some((name, _)) = of_tls.into_iter().find(|(_, given)| *given && !secure) {
            return refused(name, format!("certificates are for `protocol` tls and https, and it is {protocol}"));
        }
        if self.path != HttpPath::default() && protocol != Transport::Https {
            return refused("path", format!("a path is for `protocol` https, and it is {protocol}"));
        }
        if self.tls_name.is_some() && !self.compare_with.hosts().is_empty() {
            return refused("tls_name", "several servers do not have one name; leave it out, and name the servers by theirs".to_owned());
        }
        if !self.tcp_fallback && protocol != Transport::Udp {
            return refused(
                "tcp_fallback",
                format!("only an answer over udp can be truncated, and `protocol` is {protocol}; leave `tcp_fallback` out"),
            );
        }
        Ok(())
    }

    fn check_validation(&self) -> Result<(), Invalid> {
        let refused = |name: &str, detail: String| Err(Invalid::new(format!("/parameters/{name}"), detail));
        match (self.validate, &self.trust_anchor) {
            (false, Some(_)) => refused("trust_anchor", "a proof begins there, and none is asked for; set `validate` too".to_owned()),
            (true, _) if self.trace => {
                refused("validate", "`trace` shows what each server says, and proves nothing; leave one of them out".to_owned())
            }
            (true, _) if self.class != RecordClass::In => refused("class", format!("only class IN is signed, not {}", self.class)),
            _ => Ok(()),
        }
    }

    fn check_trace(&self) -> Result<(), Invalid> {
        if self.class != RecordClass::In {
            let detail = format!("delegations are followed in class IN only, not in {}; leave `trace` or `class` out", self.class);
            return Err(Invalid::new("/parameters/class", detail));
        }
        let plan = || format!("{TRACE_QUERIES_MAX} queries of {} s each may take", self.timeout.duration().as_secs_f64());
        check_duration(self.longest_trace(), "timeout", plan, "`timeout`")
    }
}
