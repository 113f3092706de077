//! Which rule of which line lets something pass, and what classes of addresses that comes to.

use std::fmt;

use ipnet::IpNet;
use probeops_shared::presence::AddressClass;
use probeops_shared::reserved::Reserved;
use probeops_shared::tools::ToolName;

use super::rules::Entry;
use super::surroundings::Surroundings;
use super::{Policy, Touch};

/// What is loopback, and what is private; the rest is public.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
const PRIVATE: [&str; 5] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];
const EVERYTHING: [&str; 2] = ["0.0.0.0/0", "::/0"];

impl Policy {
    /// The line of the owner's file that begins so far in it.
    pub(super) fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
    }

    /// A reason with the line it comes from, where it comes from one.
    pub(super) fn with_line(&self, reason: impl fmt::Display, at: Option<usize>) -> String {
        match at {
            Some(at) => format!("{reason} (line {} of {})", self.line(at), self.file.display()),
            None => reason.to_string(),
        }
    }

    /// Why a tool that may be used may be.
    pub(super) fn why_tool(&self, tool: ToolName) -> String {
        let rule = self.rules.allow.tools.as_ref().and_then(|tools| tools.iter().find(|entry| entry.what == tool));
        match rule {
            Some(rule) => self.with_line(format!("the tool {tool} is in allow.tools"), Some(rule.at)),
            None => format!("nothing denies the tool {tool}"),
        }
    }

    /// Why a name that may be asked for may be.
    pub(super) fn why_name(&self, name: &str) -> String {
        let rule = self.rules.allow.names.as_ref().and_then(|names| names.iter().find(|entry| entry.what.matches(name)));
        match rule {
            Some(rule) => self.with_line(format!("`{}` is in allow.names", rule.what), Some(rule.at)),
            None => "nothing denies the name".to_owned(),
        }
    }

    /// Why an address that may be touched may be.
    pub(super) fn why_address(&self, touch: Touch, surroundings: &Surroundings) -> String {
        let mut reasons = Vec::new();
        if surroundings.is_here(touch.address)
            && let Some(loopback) = &self.rules.allow_loopback
        {
            reasons.push(self.with_line("allow_loopback is true", Some(loopback.at)));
        }
        let network =
            self.rules.allow.networks.as_ref().and_then(|networks| networks.iter().find(|entry| entry.what.contains(touch.address)));
        reasons.extend(network.map(|rule| self.with_line(format!("{} is in allow.networks", rule.what), Some(rule.at))));
        let port = touch.port.zip(self.rules.allow.ports.as_ref());
        let port = port.and_then(|(port, ports)| ports.iter().find(|entry| entry.what.contains(port)));
        reasons.extend(port.map(|rule| self.with_line(format!("port {} is in allow.ports", rule.what), Some(rule.at))));
        if reasons.is_empty() { "nothing denies it".to_owned() } else { reasons.join("; ") }
    }

    /// The classes of addresses of which there is one that may be touched.
    pub(super) fn classes(&self) -> Vec<AddressClass> {
        let loopback = self.rules.allows_loopback() && self.opens(&LOOPBACK, &[]);
        [
            (AddressClass::Loopback, loopback),
            (AddressClass::Private, self.opens(&PRIVATE, &[])),
            (AddressClass::Public, self.opens(&EVERYTHING, &[&LOOPBACK[..], &PRIVATE[..]].concat())),
        ]
        .into_iter()
        .filter_map(|(class, open)| open.then_some(class))
        .collect()
    }

    /// Whether the lists of networks leave anything of these open that is in none of the others.
    fn opens(&self, networks: &[&str], without: &[&str]) -> bool {
        let parsed = |texts: &[&str]| texts.iter().filter_map(|text| text.parse::<IpNet>().ok()).collect::<Vec<_>>();
        let (networks, without) = (parsed(networks), parsed(without));
        let inside = |inner: &IpNet, outer: &IpNet| outer.contains(inner);
        // What is allowed of each: all of it, or the smaller of it and of what a rule has.
        let allowed: Vec<IpNet> = match &self.rules.allow.networks {
            None => networks,
            Some(rules) => {
                let pairs = rules.iter().flat_map(|rule| networks.iter().map(move |network| (rule.what.net(), *network)));
                pairs
                    .filter_map(
                        |(rule, network)| if inside(&rule, &network) { Some(rule) } else { inside(&network, &rule).then_some(network) },
                    )
                    .collect()
            }
        };
        let denied = |network: &IpNet| self.rules.deny.networks.iter().any(|rule| inside(network, &rule.what.net()));
        allowed.iter().any(|network| !denied(network) && !without.iter().any(|other| inside(network, other)))
    }

    /// Every rule in force, one a line.
    pub(super) fn told(&self) -> Vec<String> {
        fn entries<'a, T: fmt::Display>(policy: &'a Policy, name: &'a str, list: &'a [Entry<T>]) -> impl Iterator<Item = String> + 'a {
            list.iter().map(move |entry| policy.with_line(format!("{name} {}", entry.what), Some(entry.at)))
        }
        let (allow, deny) = (&self.rules.allow, &self.rules.deny);
        let always =
            [Reserved::LinkLocal, Reserved::Metadata, Reserved::Multicast, Reserved::Broadcast, Reserved::Unspecified, Reserved::Future]
                .map(|reserved| format!("always denied: {reserved}"));
        let mut told = always.to_vec();
        told.extend(self.endpoints.iter().map(|endpoint| format!("denied: {}", endpoint.denial())));
        told.push(match &self.rules.allow_loopback {
            Some(given) => self.with_line(format!("allow_loopback {}", given.what), Some(given.at)),
            None => "allow_loopback false".to_owned(),
        });
        for (name, given) in [
            ("networks", allow.networks.is_some()),
            ("names", allow.names.is_some()),
            ("ports", allow.ports.is_some()),
            ("tools", allow.tools.is_some()),
        ] {
            if !given {
                told.push(format!("allow.{name}: all that are not denied"));
            }
        }
        told.extend(entries(self, "allow.networks", allow.networks.as_deref().unwrap_or_default()));
        told.extend(entries(self, "allow.names", allow.names.as_deref().unwrap_or_default()));
        told.extend(entries(self, "allow.ports", allow.ports.as_deref().unwrap_or_default()));
        told.extend(entries(self, "allow.tools", allow.tools.as_deref().unwrap_or_default()));
        told.extend(entries(self, "deny.networks", &deny.networks));
        told.extend(entries(self, "deny.names", &deny.names));
        told.extend(entries(self, "deny.ports", &deny.ports));
        told.extend(entries(self, "deny.tools", &deny.tools));
        told
    }
}
