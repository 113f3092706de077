use super::*;
use crate::net::interfaces::Interfaces;

fn policy(text: &str) -> Policy {
    Policy::new(text, Path::new("policy.toml"), &[]).unwrap()
}

/// A node at 10.1.0.5/24 and `fd12::5` whose broker is at `broker`.
fn surroundings(broker: &str) -> Surroundings {
    let addresses = ["10.1.0.5", "fd12::5", "fe80::5"].map(|address| address.parse().unwrap()).to_vec();
    let own = Interfaces { addresses, broadcasts: vec!["10.1.0.255".parse().unwrap()] };
    Surroundings::new(own, vec![(Endpoint::of_server(broker).unwrap(), broker.parse().unwrap())])
}

fn touch(address: &str, port: Option<u16>) -> Touch {
    Touch { address: address.parse::<IpAddr>().unwrap().to_canonical(), port, named: false }
}

fn judge(text: &str, address: &str, port: Option<u16>) -> Result<(), Denial> {
    policy(text).check_address(touch(address, port), &surroundings("203.0.113.9:4222"))
}

#[track_caller]
fn denies(text: &str, address: &str, port: Option<u16>, why: &str) {
    let rule = judge(text, address, port).unwrap_err().to_string();
    assert!(rule.contains(why), "{address}: {rule}");
}

#[track_caller]
fn allows(text: &str, address: &str, port: Option<u16>) {
    assert_eq!(judge(text, address, port), Ok(()), "{address}");
}

#[test]
fn private_and_public_addresses_are_allowed_by_default() {
    for address in
        ["10.0.0.1", "172.16.5.4", "192.168.1.1", "100.64.0.1", "192.0.2.1", "8.8.8.8", "fd12::1", "2001:db8::1", "64:ff9b::a00:1"]
    {
        allows("", address, Some(443));
    }
}

#[test]
fn reserved_addresses_are_denied_by_default() {
    for (address, part) in [
        ("127.0.0.1", "loopback"),
        ("127.255.0.9", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("fd00:ec2::23", "metadata"),
        ("fd20:ce::254", "metadata"),
        ("fd00:a9fe:a9fe::1", "metadata"),
        ("fd00:c1::a9fe:a9fe", "metadata"),
        ("fd00:42::42", "metadata"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("10.1.0.255", "broadcast"),
        ("240.0.0.1", "future"),
    ] {
        denies("", address, None, part);
        denies("", address, Some(80), part);
    }
}

#[test]
fn every_address_of_this_machine_is_as_loopback() {
    for address in ["10.1.0.5", "fd12::5", "::ffff:10.1.0.5", "64:ff9b::10.1.0.5", "2002:a01:5::1"] {
        for port in [None, Some(80)] {
            denies("", address, port, "this machine itself, denied like loopback unless the node's owner sets allow_loopback = true");
            denies("allow_loopback = false\n[allow]\nnetworks = [\"0.0.0.0/0\", \"::/0\"]", address, port, "this machine itself");
            allows("allow_loopback = true", address, port);
        }
    }
    allows("", "10.1.0.6", Some(80));
    // A link-local address of its own stays one.
    denies("allow_loopback = true", "fe80::5", None, "link-local");
    let (policy, around) = (policy("allow_loopback = true"), surroundings("203.0.113.9:4222"));
    assert_eq!(policy.why_address(touch("10.1.0.5", None), &around), "allow_loopback is true (line 1 of policy.toml)");
}

#[test]
fn no_disguise_helps() {
    for address in [
        "::ffff:127.0.0.1",
        "::127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::127.0.0.1",
        "64:ff9b:1:7f00:0:100::",
        "2002:7f00:1::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "2001:0:7f00:1:8000:63bf:3fff:fdd2",
        "fd00::5efe:127.0.0.1",
        "2001:db8::200:5efe:7f00:1",
    ] {
        denies("", address, Some(80), "loopback is denied");
        allows("allow_loopback = true", address, Some(80));
    }
    for address in ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::ffff:a9fe:a9fe"] {
        denies("allow_loopback = true", address, Some(80), "link-local");
    }
    denies("", "64:ff9b::203.0.113.9", Some(4222), "own broker");
    denies(
        "[deny]\nnetworks = [\"10.66.0.0/16\"]",
        "2002:a42:1::1",
        Some(80),
        "it leads to 10.66.0.1 (6to4); 10.66.0.0/16 is in deny.networks",
    );
}

#[test]
fn the_nodes_own_broker_is_denied_by_address_and_port() {
    denies("", "203.0.113.9", Some(4222), "the node's own broker 203.0.113.9:4222 is always denied");
    denies("", "::ffff:203.0.113.9", Some(4222), "own broker");
    denies("", "203.0.113.9", None, "own broker");
    allows("", "203.0.113.9", Some(443));
}

#[test]
fn servers_that_the_owner_names_are_denied_too() {
    let policy = policy("[deny]\nendpoints = [\"10.0.0.7:8443\"]");
    let endpoint = policy.endpoints()[0].clone();
    let around = Surroundings::new(Interfaces::default(), vec![(endpoint, "10.0.0.7:8443".parse().unwrap())]);
    assert_eq!(policy.check_address(touch("10.0.0.7", Some(8443)), &around).unwrap_err().to_string(), "10.0.0.7:8443 is in deny.endpoints");
    assert_eq!(policy.check_address(touch("10.0.0.7", Some(22)), &around), Ok(()));
}

#[test]
fn a_broker_on_this_machine_is_denied_by_every_address_of_it() {
    let policy = policy("allow_loopback = true");
    let here = surroundings("127.0.0.1:4222");
    for address in ["127.0.0.1", "127.9.9.9", "::1", "10.1.0.5"] {
        assert!(policy.check_address(touch(address, Some(4222)), &here).is_err(), "{address}");
        assert_eq!(policy.check_address(touch(address, Some(80)), &here), Ok(()), "{address}");
    }
    // Without a port there is nothing to keep away from: the owner has allowed loopback.
    assert_eq!(policy.check_address(touch("127.0.0.1", None), &here), Ok(()));
}

#[test]
fn the_owners_lists_narrow_and_denials_win() {
    let text =
        "[allow]\nnetworks = [\"10.0.0.0/8\"]\nports = [443, \"8000-8100\"]\n[deny]\nnetworks = [\"10.66.0.0/16\"]\nports = [8080]\n";
    allows(text, "10.0.0.1", Some(8000));
    allows(text, "10.0.0.1", None);
    denies(text, "11.0.0.1", Some(443), "none of allow.networks");
    denies(text, "10.66.0.1", Some(443), "10.66.0.0/16 is in deny.networks");
    denies(text, "10.0.0.1", Some(22), "port 22 is not in allow.ports");
    denies(text, "10.0.0.1", Some(8080), "port 8080 is in deny.ports");
    denies("[allow]\nnetworks = [\"0.0.0.0/0\", \"::/0\"]", "127.0.0.1", None, "loopback");
}

#[test]
fn a_disguise_is_allowed_where_what_it_leads_to_is_allowed_too() {
    let of = |networks: &str| format!("[allow]\nnetworks = [{networks}]");
    let translated = of("\"64:ff9b::/96\", \"2002::/16\", \"10.20.0.0/16\"");
    for (inside, outside, disguise) in [("64:ff9b::a14:1", "64:ff9b::a15:1", "NAT64"), ("2002:a14:1::1", "2002:a15:1::1", "6to4")] {
        allows(&translated, inside, Some(443));
        denies(&translated, outside, None, &format!("it leads to 10.21.0.1 ({disguise}); it is in none of allow.networks"));
        denies(&of("\"10.20.0.0/16\""), inside, None, "it is in none of allow.networks");
    }
    allows(&translated, "::ffff:10.20.0.1", None);
    allows(&of("\"::/0\", \"0.0.0.0/0\""), "64:ff9b::a15:1", None);
    // A name that leads there is judged by networks likewise.
    let policy = policy(&format!("{translated}\nnames = [\"*.corp.example\"]"));
    let named = Touch { named: true, ..touch("64:ff9b::a15:1", None) };
    assert!(policy.check_address(named, &surroundings("203.0.113.9:4222")).is_err());
}

#[test]
fn names_are_judged_by_names_and_a_list_of_names_excludes_bare_addresses() {
    let policy = policy("[allow]\nnames = [\"*.corp.example\"]\n[deny]\nnames = [\"secret.corp.example\"]\n");
    assert_eq!(policy.check_name("a.corp.example"), Ok(()));
    assert!(policy.check_name("secret.corp.example").unwrap_err().why.contains("deny.names"));
    assert!(policy.check_name("example.com").unwrap_err().why.contains("allow.names"));
    let around = surroundings("203.0.113.9:4222");
    assert!(policy.check_address(touch("10.0.0.1", None), &around).unwrap_err().why.contains("no addresses"));
    assert_eq!(policy.check_address(Touch { named: true, ..touch("10.0.0.1", None) }, &around), Ok(()));
}

#[test]
fn every_verdict_names_the_line_it_comes_from() {
    let text = "allow_loopback = true\n[allow]\nnetworks = [\n  \"127.0.0.0/8\",\n  \"10.0.0.0/8\",\n]\nnames = [\"*.corp.example\"]\nports = [443]\n\
                [deny]\nnetworks = [\"10.66.0.0/16\"]\ntools = [\"tcp\"]\n";
    let policy = policy(text);
    let around = surroundings("203.0.113.9:4222");
    let denied = |address, port| {
        let denial = policy.check_address(touch(address, port), &around).unwrap_err();
        policy.with_line(&denial, denial.at)
    };
    assert_eq!(denied("10.66.0.1", Some(443)), "10.66.0.0/16 is in deny.networks (line 10 of policy.toml)");
    assert_eq!(denied("11.0.0.1", None), "it is in none of allow.networks (line 4 of policy.toml)");
    assert_eq!(denied("10.0.0.1", Some(22)), "port 22 is not in allow.ports (line 8 of policy.toml)");
    assert_eq!(denied("169.254.1.1", None), "a link-local address (where clouds serve their metadata) is always denied");
    let denial = policy.check_tool(ToolName::Tcp).unwrap_err();
    assert_eq!(policy.with_line(&denial, denial.at), "the tool tcp is in deny.tools (line 11 of policy.toml)");
    assert_eq!(
        policy.why_address(touch("10.0.0.1", Some(443)), &around),
        "10.0.0.0/8 is in allow.networks (line 5 of policy.toml); port 443 is in allow.ports (line 8 of policy.toml)"
    );
    assert!(
        policy.why_address(touch("127.0.0.1", None), &around).starts_with("allow_loopback is true (line 1 of policy.toml); 127.0.0.0/8")
    );
    assert_eq!(policy.why_name("a.corp.example"), "`*.corp.example` is in allow.names (line 7 of policy.toml)");
    assert!(policy.told().contains(&"deny.networks 10.66.0.0/16 (line 10 of policy.toml)".to_owned()), "{:?}", policy.told());
}

#[test]
fn the_classes_that_a_policy_leaves_open_are_told() {
    use probeops_shared::presence::AddressClass::{Loopback, Private, Public};
    for (text, classes) in [
        ("", &[Private, Public][..]),
        ("allow_loopback = true", &[Loopback, Private, Public]),
        ("[allow]\nnetworks = [\"10.0.0.0/8\"]", &[Private]),
        ("[allow]\nnetworks = [\"192.0.2.0/24\", \"10.1.0.0/16\"]\n[deny]\nnetworks = [\"10.0.0.0/8\"]", &[Public]),
        ("[allow]\nnetworks = []", &[]),
        ("allow_loopback = true\n[allow]\nnetworks = [\"127.0.0.0/8\"]", &[Loopback]),
        ("[deny]\nnetworks = [\"0.0.0.0/0\", \"::/0\"]", &[]),
    ] {
        assert_eq!(policy(text).classes(), classes, "{text}");
    }
}

#[test]
fn tools_can_be_denied() {
    assert!(policy("[deny]\ntools = [\"tcp\"]").check_tool(ToolName::Tcp).is_err());
    assert!(policy("[allow]\ntools = [\"ping\"]").check_tool(ToolName::Tcp).is_err());
    assert_eq!(policy("[allow]\ntools = [\"ping\"]").check_tool(ToolName::Ping), Ok(()));
}

#[test]
fn the_brokers_name_is_denied_on_its_port() {
    let policy = Policy::load(None, &["tls://broker.example:4222".to_owned()]).unwrap();
    assert!(policy.check_endpoint_name("broker.example", Some(4222)).is_err());
    assert_eq!(policy.check_endpoint_name("broker.example", Some(443)), Ok(()));
    assert!(Policy::load(None, &["tls://".to_owned()]).is_err());
    assert_eq!(policy.endpoints().len(), 1);
}

#[test]
fn the_examples_of_the_readme_are_files_that_are_taken() {
    let readme = include_str!("../../../README.md");
    let [rules, given] = readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect::<Vec<_>>()[..] else {
        panic!("a policy and an agent's settings")
    };
    assert!(policy(rules).check_address(touch("10.66.0.1", Some(443)), &surroundings("203.0.113.9:4222")).is_err());
    allows(rules, "10.1.2.3", Some(443));
    let given: crate::config::Given = settings::parse(given, Path::new("agent.toml")).unwrap();
    assert_eq!(given.complete().unwrap().slots_probe, 16);
}
