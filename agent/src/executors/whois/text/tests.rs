//! Answers in the ways in which registries write them; names and numbers are those of documentation.

use super::*;

fn reading(target: &str, text: &str) -> Reading {
    read(&target.parse().unwrap(), text)
}

#[track_caller]
fn record(target: &str, text: &str) -> WhoisRecord {
    reading(target, text).record.unwrap_or_else(|| panic!("no record in {text}"))
}

const REGISTRY: &str = "   Domain Name: EXAMPLE.COM\r
   Registry Domain ID: 2336799_DOMAIN_COM-VRSN\r
   Registrar WHOIS Server: whois.registrar.example\r
   Registrar URL: http://registrar.example\r
   Updated Date: 2026-08-14T07:01:39Z\r
   Creation Date: 1995-08-14T04:00:00Z\r
   Registry Expiry Date: 2027-08-13T04:00:00Z\r
   Registrar: Example Registrar, Inc.\r
   Registrar IANA ID: 376\r
   Registrar Abuse Contact Email: abuse@registrar.example\r
   Registrar Abuse Contact Phone: +1.5555551234\r
   Domain Status: clientDeleteProhibited https://icann.org/epp#clientDeleteProhibited\r
   Domain Status: clientTransferProhibited https://icann.org/epp#clientTransferProhibited\r
   Name Server: A.IANA-SERVERS.NET\r
   Name Server: B.IANA-SERVERS.NET\r
   DNSSEC: signedDelegation\r
   URL of the ICANN Whois Inaccuracy Complaint Form: https://www.icann.org/wicf/\r
>>> Last update of whois database: 2026-11-25T09:00:00Z <<<\r
\r
NOTICE: The expiration date displayed in this record is not the date on which a domain that is not registered becomes available.\r
";

#[test]
fn a_registry_of_generic_domains_is_read() {
    let record = record("example.com", REGISTRY);
    assert_eq!((record.name.as_deref(), record.registrar.as_deref()), (Some("example.com"), Some("Example Registrar, Inc.")));
    assert_eq!((record.handle.as_deref(), record.registrar_iana_id.as_deref()), (Some("2336799_DOMAIN_COM-VRSN"), Some("376")));
    assert_eq!((record.created.as_deref(), record.updated.as_deref()), (Some("1995-08-14T04:00:00Z"), Some("2026-08-14T07:01:39Z")));
    assert_eq!((record.expires.as_deref(), record.dnssec), (Some("2027-08-13T04:00:00Z"), Some(true)));
    assert_eq!(record.abuse_email.as_deref(), Some("abuse@registrar.example"));
    assert_eq!(record.statuses, ["clientDeleteProhibited", "clientTransferProhibited"]);
    assert_eq!(record.name_servers, ["a.iana-servers.net", "b.iana-servers.net"]);
    let referral = reading("example.com", REGISTRY).referral.unwrap();
    assert!(referral.to_registrar && referral.host.to_string() == "whois.registrar.example" && referral.port == 43);
}

#[test]
fn a_registry_that_writes_values_below_their_keys_is_read() {
    let record = record(
        "example.uk",
        "\n    Domain name:\n        example.uk\n\n    Registrar:\n        Example Ltd t/a Example [Tag = EXAMPLE]\n        URL: https://registrar.example\n\n    \
         Relevant dates:\n        Registered on: 14-Feb-2000\n        Expiry date:  14-Feb-2027\n        Last updated:  15-Jan-2026\n\n    \
         Registration status:\n        Registered until expiry date.\n\n    Name servers:\n        ns1.example.net     192.0.2.1\n        ns2.example.net\n\n    \
         WHOIS lookup made at 09:00:00 25-Nov-2026\n",
    );
    assert_eq!(
        (record.name.as_deref(), record.registrar.as_deref()),
        (Some("example.uk"), Some("Example Ltd t/a Example [Tag = EXAMPLE]"))
    );
    assert_eq!((record.created.as_deref(), record.expires.as_deref()), (Some("14-Feb-2000"), Some("14-Feb-2027")));
    assert_eq!(record.name_servers, ["ns1.example.net", "ns2.example.net"]);
}

#[test]
fn regional_registries_are_read() {
    let ripe = record(
        "193.0.6.139",
        "% This is the RIPE Database query service.\n\n% Abuse contact for '193.0.0.0 - 193.0.7.255' is 'abuse@ripe.net'\n\n\
         inetnum:        193.0.0.0 - 193.0.7.255\nnetname:        RIPE-NCC\ndescr:          RIPE Network Coordination Centre\norg:            ORG-RIEN1-RIPE\n\
         country:        NL\nstatus:         ASSIGNED PA\ncreated:        2003-03-17T12:15:57Z\nlast-modified:  2024-01-01T00:00:00Z\n\n\
         organisation:   ORG-RIEN1-RIPE\norg-name:       Reseaux IP Europeens\ncountry:        FR\ncreated:        2012-01-01T00:00:00Z\n",
    );
    assert_eq!((ripe.range.as_deref(), ripe.name.as_deref()), (Some("193.0.0.0 - 193.0.7.255"), Some("RIPE-NCC")));
    assert_eq!((ripe.organization.as_deref(), ripe.country.as_deref()), (Some("Reseaux IP Europeens"), Some("NL")));
    assert_eq!((ripe.abuse_email.as_deref(), ripe.created.as_deref()), (Some("abuse@ripe.net"), Some("2003-03-17T12:15:57Z")));
    let arin = record(
        "192.0.2.1",
        "#\n# ARIN WHOIS data\n#\n\nNetRange:       192.0.2.0 - 192.0.2.255\nCIDR:           192.0.2.0/24\nNetName:        TEST-NET-1\n\
         NetHandle:      NET-192-0-2-0-1\nNetType:        IANA Special Use\nOrganization:   Internet Assigned Numbers Authority (IANA)\n\
         RegDate:        2009-06-29\nUpdated:        2024-05-24\n\nOrgName:        Internet Assigned Numbers Authority\nCountry:        US\n\
         OrgAbuseEmail:  abuse@iana.org\n",
    );
    assert_eq!((arin.prefixes.as_slice(), arin.handle.as_deref()), (&["192.0.2.0/24".to_owned()][..], Some("NET-192-0-2-0-1")));
    assert_eq!((arin.country.as_deref(), arin.abuse_email.as_deref()), (Some("US"), Some("abuse@iana.org")));
    let six = record("2001:db8::1", "inet6num:       2001:db8::/32\nnetname:        DOCUMENTATION\ncountry:        AP\n");
    assert_eq!((six.range.as_deref(), six.prefixes.as_slice()), (Some("2001:db8::/32"), &["2001:db8::/32".to_owned()][..]));
}

#[test]
fn an_autonomous_system_is_read_and_not_the_block_that_it_lies_in() {
    let ripe = record(
        "AS64500",
        "as-block:       AS64496 - AS64511\ndescr:          Documentation\ncreated:        1999-01-01T00:00:00Z\n\n\
         aut-num:        AS64500\nas-name:        EXAMPLE-AS\norg:            ORG-EX-RIPE\ncreated:        2010-05-05T00:00:00Z\n\n\
         organisation:   ORG-EX-RIPE\norg-name:       Example\ncountry:        DE\n",
    );
    assert_eq!((ripe.name.as_deref(), ripe.range.as_deref()), (Some("EXAMPLE-AS"), Some("AS64500")));
    assert_eq!((ripe.created.as_deref(), ripe.organization.as_deref()), (Some("2010-05-05T00:00:00Z"), Some("Example")));
    let arin = record("AS64500", "ASNumber:       64500\nASName:         EXAMPLE\nASHandle:       AS64500\nOrgName:        Example\n");
    assert_eq!((arin.range.as_deref(), arin.handle.as_deref()), (Some("AS64500"), Some("AS64500")));
}

#[test]
fn referrals_are_found_in_every_way_they_are_written() {
    let referral = |text: &str| reading("example.com", text).referral.map(|referral| (referral.host.to_string(), referral.port));
    assert_eq!(
        referral("refer:        whois.example\n\ndomain: COM\nwhois: whois.other.example\n"),
        Some(("whois.example".to_owned(), 43))
    );
    assert_eq!(referral("ReferralServer: whois://whois.ripe.net\n"), Some(("whois.ripe.net".to_owned(), 43)));
    assert_eq!(referral("ReferralServer: whois://whois.example:4343/\n"), Some(("whois.example".to_owned(), 4343)));
    assert_eq!(referral("whois: 2001:db8::43\n"), Some(("2001:db8::43".to_owned(), 43)));
    for none in ["refer:\n", "ReferralServer: rwhois://whois.example:4321\n", "refer: -h\n", "refer: 0x7f.1\n", "% refer: whois.example\n"]
    {
        assert_eq!(referral(none), None, "{none}");
    }
}

#[test]
fn an_entry_that_does_not_exist_is_told_from_an_answer_that_means_nothing() {
    for missing in [
        "No match for \"NOWHERE.EXAMPLE\".\r\n>>> Last update <<<\r\n",
        "Domain not found.\n",
        "%ERROR:101: no entries found\n",
        "Domain: nowhere.de\nStatus: free\n",
        "Status:\tAVAILABLE\n",
    ] {
        let reading = reading("nowhere.example", missing);
        assert!(reading.missing && reading.record.is_none(), "{missing}");
    }
    let full = reading("example.com", "WHOIS LIMIT EXCEEDED - SEE WWW.PIR.ORG/WHOIS FOR DETAILS\n");
    assert!(!full.missing && full.record.is_none());
    assert!(!reading("example.com", REGISTRY).missing, "its small print speaks of domains that are not registered");
}

#[test]
fn the_question_is_one_line_and_says_to_some_servers_what_is_meant() {
    let question = |target: &str, server: &str| question(&target.parse().unwrap(), &server.parse().unwrap());
    assert_eq!(question("example.com", "whois.example"), "example.com");
    assert_eq!(question("example.com", "whois.verisign-grs.com"), "domain example.com");
    assert_eq!(question("192.0.2.1", "whois.arin.net"), "n + 192.0.2.1");
    assert_eq!(question("AS64500", "whois.arin.net"), "a + 64500");
    assert_eq!(question("AS64500", "whois.ripe.net"), "AS64500");
}

#[test]
fn old_servers_write_latin_1() {
    assert_eq!(decoded(b"owner: Funda\xe7\xe3o\n"), "owner: Fundação\n");
    assert_eq!(decoded("owner: Fundação\n".as_bytes()), "owner: Fundação\n");
}
