//! The network broken for each of its self-checks in turn: a check that holds nevertheless is none.

use super::path::{DELAY, PAIR_IN_USE, PAIR_OUT_OF_USE};
use super::self_checks::{self, CHECKS};
use super::table::Row;
use super::wire::Impairment;
use super::{Asker, Testnet};

/// A place, the kind of a chain of nftables there, and its rule on what comes from the client.
type Breakage = (&'static str, &'static str, &'static str);

const BEFORE: &str = "filter hook prerouting priority -150";
const ELSEWHERE: &str = "nat hook prerouting priority -110";
const THROUGH: &str = "filter hook forward priority -10";
const IN: &str = "filter hook input priority -10";

/// For each check, in their order. Where something is answered, somebody else answers, rather than nobody.
const BREAKAGES: [Breakage; CHECKS.len()] = [
    ("server", IN, "ip daddr 10.77.100.80 icmp type echo-request reject"),
    ("server", IN, "ip6 daddr fd77:100::80 icmpv6 type echo-request reject"),
    ("server", IN, "ip daddr 10.78.0.0/16 reject"),
    ("server", IN, "ip6 daddr fd78::/64 reject"),
    // Paths that are one hop longer or shorter.
    ("r1", BEFORE, "ip ttl set 2"),
    ("r1", BEFORE, "ip ttl set 4"),
    ("r1", BEFORE, "ip6 hoplimit set 5"),
    ("r1", BEFORE, "ip ttl set 2"),
    ("r1", BEFORE, "ip6 hoplimit set 2"),
    ("r5", THROUGH, "ip daddr 10.99.0.0/16 reject with icmpx type no-route"),
    ("r5", THROUGH, "ip6 daddr fd99::/16 reject with icmpx type no-route"),
    ("r1", BEFORE, "ip length > 1400 drop"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.53 udp dport 53 dnat ip to 10.77.100.56"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.53 udp dport 53 dnat ip to 10.77.100.56"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.53 udp dport 53 dnat ip to 10.77.100.54"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.53 udp dport 53 dnat ip to 10.77.100.54"),
    ("server", ELSEWHERE, "ip6 daddr fd77:100::53 udp dport 53 dnat ip6 to fd77:100::54"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.56 udp dport 53 dnat ip to 10.77.100.54"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.54 udp dport 53 dnat ip to 10.77.100.56"),
    ("server", IN, "ip daddr 10.77.100.53 tcp dport 853 reject with tcp reset"),
    ("server", IN, "ip daddr 10.77.100.53 tcp dport 443 reject with tcp reset"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.53 udp dport 53 dnat ip to 10.77.100.56"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 443 dnat ip to 10.77.100.80:8449"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 8443 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 8444 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 8445 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 8446 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 8447 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 8448 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 8449 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip daddr 10.77.100.80 tcp dport 80 dnat ip to 10.77.100.80:443"),
    ("server", ELSEWHERE, "ip6 daddr fd77:100::80 tcp dport 80 dnat ip6 to [fd77:100::80]:443"),
    ("server", IN, "tcp dport 4444 reject with tcp reset"),
    ("server", IN, "tcp dport 4445 reject with tcp reset"),
    ("server", ELSEWHERE, "tcp dport 2222 dnat ip to 10.77.100.43:43"),
    ("server", ELSEWHERE, "tcp dport 43 dnat ip to 10.77.100.43:2222"),
];

/// Breaks the network for each check, which must fail, and mends it, after which it must hold.
pub fn noticed(net: &Testnet, _: &Asker) -> Row {
    let mut row = Row::new("self-checks that notice what they are for", "breakages");
    let mut seen = 0;
    let mut judge = |name: &str, broken: Option<String>, mended: Option<String>| {
        seen += usize::from(broken.is_some() && mended.is_none());
        row.check(broken.is_some(), || format!("holds on a network that is broken: {name}"));
        row.check(mended.is_none(), || format!("{name}: does not hold on a network that is mended: {mended:?}"));
    };
    for (check, (name, kind, rule)) in CHECKS.iter().zip(BREAKAGES) {
        let place = net.path().place(name);
        let look = || {
            net.path().client().ip("-4", "route flush cache");
            self_checks::failure(net, check)
        };
        place.filter(&format!("table inet broken {{ chain broken {{ type {kind}; iifname left {rule}; }}; }}"));
        let broken = look();
        place.filter("delete table inet broken");
        judge(&format!("{check:?} {rule}"), broken, look());
    }
    let link = net.path().link();
    link.impair(Impairment::default());
    let broken = self_checks::delayed();
    link.impair(Impairment { delay: DELAY, ..Impairment::default() });
    judge("delay", broken, self_checks::delayed());

    let limited = net.path().place("r4");
    limited.sysctl(&["net.ipv4.icmp_ratelimit=0"]);
    let broken = self_checks::limited();
    limited.sysctl(&["net.ipv4.icmp_ratelimit=100"]);
    judge("limit", broken, self_checks::limited());

    let sharing = net.path().place("r1");
    sharing.ip("-4", PAIR_OUT_OF_USE);
    let broken = self_checks::shared_out();
    sharing.ip("-4", PAIR_IN_USE);
    judge("equal paths", broken, self_checks::shared_out());

    // A link that does not do what it is told.
    let lossless = Impairment { loss: 0.0, ..self_checks::LOSSY };
    judge("loss", self_checks::loses(net, lossless), self_checks::loses(net, self_checks::LOSSY));
    let even = Impairment { jitter: std::time::Duration::ZERO, ..self_checks::UNEVEN };
    judge("jitter", self_checks::jitters(net, even), self_checks::jitters(net, self_checks::UNEVEN));
    row.found(format!("{seen} of {}", self_checks::COUNT), self_checks::COUNT)
}
