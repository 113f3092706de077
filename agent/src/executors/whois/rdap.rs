//! RDAP objects (RFC 9083) as the few fields that everybody asks for.

use probeops_shared::planted;
use probeops_shared::tools::whois::report::WhoisRecord;
use serde_json::Value;

/// How deep entities are searched for others: a registrar has its contact for abuse one below.
const DEPTH_MAX: u32 = 3;

/// The object and what it says.
pub(crate) fn read(body: &[u8]) -> Result<(Value, WhoisRecord), String> {
    let object: Value = serde_json::from_slice(body).map_err(|_| "its answer is not JSON".to_owned())?;
    let class = object.get("objectClassName").and_then(Value::as_str).unwrap_or_default();
    let mut record = match class {
        "domain" => domain(&object),
        "ip network" => network(&object),
        "autnum" => autonomous_system(&object),
        _ => return Err("its answer is no RDAP object of a domain, a network or an autonomous system".to_owned()),
    };
    record.handle = text(&object, "handle");
    record.statuses = strings(&object, "status");
    (record.created, record.updated, record.expires) = (
        event(&object, "registration"),
        // Some registries have two: when the record changed, and when their database did.
        event(&object, "last changed"),
        event(&object, "expiration"),
    );
    if let Some(registrar) = entity(&object, "registrar", DEPTH_MAX) {
        record.registrar = card(registrar, "fn").or_else(|| card(registrar, "org"));
        let ids = registrar.get("publicIds").and_then(Value::as_array).into_iter().flatten();
        record.registrar_iana_id =
            ids.filter(|id| text(id, "type").is_some_and(|kind| kind.contains("IANA"))).find_map(|id| text(id, "identifier"));
    }
    if let Some(registrant) = entity(&object, "registrant", DEPTH_MAX) {
        record.organization = card(registrant, "org").or_else(|| card(registrant, "fn"));
        record.country = record.country.or_else(|| country(registrant));
    }
    if let Some(abuse) = entity(&object, "abuse", DEPTH_MAX) {
        record.abuse_email = card(abuse, "email");
        record.abuse_phone = card(abuse, "tel").map(|phone| phone.trim_start_matches("tel:").to_owned());
    }
    Ok((object, record))
}

fn domain(object: &Value) -> WhoisRecord {
    let servers = object.get("nameservers").and_then(Value::as_array).into_iter().flatten();
    WhoisRecord {
        name: text(object, "ldhName").map(|name| name.to_ascii_lowercase()),
        name_servers: servers.filter_map(|server| text(server, "ldhName")).map(|name| name.to_ascii_lowercase()).collect(),
        dnssec: object.get("secureDNS").and_then(|dnssec| dnssec.get("delegationSigned")).and_then(Value::as_bool),
        ..WhoisRecord::default()
    }
}

fn network(object: &Value) -> WhoisRecord {
    let prefixes = object.get("cidr0_cidrs").and_then(Value::as_array).into_iter().flatten();
    let prefix = |prefix: &Value| {
        let first = text(prefix, "v4prefix").or_else(|| text(prefix, "v6prefix"))?;
        Some(format!("{first}/{}", prefix.get("length")?.as_u64()?))
    };
    WhoisRecord {
        name: text(object, "name"),
        range: text(object, "startAddress").zip(text(object, "endAddress")).map(|(first, last)| format!("{first} - {last}")),
        prefixes: prefixes.filter_map(prefix).collect(),
        country: text(object, "country"),
        ..WhoisRecord::default()
    }
}

fn autonomous_system(object: &Value) -> WhoisRecord {
    let number = |key| object.get(key).and_then(Value::as_u64);
    let range = number("startAutnum")
        .zip(number("endAutnum"))
        .map(|(first, last)| if first == last { format!("AS{first}") } else { format!("AS{first} - AS{last}") });
    WhoisRecord { name: text(object, "name"), range, country: text(object, "country"), ..WhoisRecord::default() }
}

fn text(object: &Value, key: &str) -> Option<String> {
    object.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn strings(object: &Value, key: &str) -> Vec<String> {
    object.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn event(object: &Value, action: &str) -> Option<String> {
    let mut events = object.get("events").and_then(Value::as_array)?.iter();
    events.find(|event| event.get("eventAction").and_then(Value::as_str) == Some(action)).and_then(|event| text(event, "eventDate"))
}

/// The first entity in this role, at the top before those below.
fn entity<'a>(object: &'a Value, role: &str, depth: u32) -> Option<&'a Value> {
    let entities = object.get("entities").and_then(Value::as_array)?;
    let fits = |entity: &&Value| strings(entity, "roles").iter().any(|own| own == role);
    let below = || entities.iter().find_map(|inner| entity(inner, role, depth.checked_sub(1)?));
    entities.iter().find(fits).or_else(below)
}

/// The first property of this name in an entity's card (jCard, RFC 7095).
fn property<'a>(entity: &'a Value, name: &str) -> Option<&'a Value> {
    let mut properties = entity.get("vcardArray")?.get(1)?.as_array()?.iter();
    properties.find(|property| property.get(0).and_then(Value::as_str) == Some(name))
}

fn card(entity: &Value, name: &str) -> Option<String> {
    let value = property(entity, name)?.get(3)?;
    // A structured value has its most general part first.
    let structured = value.is_array();
    let value = value.as_str().or_else(|| value.get(0)?.as_str())?.trim();
    let value = if planted!("whois" if structured && value.len() == 2) { "" } else { value };
    (!value.is_empty() || planted!("whois" if structured)).then(|| value.to_owned())
}

/// The country of a card's address: its code, or its name.
fn country(entity: &Value) -> Option<String> {
    let address = property(entity, "adr")?;
    text(address.get(1)?, "cc").or_else(|| {
        let name = address.get(3)?.get(6)?.as_str()?.trim();
        (!name.is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(object: &Value) -> WhoisRecord {
        read(object.to_string().as_bytes()).unwrap().1
    }

    #[test]
    fn a_domain_is_read() {
        let record = record(&json!({
            "objectClassName": "domain", "handle": "2336799_DOMAIN_COM-VRSN", "ldhName": "EXAMPLE.COM",
            "status": ["client delete prohibited", "client transfer prohibited"],
            "entities": [{"objectClassName": "entity", "handle": "376", "roles": ["registrar"],
                "publicIds": [{"type": "IANA Registrar ID", "identifier": "376"}],
                "vcardArray": ["vcard", [["version", {}, "text", "4.0"], ["fn", {}, "text", "Example Registrar, Inc."]]],
                "entities": [{"objectClassName": "entity", "roles": ["abuse"], "vcardArray": ["vcard", [["version", {}, "text", "4.0"],
                    ["fn", {}, "text", ""], ["tel", {"type": "voice"}, "uri", "tel:+1.5555551234"],
                    ["email", {}, "text", "abuse@registrar.example"]]]}]}],
            "events": [{"eventAction": "registration", "eventDate": "1995-08-14T04:00:00Z"},
                {"eventAction": "expiration", "eventDate": "2027-08-13T04:00:00Z"},
                {"eventAction": "last changed", "eventDate": "2026-08-14T07:01:39Z"},
                {"eventAction": "last update of RDAP database", "eventDate": "2026-11-25T09:00:00Z"}],
            "secureDNS": {"delegationSigned": true},
            "nameservers": [{"objectClassName": "nameserver", "ldhName": "A.IANA-SERVERS.NET"}, {"ldhName": "B.IANA-SERVERS.NET"}],
        }));
        assert_eq!((record.name.as_deref(), record.handle.as_deref()), (Some("example.com"), Some("2336799_DOMAIN_COM-VRSN")));
        assert_eq!((record.registrar.as_deref(), record.registrar_iana_id.as_deref()), (Some("Example Registrar, Inc."), Some("376")));
        assert_eq!(
            (record.abuse_email.as_deref(), record.abuse_phone.as_deref()),
            (Some("abuse@registrar.example"), Some("+1.5555551234"))
        );
        assert_eq!((record.created.as_deref(), record.expires.as_deref()), (Some("1995-08-14T04:00:00Z"), Some("2027-08-13T04:00:00Z")));
        assert_eq!((record.updated.as_deref(), record.dnssec), (Some("2026-08-14T07:01:39Z"), Some(true)));
        assert_eq!(record.name_servers, ["a.iana-servers.net", "b.iana-servers.net"]);
        assert_eq!(record.statuses, ["client delete prohibited", "client transfer prohibited"]);
    }

    #[test]
    fn a_network_and_an_autonomous_system_are_read() {
        let network = record(&json!({
            "objectClassName": "ip network", "handle": "193.0.0.0 - 193.0.7.255", "startAddress": "193.0.0.0", "endAddress": "193.0.7.255",
            "ipVersion": "v4", "name": "RIPE-NCC", "type": "ASSIGNED PA", "country": "NL", "status": ["active"],
            "cidr0_cidrs": [{"v4prefix": "193.0.0.0", "length": 21}],
            "entities": [
                {"handle": "ORG-RIEN1-RIPE", "roles": ["registrant"], "vcardArray": ["vcard", [["fn", {}, "text", "RIPE NCC"], ["kind", {}, "text", "org"]]]},
                {"handle": "AR-1", "roles": ["abuse"], "vcardArray": ["vcard", [["email", {"type": "abuse"}, "text", "abuse@ripe.net"]]]}],
        }));
        assert_eq!(
            (network.range.as_deref(), network.prefixes.as_slice()),
            (Some("193.0.0.0 - 193.0.7.255"), &["193.0.0.0/21".to_owned()][..])
        );
        assert_eq!((network.organization.as_deref(), network.country.as_deref()), (Some("RIPE NCC"), Some("NL")));
        assert_eq!(network.abuse_email.as_deref(), Some("abuse@ripe.net"));
        let system = record(&json!({
            "objectClassName": "autnum", "handle": "AS64500", "startAutnum": 64500, "endAutnum": 64500, "name": "EXAMPLE-AS",
            "entities": [{"roles": ["registrant"], "vcardArray": ["vcard", [["fn", {}, "text", "Example"],
                ["adr", {"cc": "DE"}, "text", ["", "", "", "", "", "", ""]]]]}],
        }));
        assert_eq!(
            (system.name.as_deref(), system.range.as_deref(), system.country.as_deref()),
            (Some("EXAMPLE-AS"), Some("AS64500"), Some("DE"))
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(read(b"<html>").unwrap_err(), "its answer is not JSON");
        assert!(read(b"{\"errorCode\": 404}").unwrap_err().contains("no RDAP object"));
        // Entities without end are not followed without end.
        let mut deep = json!({"roles": ["abuse"]});
        for _ in 0..10 {
            deep = json!({"roles": ["other"], "entities": [deep]});
        }
        assert_eq!(record(&json!({"objectClassName": "domain", "entities": [deep]})), WhoisRecord::default());
    }
}
