//! That the network is as it is said to be, seen by programs that are not ours. Each of these fails where it is not.

use std::time::Duration;

use super::Testnet;
use super::path::DELAY;
use super::reference::{each, says};
use super::registry::GREETING;
use super::web::WEB;
use super::wire::Impairment;

/// A program, its arguments with spaces between them, and what it must say.
pub(super) type Check = (&'static str, &'static str, &'static str);

/// `ROOT` is the authority's file, `KEYS` the root's key. One packet each: for the last of several ping waits no longer than for the others.
pub(super) const CHECKS: [Check; 36] = [
    ("ping", "-n -c 1 10.77.100.80", " 0% packet loss"),
    ("ping", "-n -c 1 fd77:100::80", " 0% packet loss"),
    ("ping", "-n -c 1 10.78.200.7", " 0% packet loss"),
    ("ping", "-n -c 1 fd78::200:7", " 0% packet loss"),
    ("ping", "-n -c 1 -W 2 -t 1 10.77.100.80", "From 10.77.0.2 icmp_seq=1 Time to live exceeded"),
    ("ping", "-n -c 1 -W 2 -t 5 10.77.100.80", "From 10.77.4.2 icmp_seq=1 Time to live exceeded"),
    ("ping", "-n -c 1 -W 2 -t 6 fd77:100::80", " 0% packet loss"),
    ("ping", "-n -c 1 -W 1 -t 3 10.77.100.80", " 0 received, 100% packet loss"),
    ("ping", "-n -c 1 -W 1 -t 3 fd77:100::80", " 0 received, 100% packet loss"),
    ("ping", "-n -c 1 -W 2 10.99.0.1", "Destination Host Unreachable"),
    ("ping", "-n -c 1 -W 2 fd99::1", "Destination unreachable: Address unreachable"),
    ("ping", "-n -c 1 -W 2 -M do -s 1450 10.77.100.80", "mtu = 1400"),
    ("dig", "+dnssec @10.77.100.53 web.probe.test", " ad;"),
    ("dig", "@10.77.100.53 www.bogus.test", "status: SERVFAIL"),
    ("dig", "@10.77.100.53 nope.probe.test", "status: NXDOMAIN"),
    ("dig", "@10.77.100.53 www.plain.test", "192.0.2.80"),
    ("dig", "+short @fd77:100::53 web.probe.test AAAA", "fd77:100::80"),
    ("dig", "+ignore @10.77.100.56 big.probe.test TXT", " tc"),
    ("dig", "@10.77.100.54 web.probe.test", "ns1.test."),
    ("dig", "+short +tls @10.77.100.53 web.probe.test", "10.77.100.80"),
    ("dig", "+short +https @10.77.100.53 web.probe.test", "10.77.100.80"),
    ("delv", "@10.77.100.53 -a KEYS +root=. web.probe.test", "; fully validated"),
    ("openssl", "s_client -connect 10.77.100.80:443 -CAfile ROOT -servername web.probe.test -status", "Cert Status: good"),
    ("openssl", "s_client -connect 10.77.100.80:8443 -CAfile ROOT", "verify error:num=18"),
    ("openssl", "s_client -connect 10.77.100.80:8444 -CAfile ROOT", "verify error:num=10"),
    ("openssl", "s_client -connect 10.77.100.80:8445 -CAfile ROOT -verify_hostname web.probe.test", "verify error:num=62"),
    ("openssl", "s_client -connect 10.77.100.80:8446 -CAfile ROOT -tls1_3", "alert protocol version"),
    ("openssl", "s_client -connect 10.77.100.80:8447 -CAfile ROOT", "verify error:num=20"),
    ("openssl", "s_client -connect 10.77.100.80:8448 -CAfile ROOT", "verify error:num=9"),
    ("openssl", "s_client -connect 10.77.100.80:8449 -CAfile ROOT -status", "Cert Status: revoked"),
    ("curl", "-sv --max-time 5 http://10.77.100.80/gone", "410 Gone"),
    ("curl", "-sv --max-time 5 http://[fd77:100::80]/rdap/domain/probe.test", "application/rdap+json"),
    ("curl", "-sS --max-time 1 http://10.77.100.80:4444/", "timed out"),
    ("nc.openbsd", "-n -v -z -w 2 10.77.100.80 4445", "No route to host"),
    ("nc.openbsd", "-n -d -w 2 10.77.100.43 2222", GREETING),
    ("whois", "-h 10.77.100.43 probe.test", "Registrar: Testnet Registrar"),
];

/// How many checks there are.
pub const COUNT: usize = CHECKS.len() + 5;

/// How a link is told to lose everything.
pub(super) const LOSSY: Impairment = Impairment { delay: DELAY, jitter: Duration::ZERO, loss: 1.0 };
/// How a link is told to delay every packet in its own way.
pub(super) const UNEVEN: Impairment = Impairment { delay: DELAY, jitter: Duration::from_millis(20), loss: 0.0 };

/// Checks everything; returns what is not so.
pub fn failures(net: &Testnet) -> Vec<String> {
    let found = each(&CHECKS, |check| failure(net, check));
    found.into_iter().chain([delayed(), limited(), shared_out(), loses(net, LOSSY), jitters(net, UNEVEN)]).flatten().collect()
}

/// Checks this; returns what is said instead.
pub(super) fn failure(net: &Testnet, (program, arguments, words): &Check) -> Option<String> {
    let (root, keys) = (net.root().display().to_string(), net.folder().join("bind.keys").display().to_string());
    let arguments: Vec<String> = arguments.split(' ').map(|word| word.replace("ROOT", &root).replace("KEYS", &keys)).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = says(program, &arguments);
    (!said.contains(words)).then(|| format!("{program} {arguments:?} does not say `{words}`:\n{said}"))
}

/// The figure behind these words, and what it should be.
fn figure(said: &str, words: &str, so: impl Fn(f64) -> bool) -> Option<String> {
    let rest = said.split_once(words).map(|(_, rest)| rest).unwrap_or_default();
    let figure = rest.split(|character: char| character != '.' && !character.is_ascii_digit()).next().unwrap_or_default().parse();
    (!figure.as_ref().is_ok_and(|figure| so(*figure))).then(|| format!("{figure:?} behind `{words}` in\n{said}"))
}

/// Six links there and back.
pub(super) fn delayed() -> Option<String> {
    let least = DELAY.as_secs_f64() * 1000.0 * 12.0;
    figure(&says("ping", &["-n", "-q", "-c", "5", "-i", "0.2", WEB]), "mdev = ", |fastest| fastest >= least)
}

/// It answers some of what it is asked at once, and not all.
pub(super) fn limited() -> Option<String> {
    let said = says("ping", &["-n", "-q", "-c", "30", "-i", "0.002", "-t", "4", "-W", "1", WEB]);
    figure(&said, "received, +", |errors| (1.0..30.0).contains(&errors))
}

/// Of forty flows one way is never taken once in five hundred thousand million times.
pub(super) fn shared_out() -> Option<String> {
    let said = each(&[(); 4], |()| says("traceroute", &["-n", "-U", "-f", "2", "-m", "2", "-q", "10", WEB])).concat();
    (!["10.77.1.2", "10.77.21.2"].iter().all(|router| said.contains(router))).then(|| format!("not both of the pair:\n{said}"))
}

/// A link that is told to loses everything, itself.
pub(super) fn loses(net: &Testnet, told: Impairment) -> Option<String> {
    let before = net.path().link().lost();
    let said = told_to(net, told, &["-n", "-q", "-c", "2", "-i", "0.2", "-W", "1", WEB]);
    let lost = net.path().link().lost() - before;
    (!said.contains(" 100% packet loss") || lost < 2).then(|| format!("the link has lost {lost}:\n{said}"))
}

/// A link that is told to delays packets by up to 20 ms in each direction: a deviation of 8 ms.
pub(super) fn jitters(net: &Testnet, told: Impairment) -> Option<String> {
    let said = told_to(net, told, &["-n", "-q", "-c", "40", "-i", "0.05", WEB]);
    let deviation = said.split_once("mdev = ").and_then(|(_, rest)| rest.split(&['/', ' '][..]).nth(3)?.parse::<f64>().ok());
    (!deviation.is_some_and(|deviation| deviation > 4.0)).then(|| format!("the link has no jitter:\n{said}"))
}

/// What ping says while the link does as it is told.
fn told_to(net: &Testnet, told: Impairment, arguments: &[&str]) -> String {
    net.path().link().impair(told);
    let said = says("ping", arguments);
    net.path().link().impair(Impairment { delay: DELAY, ..Impairment::default() });
    said
}
